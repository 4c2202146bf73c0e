"""What happens below the posters root, as the system tells it; never taken for the whole truth."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from watchfiles import Change, watch

from producer.collection.paths import is_below, outermost

DEBOUNCE_MS: Final = 500  # a burst is told in parts of at most so long
STEP_MS: Final = 50
HELD_MOST: Final = 10_000  # paths; more than that are not worth remembering, everything is looked at instead
OVERFLOW: Final = 4096  # changes at once: a quarter of the queue that Linux keeps, and drops without a word when full
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 300.0  # between two tries to watch; doubles
RAISED: Final = (OSError, RuntimeError)  # by watch: for limits of the system, and names that are no UTF-8


class Events(threading.Thread):
    """Collects changes until they are taken; a thread of its own, so that nothing waits in the system's queue.

    Attributes:
        trouble: why nothing is told at the moment; empty while all is well.
    """

    def __init__(self, base: Path, starts: Sequence[str]) -> None:
        """`base` is the posters root, symbolic links resolved; `starts` are what to watch, relative to it."""
        super().__init__(name="events", daemon=True)
        self._base, self._starts = base, list(starts)
        self._lock = threading.Lock()
        self._changed: dict[str, bool] = {}
        self._everything = False
        self._begun, self._stopped = threading.Event(), threading.Event()
        self._signal = _Signal(self._begin)
        self.trouble = ""

    def run(self) -> None:
        """Watch until `stop`; begin anew after an error, and then let everything be looked at."""
        pause = FIRST_PAUSE_S
        while not self._stopped.is_set():
            self._signal = _Signal(self._begin)
            try:
                for changes in watch(
                    *self._folders(),
                    watch_filter=None,
                    debounce=DEBOUNCE_MS,
                    step=STEP_MS,
                    stop_event=self._signal,
                    rust_timeout=0,  # at a timeout it would drop what came in the same instant
                    raise_interrupt=False,
                    ignore_permission_denied=True,
                ):
                    pause = FIRST_PAUSE_S
                    self._take_in(changes)
            except RAISED as error:
                self.trouble = str(error)
                self._begun.set()
                self._stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def wait_until_begun(self, timeout_s: float) -> None:
        """Until changes are noticed, or it is known that they are not."""
        self._begun.wait(timeout_s)

    def begin_anew(self) -> None:
        """Let go of the folders and watch what now lies under their names."""
        self._signal.ended.set()

    def _begin(self) -> None:
        """The folders are being watched from now on; what happened before was not seen."""
        self.trouble = ""
        with self._lock:
            self._everything = True
        self._begun.set()

    def take(self) -> tuple[dict[str, bool], bool]:
        """Changed paths relative to the root, with whether each is new; and whether everything has to be looked at."""
        with self._lock:
            changed, everything = self._changed, self._everything
            self._changed, self._everything = {}, False
        return changed, everything

    def stop(self) -> None:
        """Ask the thread to end; it does so within a moment."""
        self._stopped.set()
        self._signal.ended.set()

    def _take_in(self, changes: set[tuple[Change, str]]) -> None:
        top = os.path.join(self._base, "")
        with self._lock:
            self._everything |= len(changes) >= OVERFLOW
            for change, path in changes:
                relative = path.removeprefix(top).replace(os.sep, "/")
                start = next((start for start in self._starts if is_below(relative, start)), None)
                if start is None or _is_hidden(relative, start):
                    continue
                if len(self._changed) < HELD_MOST:
                    self._changed[relative] = self._changed.get(relative, False) or change is Change.added
                else:
                    self._everything = True

    def _folders(self) -> list[str]:
        """The folders to watch: a file is watched by its folder, because it may be replaced by another one."""
        folders = []
        for start in self._starts:
            path = self._base / start
            while not path.is_dir() and path != self._base:
                path = path.parent
            folders.append("" if path == self._base else path.relative_to(self._base).as_posix())
        return [str(self._base / folder) for folder in outermost(folders)]


class _Signal:
    """What `watch` asks, every STEP_MS once it watches, whether it is to end; so it tells when it began."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.ended = threading.Event()
        self._begin: Callable[[], None] | None = begin

    def is_set(self) -> bool:
        if self._begin is not None:
            self._begin()
            self._begin = None
        return self.ended.is_set()


def _is_hidden(relative: str, start: str) -> bool:
    """True for what a search passes over below its start, which may be hidden itself: it was asked for."""
    return any(part.startswith(".") for part in relative.removeprefix(start).split("/"))
