"""A record of the log as a line of JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

# What every record has; all else is a field of its message, from `extra`. The last is of uvicorn, a colored copy.
_ADDED: Final = {"message", "asctime", "taskName", "color_message"}
_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | _ADDED


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON in ASCII: time (ISO 8601, UTC), level, logger, message, process, pid.

    What the call gave as `extra` are fields beside these. `exception` is the traceback of an exception, `stack` the
    stack where one was asked for.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.processName,
            "pid": record.process,
            **{name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD},
        }
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        return as_json({name: _well_formed(value) for name, value in entry.items()}, default=str)


def _well_formed(value: object) -> object:
    """Text without lone surrogates, which many readers of JSON refuse: a broken byte in a file name is one."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def as_json(value: object, default: Callable[[Any], object] | None = None) -> str:
    """A line of JSON in ASCII; a number that JSON does not have (NaN, infinity) becomes null.

    `default` translates what JSON has no type for.
    """
    try:
        return json.dumps(value, allow_nan=False, default=default)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, default=default)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
