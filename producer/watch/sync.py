"""One round of `index --watch`: send what is new, wait, prune what is gone, and say what came of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from producer.client import Producer
from producer.collection.catalogue import Catalogue, require_catalogue
from producer.errors import PosterError
from producer.files import modified_ns
from producer.indexing.dispatch import follow
from producer.indexing.freshness import UpToDateFilter
from producer.indexing.waiting import WaitStatus
from producer.maintenance.prune import Prune
from producer.output import notify, notify_failures
from producer.queue.messages import Poster
from producer.queue.progress import Failure, Progress
from producer.redis_client import retry_until_available

REMEMBERED: Final = 100_000  # posters that failed as they are, so that a search does not send them each time


@dataclass(frozen=True)
class SyncPass:
    """What one round did: the job's progress, None where nothing had to be sent; how many posters were pruned."""

    progress: Progress | None
    pruned: int


class Sync:
    """Makes round after round, and remembers what failed, so that it is not tried again as it is."""

    def __init__(
        self,
        producer: Producer,
        base: Path,
        *,
        prune: bool,
        yes: bool,
        settle_s: float,
        hold_back: Callable[[str], None],
        say_once: Callable[[str], None],
        tell: Callable[[SyncPass], None],
    ) -> None:
        """As Watching.

        Args:
            producer: whose queue and store.
            base: the posters root, symbolic links resolved.
            prune: drop the vectors of posters that are gone.
            yes: also where prune would refuse.
            settle_s: how long a file must rest before it is looked at.
            hold_back: takes a file that was written while it was read.
            say_once: hears why nothing was pruned.
            tell: hears every round that did something.
        """
        self.current = UpToDateFilter(producer, notify)
        self._producer, self._base, self._wait_status = producer, base, WaitStatus(producer)
        self._prune_too, self._yes, self._settle_s = prune, yes, settle_s
        self._hold_back, self._notify_once, self._tell = hold_back, say_once, tell
        self._failed: dict[str, tuple[int, int]] = {}

    def forget(self, path: str) -> None:
        """Try a file again, whether it failed before or not: it may be another one of the same size and time."""
        self._failed.pop(path, None)

    def news(self, items: Iterator[Poster | Failure]) -> Iterator[Poster | Failure]:
        """Leave out what is up to date, and what failed before and is as it was then."""
        while block := list(islice(items, self._producer.settings.posters_per_batch)):
            current = self.current([item for item in block if isinstance(item, Poster)])
            for item in block:
                if isinstance(item, Failure):
                    if item.path not in self._failed:
                        yield item
                elif item.id not in current and self._failed.get(item.path) != (item.size, item.mtime_ns):
                    yield item

    def run(
        self,
        posters: Iterator[Poster | Failure],
        gone: Sequence[str],
        catalogue: Catalogue,
        *,
        is_current: Callable[[Sequence[Poster]], set[str]] = lambda posters: set(),
        always: bool = False,
    ) -> None:
        """Send, wait, prune, tell.

        Args:
            posters: what to send.
            gone: where to prune, relative to the posters root.
            catalogue: gives ids their files.
            is_current: as Producer.feed; counts what needs no work.
            always: a job even if there is nothing to send.
        """
        progress, first = None, next(posters, None)
        if first is not None or always:
            posters = chain([first], posters) if first is not None else posters
            progress = self._send(posters, is_current)
        pruned = self._prune(gone, catalogue) if gone and self._prune_too else 0
        if progress is not None or pruned:
            self._tell(SyncPass(progress, pruned))

    def _send(
        self, posters: Iterator[Poster | Failure], is_current: Callable[[Sequence[Poster]], set[str]]
    ) -> Progress:
        producer, began = self._producer, time.time()
        wait = partial(retry_until_available, on_wait=self._wait_status.report)
        job = wait(producer.begin)
        feed = partial(producer.feed, job, posters, is_current=is_current)
        bar: tqdm[Any] = tqdm(disable=True, file=sys.stderr)
        progress = follow(producer, job, lambda on_wait: feed(on_wait=on_wait), bar)
        failures = wait(lambda: nsmallest(REMEMBERED, producer.job_store.failures(job.id)))
        notify_failures(producer, progress, failures)
        self._remember(failures, began)
        return progress

    def _remember(self, failures: Sequence[Failure], began: float) -> None:
        """Do not send again what failed and stays as it is; look again at what was being written meanwhile."""
        if len(self._failed) + len(failures) > REMEMBERED:
            self._failed.clear()
        for failure in failures:
            try:
                stat = os.stat(self._base / failure.path)
            except OSError:
                self._failed[failure.path] = (-1, -1)
                continue
            self._failed[failure.path] = (stat.st_size, modified_ns(stat))
            if stat.st_mtime >= began - self._settle_s:
                self._hold_back(failure.path)

    def _prune(self, gone: Sequence[str], catalogue: Catalogue) -> int:
        """Prune below these paths; refuse by what that is of the whole store."""
        try:
            require_catalogue(self._producer.settings, catalogue)
            with closing(self._producer.store()) as store:
                whole = max((info.count for info in store.spaces()), default=0)
                prune = Prune(store, self._base, gone, catalogue, yes=self._yes)
                survey = prune.survey()
                return prune.remove(survey, of=max(whole, survey.held)) if survey.gone else 0
        except PosterError as error:
            self._notify_once(str(error))
            return 0
