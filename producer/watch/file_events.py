"""File system events below the posters root. They may be incomplete: a full scan finds what they miss."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from watchfiles import Change, watch

from producer.collection.paths import excluded_names, is_below, outermost
from producer.settings import EXCLUDED

DEBOUNCE_MS: Final = 500  # a burst is delivered in parts of at most this length
STEP_MS: Final = 50
MAX_WAITING_PATHS: Final = 10_000  # with more, a full scan is cheaper
OVERFLOW: Final = 4096  # changes at once: a quarter of the queue of Linux, which drops events silently when full
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 300.0  # between two attempts to watch; doubles


class Events(threading.Thread):
    """Thread that collects changes until they are taken, so that the system's queue stays short.

    Attributes:
        error: why no events arrive at the moment; empty while they do.
    """

    def __init__(self, base: Path, starts: Sequence[str], exclude: Sequence[str] = EXCLUDED) -> None:
        """Prepare; nothing is watched yet.

        Args:
            base: the posters root, symbolic links resolved.
            starts: what to watch, relative to it.
            exclude: globs of names that are skipped below a start (settings.exclude).
        """
        super().__init__(name="events", daemon=True)
        self._base, self._starts = base, list(starts)
        self._is_excluded_name = excluded_names(exclude)
        self._lock = threading.Lock()
        self._changed: dict[str, bool] = {}
        self._needs_full_scan = False
        # not `_started`: that name is an attribute of Thread
        self._watching, self._stopped = threading.Event(), threading.Event()
        self._stop_event = _StopEvent(self._on_start)
        self.error = ""

    def run(self) -> None:
        """Watch until `stop`; after an error, watch again and request a full scan."""
        pause = FIRST_PAUSE_S
        while not self._stopped.is_set():
            self._stop_event = _StopEvent(self._on_start)
            try:
                for changes in watch(
                    *self._folders(),
                    watch_filter=None,
                    debounce=DEBOUNCE_MS,
                    step=STEP_MS,
                    stop_event=self._stop_event,
                    rust_timeout=0,  # a timeout would drop events of the same instant
                    raise_interrupt=False,
                    ignore_permission_denied=True,
                ):
                    pause = FIRST_PAUSE_S
                    self._collect(changes)
            except (OSError, RuntimeError) as error:  # limits of the system; names that are no UTF-8
                self.error = str(error)
                self._watching.set()
                self._stopped.wait(pause)
                pause = min(2 * pause, MAX_PAUSE_S)

    def wait_until_started(self, timeout_s: float) -> None:
        """Wait until events arrive, or the attempt to watch has failed."""
        self._watching.wait(timeout_s)

    def restart(self) -> None:
        """Watch the folders that have these paths now; needed when a disk was mounted again."""
        self._stop_event.ended.set()

    def _on_start(self) -> None:
        """Watching has started; changes before that were not seen, so a full scan is needed."""
        self.error = ""
        with self._lock:
            self._needs_full_scan = True
        self._watching.set()

    def take(self) -> tuple[dict[str, bool], bool]:
        """Changed paths relative to the root, with whether each is new; and whether a full scan is needed."""
        with self._lock:
            changed, needs_full_scan = self._changed, self._needs_full_scan
            self._changed, self._needs_full_scan = {}, False
        return changed, needs_full_scan

    def stop(self) -> None:
        """End the thread, within STEP_MS or so."""
        self._stopped.set()
        self._stop_event.ended.set()

    def _collect(self, changes: set[tuple[Change, str]]) -> None:
        top = os.path.join(self._base, "")
        with self._lock:
            self._needs_full_scan |= len(changes) >= OVERFLOW
            for change, path in changes:
                relative = path.removeprefix(top).replace(os.sep, "/")
                start = next((start for start in self._starts if is_below(relative, start)), None)
                if start is None or self._is_excluded(relative, start):
                    continue
                if len(self._changed) < MAX_WAITING_PATHS:
                    self._changed[relative] = self._changed.get(relative, False) or change is Change.added
                else:
                    self._needs_full_scan = True

    def _is_excluded(self, relative: str, start: str) -> bool:
        """True for what a scan skips below its start; the start itself may have an excluded name."""
        return any(map(self._is_excluded_name, relative.removeprefix(start).split("/")))

    def _folders(self) -> list[str]:
        """The folders to watch; a file is watched through its folder, because it may be replaced."""
        folders = []
        for start in self._starts:
            path = self._base / start
            while not path.is_dir() and path != self._base:
                path = path.parent
            folders.append("" if path == self._base else path.relative_to(self._base).as_posix())
        return [str(self._base / folder) for folder in outermost(folders)]


class _StopEvent:
    """The stop event of `watch`, which calls `is_set` every STEP_MS once it watches: the first call is its start."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        self.ended = threading.Event()
        self._on_start: Callable[[], None] | None = on_start

    def is_set(self) -> bool:
        if self._on_start is not None:
            self._on_start()
            self._on_start = None
        return self.ended.is_set()
