"""Watcher of `index --watch`: indexes changes below the posters root, pass after pass, until Ctrl-C.

File system events are hints and can be lost: a full scan runs at the start, whenever events may have been missed,
and at intervals. A file is read when it has stopped changing. No state survives a restart; the store has the results.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from producer.client import Producer
from producer.collection.catalogue import open_catalogue
from producer.collection.paths import is_below, is_poster_name, outermost, resolved_root, starts_of
from producer.collection.scan import PosterScan
from producer.errors import PosterError
from producer.files import file_stamp
from producer.indexing.index_job import notify_summary, scan
from producer.output import notify
from producer.queue.messages import Poster
from producer.queue.progress import Failure
from producer.watch.debounce import Debouncer, Settled
from producer.watch.file_events import Events
from producer.watch.sync import Sync, SyncPass, WatchOptions

POLL_S: Final = 0.25
MAX_START_S: Final = 60.0  # for the system to watch a large tree; after that the scan starts all the same
MAX_PRUNED_PATHS: Final = 200  # pruned one by one; with more, the whole store is compared
SCAN_PAUSE_FACTOR: Final = 4  # after a full scan, at least four times its duration without another


class Watcher:
    """Indexes what changes below the posters root, until KeyboardInterrupt."""

    def __init__(
        self,
        producer: Producer,
        paths: Sequence[str],
        options: WatchOptions,
        on_pass: Callable[[SyncPass], None],
    ) -> None:
        """Check the paths and read the catalogue.

        Args:
            producer: whose posters root, catalogue and queue.
            paths: files and folders; none: the whole posters root.
            options: of the command.
            on_pass: called after every pass that did something.

        Raises:
            ConfigurationError: a path lies outside the posters root; the root or the catalogue cannot be read, or
                the configured catalogue does not exist.
        """
        self._producer, self._options = producer, options
        self._base = resolved_root(producer.settings.root)
        self._starts = starts_of(self._base, paths)
        self._first_scan = scan(producer, paths)
        self._catalogue = self._first_scan.catalogue
        self._stamp, self._stamp_since = self._catalogue.stamp, time.monotonic()
        self._sync = Sync(
            producer,
            self._base,
            options,
            hold_back=self._hold_back,
            notify_once=self._notify_once,
            on_pass=on_pass,
        )
        self._events = Events(self._base, self._starts, producer.settings.exclude)
        self._debouncer = Debouncer(self._base, options.settle_s)
        self._notified: set[str] = set()
        self._root_was: tuple[int, int] | None = self._root_identity()
        self._needs_full_scan = True
        self._earliest_scan_s, self._scan_due_s = 0.0, 0.0  # on the monotonic clock

    def run(self) -> None:
        """Watch until KeyboardInterrupt; its argument is the id of the job that is not finished, if there is one."""
        self._events.start()
        self._events.wait_until_started(MAX_START_S)
        first = True
        try:
            while True:
                self._take_events()
                if self._is_root_there():
                    if self._is_scan_due(first):
                        self._attempt(partial(self._scan_all, first))
                        first = False
                    if settled := self._debouncer.poll():
                        self._attempt(partial(self._follow_up, settled))
                time.sleep(POLL_S)
        finally:
            self._events.stop()
            self._sync.up_to_date.close()

    def _attempt(self, step: Callable[[], None]) -> None:
        """Run a step; where it fails, a full scan follows."""
        try:
            step()
        except PosterError as error:
            self._notify_once(str(error))
            self._needs_full_scan = True

    def _take_events(self) -> None:
        changed, needs_full_scan = self._events.take()
        self._needs_full_scan |= needs_full_scan
        for path, is_new in changed.items():
            self._hold_back(path, is_new=is_new)
        if self._events.error:
            interval = f"{self._options.scan_every_s:g} s"
            self._notify_once(f"no file events at the moment ({self._events.error}); scanning every {interval}")

    def _hold_back(self, path: str, *, is_new: bool = False) -> None:
        if not self._debouncer.add(path, is_new=is_new):
            self._needs_full_scan = True

    def _is_root_there(self) -> bool:
        """Notice a disk that was removed, and one that is back: its folders have to be watched again."""
        identity = self._root_identity()
        if identity is None:
            self._notify_once(f"the posters root {self._base} is gone: is its disk mounted? Waiting for it")
        elif identity != self._root_was:
            self._events.restart()
        self._root_was = identity
        return identity is not None

    def _is_scan_due(self, first: bool) -> bool:
        now = time.monotonic()
        stamp = file_stamp(self._catalogue.path)
        if stamp != self._stamp:
            self._stamp, self._stamp_since = stamp, now
        is_needed = not self._catalogue.is_current() or self._needs_full_scan or now >= self._scan_due_s
        # a catalogue that is half written would give the posters of the other half other ids
        is_settled = now >= self._earliest_scan_s and now - self._stamp_since >= self._options.settle_s
        # without a worker it is unknown what is up to date, and everything would be sent
        return first or (is_needed and is_settled and self._sync.up_to_date.is_known())

    def _scan_all(self, first: bool) -> None:
        """A pass over everything."""
        began = time.monotonic()
        self._needs_full_scan = False
        try:
            found = self._first_scan if first else self._new_scan()
            self._catalogue = found.catalogue
            if first:
                self._sync.run(
                    self._settled(found), self._starts, self._catalogue, is_current=self._sync.up_to_date, always=True
                )
                notify_summary(found, self._producer.settings)
            else:
                self._sync.run(self._sync.new_items(self._settled(found)), self._starts, self._catalogue)
                self._notified.clear()
        finally:
            now = time.monotonic()
            self._earliest_scan_s = now + max(self._options.settle_s, SCAN_PAUSE_FACTOR * (now - began))
            self._scan_due_s = now + max(self._options.scan_every_s, SCAN_PAUSE_FACTOR * (now - began))

    def _new_scan(self) -> PosterScan:
        settings = self._producer.settings
        catalogue = open_catalogue(settings, self._catalogue)
        starts = [str(self._base / start) for start in self._starts]
        return PosterScan(self._base, starts, catalogue, exclude=settings.exclude)

    def _follow_up(self, settled: Settled) -> None:
        """A pass over what has changed and settled."""
        files = [path for path in settled.files if self._is_poster(path)]
        folders = [path for path in settled.folders if not self._is_linked(path)]
        paths = [str(self._base / path) for path in (*files, *folders)]
        for path in files:
            self._sync.forget(path)
        found: Iterator[Poster | Failure] = iter(())
        if paths:
            exclude = self._producer.settings.exclude
            again = PosterScan(self._base, paths, self._catalogue, with_problems=False, exclude=exclude)
            # what has been deleted just now has an event of its own
            found = (item for item in self._settled(again) if isinstance(item, Failure) or item.size >= 0)
        deleted = outermost(settled.gone) if len(settled.gone) <= MAX_PRUNED_PATHS else self._starts
        self._sync.run(self._sync.new_items(found), deleted, self._catalogue)

    def _settled(self, items: Iterator[Poster | Failure]) -> Iterator[Poster | Failure]:
        """Hold back what was written within the last `settle_s`."""
        for item in items:
            age_s = time.time() - item.mtime_ns / 1e9 if isinstance(item, Poster) and item.size >= 0 else math.inf
            if abs(age_s) < self._options.settle_s:
                self._hold_back(item.path)
            else:
                yield item

    def _is_poster(self, path: str) -> bool:
        """True for what a scan would take: by its name, by the catalogue, or as one of the given paths."""
        folder, _, name = path.rpartition("/")
        is_poster = is_poster_name(name) or path in self._starts or self._catalogue.by_file([path])
        return bool(is_poster) and not self._is_linked(folder)

    def _is_linked(self, folder: str) -> bool:
        """True for a linked folder below what is watched, and for what lies in it: a scan skips them."""
        start = next((start for start in self._starts if is_below(folder, start)), "")
        parts = [part for part in folder.removeprefix(start).split("/") if part]
        return any(self._base.joinpath(start, *parts[: depth + 1]).is_symlink() for depth in range(len(parts)))

    def _root_identity(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._base)
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    def _notify_once(self, text: str) -> None:
        if text not in self._notified:
            notify(text, logging.WARNING)
        self._notified.add(text)
