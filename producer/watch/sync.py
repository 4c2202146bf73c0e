"""One pass of `index --watch`: send what is new, wait for it, prune what was deleted, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from itertools import chain, islice
from pathlib import Path
from typing import Final

from producer.client import Producer
from producer.collection.catalogue import Catalogue
from producer.errors import PosterError
from producer.files import modified_ns
from producer.indexing.dispatch import follow, progress_bar
from producer.indexing.freshness import UpToDateFilter
from producer.indexing.waiting import WaitStatus
from producer.maintenance.prune import Prune
from producer.output import notify, notify_failures
from producer.queue.messages import Poster
from producer.queue.progress import Failure, Progress
from producer.redis_client import retry_until_available

MAX_KNOWN_FAILURES: Final = 100_000  # posters that a full scan does not send again


@dataclass(frozen=True)
class WatchOptions:
    """The options of `index --watch`.

    Attributes:
        prune: delete the vectors of deleted posters.
        yes: also where prune would refuse.
        settle_s: how long a file must not change before it is read.
        scan_every_s: how often a full scan runs, whatever events arrive.
    """

    prune: bool
    yes: bool
    settle_s: float
    scan_every_s: float


@dataclass(frozen=True)
class SyncPass:
    """The result of one pass: the job's progress, None where nothing was sent; and the number of pruned posters."""

    progress: Progress | None
    pruned: int


class Sync:
    """Makes the passes, and remembers failures, so that an unchanged file is not sent again."""

    def __init__(
        self,
        producer: Producer,
        base: Path,
        options: WatchOptions,
        *,
        hold_back: Callable[[str], None],
        notify_once: Callable[[str], None],
        on_pass: Callable[[SyncPass], None],
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            producer: whose queue and store.
            base: the posters root, symbolic links resolved.
            options: whether to prune, and how long a file must not change.
            hold_back: called with a file that was written while it was read.
            notify_once: called with the reason why nothing was pruned.
            on_pass: called after every pass that did something; comparing what is unchanged does nothing.
        """
        self.up_to_date = UpToDateFilter(producer, notify)
        self._producer, self._base, self._options = producer, base, options
        self._wait_status = WaitStatus(producer)
        self._hold_back, self._notify_once, self._on_pass = hold_back, notify_once, on_pass
        self._failed: dict[str, tuple[int, int]] = {}

    def forget(self, path: str) -> None:
        """Forget the failure of a file: it may be another one of the same size and time."""
        self._failed.pop(path, None)

    def new_items(self, items: Iterator[Poster | Failure]) -> Iterator[Poster | Failure]:
        """Leave out what is up to date, and what failed before and has not changed since."""
        while block := list(islice(items, self._producer.settings.posters_per_batch)):
            current = self.up_to_date([item for item in block if isinstance(item, Poster)])
            for item in block:
                if isinstance(item, Failure):
                    if item.path not in self._failed:
                        yield item
                elif item.id not in current and self._failed.get(item.path) != (item.size, item.mtime_ns):
                    yield item

    def run(
        self,
        posters: Iterator[Poster | Failure],
        deleted: Sequence[str],
        catalogue: Catalogue,
        *,
        is_current: Callable[[Sequence[Poster]], set[str]] = lambda posters: set(),
        always: bool = False,
    ) -> None:
        """Send, wait, prune, report.

        Args:
            posters: what to send.
            deleted: where to prune, relative to the posters root.
            catalogue: gives ids their files.
            is_current: as Producer.feed; counts what needs no work.
            always: a job even if there is nothing to send.
        """
        progress, first = None, next(posters, None)
        if first is not None or always:
            posters = chain([first], posters) if first is not None else posters
            progress = self._send(posters, is_current)
        pruned = self._prune(deleted, catalogue) if deleted and self._options.prune else 0
        # files that were too new to be proven are compared once more, which is not worth a line
        is_news = progress is not None and (always or progress.submitted > progress.unchanged)
        if is_news or pruned:
            self._on_pass(SyncPass(progress, pruned))

    def _send(
        self, posters: Iterator[Poster | Failure], is_current: Callable[[Sequence[Poster]], set[str]]
    ) -> Progress:
        producer, began = self._producer, time.time()
        wait = partial(retry_until_available, on_wait=self._wait_status.report)
        job = wait(producer.begin)
        feed = partial(producer.feed, job, posters, is_current=is_current)
        progress = follow(producer, job, lambda on_wait: feed(on_wait=on_wait), progress_bar(quiet=True))
        failures = wait(lambda: nsmallest(MAX_KNOWN_FAILURES, producer.job_store.failures(job.id)))
        notify_failures(producer, progress, failures)
        self._remember(failures, began)
        return progress

    def _remember(self, failures: Sequence[Failure], began: float) -> None:
        """Remember what failed, with its size and time; hold back what was written during the pass."""
        if len(self._failed) + len(failures) > MAX_KNOWN_FAILURES:
            self._failed.clear()
        for failure in failures:
            try:
                stat = os.stat(self._base / failure.path)
            except OSError:
                self._failed[failure.path] = (-1, -1)
                continue
            self._failed[failure.path] = (stat.st_size, modified_ns(stat))
            if stat.st_mtime >= began - self._options.settle_s:
                self._hold_back(failure.path)

    def _prune(self, deleted: Sequence[str], catalogue: Catalogue) -> int:
        """Prune below these paths; the limit refers to the whole store."""
        try:
            with closing(self._producer.store()) as store:
                whole = max((info.count for info in store.spaces()), default=0)
                prune = Prune(store, self._base, deleted, catalogue, yes=self._options.yes)
                survey = prune.survey()
                return prune.remove(survey, of=max(whole, survey.held)) if survey.gone else 0
        except PosterError as error:
            self._notify_once(str(error))
            return 0
