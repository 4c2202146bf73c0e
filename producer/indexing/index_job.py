"""`index`: feed a collection to the queue within a window, show how far it is, end with the ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from tqdm import tqdm

from producer.client import Producer
from producer.collection.catalogue import Catalogue, is_missed, read_catalogue
from producer.collection.scan import PosterScan, ScanNote
from producer.errors import JobUnknown, LedgerSetBack, RedisUnreachable
from producer.indexing.dispatch import follow, progress_bar, send_detached
from producer.indexing.freshness import UpToDateFilter
from producer.job import Job
from producer.output import notify
from producer.queue.messages import Poster
from producer.queue.progress import Progress
from producer.settings import Settings


def search(
    producer: Producer, paths: Sequence[str], tell: Callable[[ScanNote, str], None] = lambda note, path: None
) -> PosterScan:
    """The posters below `paths`, with the catalogue's ids; says what is odd about the catalogue as a whole.

    Raises:
        ConfigurationError: a path lies outside the posters root, or the catalogue cannot be read.
    """
    settings = producer.settings
    catalogue = read_catalogue(settings.catalogue)
    look_at_catalogue(settings, catalogue)
    return PosterScan(settings.root, paths, catalogue, tell)


def look_at_catalogue(settings: Settings, catalogue: Catalogue) -> None:
    """Say what is odd about the catalogue before its posters fail one by one."""
    if is_missed(settings, catalogue):
        notify(f"there is no catalogue {settings.catalogue}; every poster gets its path as its id")
    elif not catalogue.belongs_to(settings.root):
        notify(
            f"none of the {len(catalogue.entries)} posters that {catalogue.path} names lies under {settings.root}: "
            "if it is another folder's, set POSTERS_CATALOGUE to the right one, or to `none`"
        )


def summarize(found: PosterScan, settings: Settings) -> None:
    """Say once, with numbers, what a search noticed beside posters."""
    counts, name = found.counts, settings.catalogue
    if problems := len(found.catalogue.problems):
        notify(f"{problems} of the entries of {name} cannot be used; each counts as failed and says why")
    if missing := counts[ScanNote.NOT_THERE]:
        notify(f"{missing} poster(s) that {name} names are not there; each counts as failed")
    if unknown := counts[ScanNote.NO_ENTRY]:
        notify(f"{unknown} file(s) are in no entry of {name} and have their paths as ids; `index --dry-run` lists them")
    if unlisted := counts[ScanNote.UNLISTED]:
        notify(f"{unlisted} folder(s) could not be listed; what lies in them was not looked at")


def index(producer: Producer, paths: Sequence[str], *, force: bool, detach: bool, quiet: bool) -> tuple[Job, Progress]:
    """Send what is below `paths` and, unless `detach`, wait for it; as send_all."""
    # the search first, so that a wrong path leaves no empty job behind
    return send_all(producer, search(producer, paths), force=force, detach=detach, quiet=quiet)


def send_all(
    producer: Producer,
    found: PosterScan,
    *,
    force: bool = False,
    verify: bool = False,
    detach: bool = False,
    quiet: bool = False,
) -> tuple[Job, Progress]:
    """Send what a search finds and, unless `detach`, wait for it.

    Keeps at most settings.window batches in flight. Where Redis came back without what it had confirmed, it looks
    again, as a new job, for what is missing.

    Args:
        producer: whose queue, and whose store.
        found: the posters.
        force: embed even what the store already holds.
        verify: let the worker compare contents, and trust no modification time.
        detach: send everything and return.
        quiet: show no bar.

    Raises:
        KeyboardInterrupt: with the job's id; no more of the job will come.
    """
    while True:
        try:
            return _send_all(producer, found, force=force, verify=verify, detach=detach, quiet=quiet)
        except LedgerSetBack as error:
            if detach:
                raise
            notify(f"{error}. Looking again for what is missing …")
            found.begin_again()


def _send_all(
    producer: Producer, found: PosterScan, *, force: bool, verify: bool, detach: bool, quiet: bool
) -> tuple[Job, Progress]:
    current = UpToDateFilter(producer, notify)
    job = producer.begin()
    feed = partial(producer.feed, job, found, force=force, verify=verify, is_current=nobody if verify else current)
    try:
        if detach:
            progress = send_detached(producer, job, feed())
        else:
            with progress_bar(quiet=quiet) as bar:
                _count_in_background(found, bar)
                progress = follow(producer, job, lambda on_wait: feed(on_wait=on_wait), bar)
    except LedgerSetBack:
        with suppress(RedisUnreachable, JobUnknown):
            job.cancel()  # what is left of it is looked for again
        raise
    finally:
        current.close()
    summarize(found, producer.settings)
    return job, progress


def nobody(posters: Sequence[Poster]) -> set[str]:
    """The ids of no poster: every one is sent."""
    return set()


def _count_in_background(found: PosterScan, bar: tqdm[Any]) -> None:
    """Give the bar its total once it is known; until then it shows count and rate, and no time left."""
    if bar.disable:
        return

    def count() -> None:
        bar.total = sum(1 for _ in found.files())

    threading.Thread(target=count, name="count", daemon=True).start()
