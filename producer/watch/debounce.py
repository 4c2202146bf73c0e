"""Debouncer: holds changed files back until they have stopped changing, so that none is read half written."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MAX_WAITING_PATHS: Final = 10_000  # a full scan finds more than that
FOLDER: Final = (-1, -1)


@dataclass
class Settled:
    """Settled paths, relative to the posters root: unchanging files, new folders, and what was deleted."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files or self.folders or self.gone)


@dataclass
class _WaitingPath:
    is_new: bool
    state: tuple[int, int] | None  # size and mtime at the last poll; None: it did not exist
    since_s: float


class Debouncer:
    """Polls changed paths until size and modification time of each have been the same for a while.

    Durations are measured by the local clock: the times of files may come from another machine.
    """

    def __init__(self, base: Path, settle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`base` is the posters root; `settle_s` how long a file must not change; `clock` in seconds."""
        self._top = os.path.join(base, "")
        self._settle_s, self._clock = settle_s, clock
        self._waiting: dict[str, _WaitingPath] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, path: str, *, is_new: bool = False) -> bool:
        """Watch a path until it settles; False at the limit. `is_new`: if it is a folder, everything in it is new."""
        known = self._waiting.get(path)
        if known is None and len(self._waiting) >= MAX_WAITING_PATHS:
            return False
        is_new = is_new or (known is not None and known.is_new)
        self._waiting[path] = _WaitingPath(is_new, self._state(path), self._clock())
        return True

    def poll(self) -> Settled:
        """Release the paths that have settled."""
        settled, now = Settled(), self._clock()
        for path, known in list(self._waiting.items()):
            state = self._state(path)
            if state != known.state:
                self._waiting[path] = _WaitingPath(known.is_new, state, now)
            elif now - known.since_s >= self._settle_s:
                del self._waiting[path]
                if state is None:
                    settled.gone.append(path)
                elif state != FOLDER:
                    settled.files.append(path)
                elif known.is_new:
                    settled.folders.append(path)
        return settled

    def _state(self, path: str) -> tuple[int, int] | None:
        try:
            status = os.stat(self._top + path)
        except OSError:
            return None
        return FOLDER if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
