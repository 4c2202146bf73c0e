"""The result of one check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from producer.errors import PosterError, RedisRefused, RedisUnreachable, StoreUnavailable

RIGHTS: Final = "see docs/redis.acl"


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # it works; something may be lost or slow
    MISCONFIGURED = "misconfigured"  # it answers, and somebody has to mend it
    UNREACHABLE = "unreachable"  # it does not answer, or there is none


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the check.
        text: what was found, and where.
        way_out: what to do; empty when all is well.
        status: how it ended.
    """

    name: str
    text: str
    way_out: str = ""
    status: Status = Status.OK

    @property
    def ok(self) -> bool:
        """True when the work is not stopped by it."""
        return self.status in (Status.OK, Status.WARNING)


def warning(name: str, text: str, way_out: str) -> Finding:
    """Of something that works, and may lose or slow down something."""
    return Finding(name, text, way_out, Status.WARNING)


def misconfigured(name: str, text: str, way_out: str) -> Finding:
    """Of something that answers, and that somebody has to mend."""
    return Finding(name, text, way_out, Status.MISCONFIGURED)


def unreachable(name: str, text: str, way_out: str) -> Finding:
    """Of something that does not answer, or is not there."""
    return Finding(name, text, way_out, Status.UNREACHABLE)


def failed(name: str, error: PosterError, way_out: str) -> Finding:
    """Of an error that a check has raised."""
    away = isinstance(error, RedisUnreachable | StoreUnavailable) and not isinstance(error, RedisRefused)
    return (unreachable if away else misconfigured)(name, str(error), way_out)


def attempt(name: str, check: Callable[[], Finding], way_out: str) -> Finding:
    """The finding of a check, or of the error that it raises."""
    try:
        return check()
    except PosterError as error:
        return failed(name, error, way_out)
