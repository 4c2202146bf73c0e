"""The `index` command's job: scan the collection, send what is found within the window, show progress, summarize."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from producer.client import Producer
from producer.collection.catalogue import Catalogue, open_catalogue
from producer.collection.scan import PosterScan, ScanNote
from producer.errors import JobUnknown, LedgerSetBack, PosterError
from producer.indexing.dispatch import follow, progress_bar, send_detached
from producer.indexing.freshness import UpToDateFilter
from producer.indexing.waiting import WaitStatus
from producer.job import Job
from producer.output import notify
from producer.queue.messages import Poster
from producer.queue.progress import Progress
from producer.queue_client import OnWait
from producer.redis_client import retry_until_available
from producer.settings import Settings

COUNT_ENDS_S: Final = 5.0  # the counting may be waiting for a folder of a disk that hangs, or for Redis


def scan(
    producer: Producer, paths: Sequence[str], on_note: Callable[[ScanNote, str], None] = lambda note, path: None
) -> PosterScan:
    """The posters below `paths`, with the catalogue's ids; warns of a catalogue that seems to be the wrong one.

    Raises:
        ConfigurationError: a path lies outside the posters root, or the catalogue cannot be read.
    """
    settings = producer.settings
    catalogue = open_catalogue(settings)
    notify_ambiguous(settings.root, paths)
    warn_of_wrong_catalogue(settings, catalogue)
    return PosterScan(settings.root, paths, catalogue, on_note, exclude=settings.exclude)


def notify_ambiguous(root: Path, paths: Sequence[str]) -> None:
    """Say which file a relative path means, where the posters root and the current folder have different ones."""
    for path in paths:
        meant = os.path.abspath(root / path)
        if os.path.exists(meant) and os.path.exists(path) and not os.path.samefile(meant, path):
            notify(f"{path} is {meant} here, not {os.path.abspath(path)}: an absolute path leaves no doubt")


def warn_of_wrong_catalogue(settings: Settings, catalogue: Catalogue) -> None:
    """Warn once of a catalogue that is another folder's, before its posters fail one by one."""
    if not catalogue.belongs_to(settings.root):
        notify(
            f"none of the {len(catalogue)} posters that {catalogue.path} names lies under {settings.root}: "
            "if it is another folder's, set POSTERS_CATALOGUE to the right one, or to `none`"
        )


def notify_summary(found: PosterScan, settings: Settings) -> None:
    """Print, with numbers, what a scan noticed beside posters."""
    counts, name = found.counts, settings.catalogue
    if problems := found.catalogue.count_problems():
        notify(f"{problems} of the entries of {name} cannot be used; each counts as failed, with its reason")
    if missing := counts[ScanNote.NOT_THERE]:
        notify(f"{missing} poster(s) that {name} names do not exist; each counts as failed")
    if unknown := counts[ScanNote.NO_ENTRY]:
        notify(f"{unknown} file(s) are in no entry of {name} and have their paths as ids; `index --dry-run` lists them")
    if unlisted := counts[ScanNote.UNLISTED]:
        notify(f"{unlisted} folder(s) could not be listed; their posters were not scanned")


def send_all(
    producer: Producer,
    found: PosterScan,
    *,
    force: bool = False,
    verify: bool = False,
    detach: bool = False,
    quiet: bool = False,
    on_job: Callable[[Job], object] = lambda job: None,
) -> tuple[Job, Progress]:
    """Send what a scan finds and, unless `detach`, wait for it.

    Keeps at most settings.window batches in flight. Where Redis has lost what it had confirmed, a new job scans
    again for what is missing. An outage of Redis is waited for once a job has begun.

    Args:
        producer: whose queue, and whose store.
        found: the posters.
        force: embed even what the store already holds.
        verify: let the worker compare contents instead of modification times.
        detach: send everything and return.
        quiet: show no progress bar.
        on_job: called with every job that is begun, before anything of it is sent.

    Raises:
        KeyboardInterrupt: with the job's id; nothing more of the job is sent.
        RedisUnreachable: no job could be begun.
    """
    wait = partial(retry_until_available, on_wait=WaitStatus(producer).report)
    job = producer.begin()
    while True:
        on_job(job)
        try:
            return job, _send_job(producer, job, found, force=force, verify=verify, detach=detach, quiet=quiet)
        except LedgerSetBack as error:
            notify(f"{error}. Scanning again for what is missing …")
            with suppress(JobUnknown):
                wait(job.cancel)  # the next scan finds what is left of it
            found.restart()
            job = wait(producer.begin)


def _send_job(
    producer: Producer, job: Job, found: PosterScan, *, force: bool, verify: bool, detach: bool, quiet: bool
) -> Progress:
    up_to_date = UpToDateFilter(producer, notify)
    is_current: Callable[[Sequence[Poster]], set[str]] = (lambda posters: set()) if verify else up_to_date

    def feed(on_wait: OnWait) -> Iterator[int]:
        return producer.feed(job, found, force=force, verify=verify, is_current=is_current, on_wait=on_wait)

    try:
        if detach:
            progress = send_detached(producer, job, feed)
        else:
            note_expected = partial(producer.job_store.note_expected, job.id)
            with progress_bar(quiet=quiet) as bar, _counting(found, bar, note_expected):
                progress = follow(producer, job, feed, bar)
    finally:
        up_to_date.close()
    notify_summary(found, producer.settings)
    return progress


@contextmanager
def _counting(found: PosterScan, bar: tqdm[Any], note_expected: Callable[[int], None]) -> Iterator[None]:
    """Count the files inside the block, for the bar's total and for `status`; until then, both show no time left."""
    ended = threading.Event()

    def count() -> None:
        total = 0
        for _ in found.files():
            total += 1
            if ended.is_set():
                return
        bar.total = total
        with suppress(PosterError):  # a hint
            note_expected(total)

    thread = threading.Thread(target=count, name="count", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(COUNT_ENDS_S)
