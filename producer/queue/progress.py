"""What the ledger answers: how far a job is, what failed, whether a batch is a worker's to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple


class Failure(NamedTuple):
    """A poster that failed: its id, its path, one of errors.FAILURE_WORDS, one sentence."""

    id: str
    path: str
    word: str
    reason: str


class Claim(Enum):
    """The ledger's answer to a worker that was handed a batch."""

    WORK = "work"  # it is yours; the attempt is counted
    FINISHED = "finished"  # finished or cancelled before: acknowledge, do nothing
    BUSY = "busy"  # a live worker has it, or it rests on purpose
    CANCELLED = "cancelled"  # its job was cancelled before anybody began it: withdraw it


@dataclass(frozen=True)
class Outcome:
    """What became of the posters of one batch; the parts add up to the batch."""

    embedded: int = 0
    reused: int = 0
    unchanged: int = 0
    failures: tuple[Failure, ...] = ()
    vectors: Mapping[str, bytes] = field(default_factory=dict)

    def summary(self) -> str:
        """The counts, for a log."""
        counts = f"{self.embedded} embedded, {self.reused} reused, {self.unchanged} unchanged"
        return f"{counts}, {len(self.failures)} failed"


@dataclass(frozen=True)
class Progress:
    """A job at one moment.

    At rest, ``submitted == embedded + reused + unchanged + failed``. `doing` counts posters of
    unfinished batches that are already stored, for a progress bar; they are in no other count yet.
    `steps` is how many steps of sending the ledger holds.
    """

    job: str
    state: str
    submitted: int
    embedded: int
    reused: int
    unchanged: int
    failed: int
    cancelled: int
    doing: int
    open_batches: int
    steps: int
    created: float
    ended: float | None

    @property
    def settled(self) -> int:
        """Posters whose fate is known."""
        return self.embedded + self.reused + self.unchanged + self.failed

    @property
    def at_rest(self) -> bool:
        """True when nothing of the job is open and nobody sends more."""
        return self.state != "sending" and self.open_batches == 0

    @property
    def seconds(self) -> float:
        """From the first batch to the end, or to now."""
        return max(0.0, (self.ended if self.ended is not None else time.time()) - self.created)


NOTHING: Final = Progress("", "sent", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)  # of no job: nothing had to be sent
