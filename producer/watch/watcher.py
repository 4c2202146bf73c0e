"""`index --watch`: keep up with a folder of posters, round after round, until somebody ends it.

What the system tells of changes is a hint, and can be lost: everything is looked at when it begins, whenever
something may have been missed, and now and then. A file is looked at when it rests. Nothing is remembered
across a restart; the store knows what is done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from producer.client import Producer
from producer.collection.catalogue import read_catalogue, require_catalogue
from producer.collection.paths import is_below, is_looked_for, outermost, poster_id, resolved_root, starts_of
from producer.collection.scan import PosterScan
from producer.errors import PosterError
from producer.files import file_stamp
from producer.indexing.index_job import search, summarize
from producer.output import notify
from producer.queue.messages import Poster
from producer.queue.progress import Failure
from producer.watch.debounce import Debouncer, Settled
from producer.watch.file_events import Events
from producer.watch.sync import Sync, SyncPass

LOOK_S: Final = 0.25
BEGIN_S: Final = 60.0  # for the system to watch a large tree; after that it is searched all the same
GONE_MOST: Final = 200  # paths that are pruned one by one; more, and everything is compared
SEARCH_SHARE: Final = 4  # after a search of everything, four times as long without one, however much happens


class Watching:
    """Indexes what changes below the posters root, until KeyboardInterrupt."""

    def __init__(
        self,
        producer: Producer,
        paths: Sequence[str],
        *,
        prune: bool,
        yes: bool,
        settle_s: float,
        search_every_s: float,
        tell: Callable[[SyncPass], None],
    ) -> None:
        """Look at the paths.

        Args:
            producer: whose posters root, catalogue and queue.
            paths: files and folders; none: the whole posters root.
            prune: drop the vectors of posters that are deleted.
            yes: also where prune would refuse.
            settle_s: how long a file must rest before it is looked at.
            search_every_s: how often everything is looked at, whatever the system told.
            tell: hears every round that did something.

        Raises:
            ConfigurationError: a path lies outside the posters root; the root or the catalogue cannot be read, or
                the catalogue that was asked for is not there.
        """
        self._producer, self._settle_s, self._search_every_s = producer, settle_s, search_every_s
        self._base = resolved_root(producer.settings.root)
        self._starts = starts_of(self._base, paths)
        self._found = search(producer, paths)  # begins to look when it is asked for posters
        self._catalogue = self._found.catalogue
        require_catalogue(producer.settings, self._catalogue)
        self._stamp, self._stamp_since = self._catalogue.stamp, time.monotonic()
        self._rounds = Sync(
            producer,
            self._base,
            prune=prune,
            yes=yes,
            settle_s=settle_s,
            hold_back=self._hold_back,
            say_once=self._notify_once,
            tell=tell,
        )
        self._events = Events(self._base, self._starts)
        self._settling = Debouncer(self._base, settle_s)
        self._told: set[str] = set()
        self._root: tuple[int, int] | None = self._identity()
        self._everything, self._rested, self._due = True, 0.0, 0.0

    def run(self) -> None:
        """Watch until KeyboardInterrupt; its argument is the job that goes on, if there is one."""
        self._events.start()
        self._events.wait_until_begun(BEGIN_S)
        first = True
        try:
            while True:
                self._take_events()
                if self._is_root_there():
                    if self._is_time_to_search(first):
                        self._attempt(partial(self._search, first))
                        first = False
                    if settled := self._settling.look():
                        self._attempt(partial(self._follow_up, settled))
                time.sleep(LOOK_S)
        finally:
            self._events.stop()
            self._rounds.current.close()

    def _attempt(self, step: Callable[[], None]) -> None:
        """A step that may fail for now: then everything is looked at again."""
        try:
            step()
        except PosterError as error:
            self._notify_once(str(error))
            self._everything = True

    def _take_events(self) -> None:
        changed, everything = self._events.take()
        self._everything |= everything
        for path, is_new in changed.items():
            self._hold_back(path, is_new=is_new)
        if self._events.trouble:
            every = f"{self._search_every_s:g} s"
            self._notify_once(f"changes are not told at the moment ({self._events.trouble}); looking every {every}")

    def _hold_back(self, path: str, *, is_new: bool = False) -> None:
        if not self._settling.add(path, is_new=is_new):
            self._everything = True

    def _is_root_there(self) -> bool:
        """Notice a disk that was taken out, and one that is back: its folders have to be watched anew."""
        identity = self._identity()
        if identity is None:
            self._notify_once(f"the posters root {self._base} is gone: is its disk mounted? Waiting for it")
        elif identity != self._root:
            self._events.begin_anew()
        self._root = identity
        return identity is not None

    def _is_time_to_search(self, first: bool) -> bool:
        now = time.monotonic()
        stamp = file_stamp(self._catalogue.path)
        if stamp != self._stamp:
            self._stamp, self._stamp_since = stamp, now
        wanted = stamp != self._catalogue.stamp or self._everything or now >= self._due
        # half a catalogue would give the posters of the other half other ids
        rests = now >= self._rested and now - self._stamp_since >= self._settle_s
        # without a worker nobody can say what is up to date, and everything would be sent
        return first or (wanted and rests and self._rounds.current.is_known())

    def _search(self, first: bool) -> None:
        """A round over everything."""
        began = time.monotonic()
        self._everything = False
        try:
            found = self._found if first else self._search_again()
            self._catalogue = found.catalogue
            if first:
                self._rounds.run(
                    self._at_rest(found), self._starts, self._catalogue, is_current=self._rounds.current, always=True
                )
                summarize(found, self._producer.settings)
            else:
                self._rounds.run(self._rounds.news(self._at_rest(found)), self._starts, self._catalogue)
                self._told.clear()
        finally:
            now = time.monotonic()
            self._rested = now + max(self._settle_s, SEARCH_SHARE * (now - began))
            self._due = now + max(self._search_every_s, SEARCH_SHARE * (now - began))

    def _search_again(self) -> PosterScan:
        settings = self._producer.settings
        catalogue = read_catalogue(settings.catalogue)
        require_catalogue(settings, catalogue, self._catalogue)
        return PosterScan(self._base, [str(self._base / start) for start in self._starts], catalogue)

    def _follow_up(self, settled: Settled) -> None:
        """A round over what has changed and rests now."""
        files = [path for path in settled.files if self._is_poster(path)]
        folders = [path for path in settled.folders if not self._is_linked(path)]
        paths = [str(self._base / path) for path in (*files, *folders)]
        for path in files:
            self._rounds.forget(path)
        found: Iterator[Poster | Failure] = iter(())
        if paths:
            again = PosterScan(self._base, paths, self._catalogue, with_problems=False)
            # what went away in this moment is told by its own event
            found = (item for item in self._at_rest(again) if isinstance(item, Failure) or item.size >= 0)
        gone = outermost(settled.gone) if len(settled.gone) <= GONE_MOST else self._starts
        self._rounds.run(self._rounds.news(found), gone, self._catalogue)

    def _at_rest(self, items: Iterator[Poster | Failure]) -> Iterator[Poster | Failure]:
        """Hold back what was written a moment ago."""
        for item in items:
            age_s = time.time() - item.mtime_ns / 1e9 if isinstance(item, Poster) else self._settle_s
            if isinstance(item, Poster) and item.size >= 0 and abs(age_s) < self._settle_s:
                self._hold_back(item.path)
                continue
            yield item

    def _is_poster(self, path: str) -> bool:
        """True for what a search would take: by its name, by the catalogue, or because it was asked for."""
        folder, _, name = path.rpartition("/")
        wanted = is_looked_for(name) or path in self._starts or self._catalogue.at([poster_id(path)])
        return bool(wanted) and not self._is_linked(folder)

    def _is_linked(self, folder: str) -> bool:
        """True for a linked folder below what is watched, and for what lies in it: a search passes them over."""
        start = next((start for start in self._starts if is_below(folder, start)), "")
        parts = [part for part in folder.removeprefix(start).split("/") if part]
        return any(self._base.joinpath(start, *parts[: depth + 1]).is_symlink() for depth in range(len(parts)))

    def _identity(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._base)
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    def _notify_once(self, text: str) -> None:
        if text not in self._told:
            notify(text)
        self._told.add(text)
