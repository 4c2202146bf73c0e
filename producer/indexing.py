"""`index`: feed a collection to the queue within a window, show how far it is, end with the ledger."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tqdm import tqdm

from producer.catalogue import Catalogue, read_catalogue
from producer.client import RETRY_S, Job, Producer
from producer.currency import Currency
from producer.finding import Note, Search
from worker.announcement import FAILED, READY
from worker.errors import LedgerSetBack, RedisUnreachable
from worker.messages import Poster
from worker.progress import Progress
from worker.settings import Settings

LOOK_S: Final = 0.2
ASK_FOR_WORKERS_S: Final = 2.0
REST_BATCHES: Final = 256  # that an interrupted `index` may leave in Redis: 20 MB, 65,536 posters

Item = TypeVar("Item")


def say(text: str) -> None:
    """Tell a person something, without tearing a progress bar."""
    tqdm.write(text, file=sys.stderr)


def ledger_entry(progress: Progress) -> dict[str, Any]:
    """The ledger line as an object: job, counts, seconds, images per second (embedded ones)."""
    seconds = round(progress.seconds, 3)
    return {
        "job": progress.job,
        "submitted": progress.submitted,
        "embedded": progress.embedded,
        "reused": progress.reused,
        "unchanged": progress.unchanged,
        "failed": progress.failed,
        "seconds": seconds,
        "images_per_second": round(progress.embedded / seconds, 1) if seconds else 0.0,
    }


def ledger_line(progress: Progress) -> str:
    """The ledger as one line of text: names and values, separated by blanks."""
    return " ".join(f"{name} {value}" for name, value in ledger_entry(progress).items())


@dataclass
class Obstacles:
    """Says, once per change, what stands in the way: Redis away, no worker, a model that loads."""

    producer: Producer
    asked: float = -1e9
    said: str = ""

    def look(self) -> None:
        if time.monotonic() - self.asked < ASK_FOR_WORKERS_S:
            return
        self.asked = time.monotonic()
        try:
            workers = self.producer.workers()
        except RedisUnreachable as error:
            self.tell(error)
            return
        failed = [worker for worker in workers if worker.state == FAILED]
        if any(worker.state == READY for worker in workers):
            self._say("" if not self.said else "a worker is ready")
        elif failed:
            self._say(f"worker {failed[0].name} cannot start: {failed[0].get('reason')}")
        elif workers:
            self._say(f"worker {workers[0].name} is loading {workers[0].get('model') or 'its model'} …")
        else:
            self._say(
                "no worker is alive: start one with `celery -A worker worker`. "
                "Waiting for it; Ctrl-C leaves, the job stays."
            )

    def tell(self, error: RedisUnreachable) -> None:
        """Redis is away, or refuses what is to be sent; said once, however its words differ."""
        self._say(f"{error} Waiting for it; Ctrl-C leaves.", about="Redis")

    def _say(self, text: str, about: str = "") -> None:
        """Say something else than the last time; with `about`, something about something else."""
        if text and (about or text) != self.said:
            say(text)
        self.said = about or text


def search(
    producer: Producer, paths: Sequence[str], tell: Callable[[Note, str], None] = lambda note, path: None
) -> Search:
    """The posters below `paths`, with the catalogue's ids; says what is odd about the catalogue as a whole.

    Raises:
        ConfigurationError: a path lies outside the posters root, or the catalogue cannot be read.
    """
    settings = producer.settings
    catalogue = read_catalogue(settings.catalogue)
    look_at_catalogue(settings, catalogue)
    return Search(settings.root, paths, catalogue, tell)


def look_at_catalogue(settings: Settings, catalogue: Catalogue) -> None:
    """Say what is odd about the catalogue before its posters fail one by one."""
    if settings.catalogue and "catalogue" in settings.model_fields_set and not settings.catalogue.is_file():
        say(f"there is no catalogue {settings.catalogue}; every poster gets its path as its id")
    elif not catalogue.belongs_to(settings.root):
        say(
            f"none of the {len(catalogue.entries)} posters that {catalogue.path} names lies under {settings.root}: "
            "if it is another folder's, set POSTERS_CATALOGUE to the right one, or to `none`"
        )


def summarise(found: Search, settings: Settings) -> None:
    """Say once, with numbers, what a search noticed beside posters."""
    counts, name = found.counts, settings.catalogue
    if problems := len(found.catalogue.problems):
        say(f"{problems} of the entries of {name} cannot be used; each counts as failed and says why")
    if missing := counts[Note.NOT_THERE]:
        say(f"{missing} poster(s) that {name} names are not there; each counts as failed")
    if unknown := counts[Note.NO_ENTRY]:
        say(f"{unknown} file(s) are in no entry of {name} and have their paths as ids; `index --dry-run` lists them")
    if unlisted := counts[Note.UNLISTED]:
        say(f"{unlisted} folder(s) could not be listed; what lies in them was not looked at")


def index(producer: Producer, paths: Sequence[str], *, force: bool, detach: bool, quiet: bool) -> tuple[Job, Progress]:
    """Send what is below `paths` and, unless `detach`, wait for it; as send_all."""
    # the search first, so that a wrong path leaves no empty job behind
    return send_all(producer, search(producer, paths), force=force, detach=detach, quiet=quiet)


def send_all(
    producer: Producer,
    found: Search,
    *,
    force: bool = False,
    verify: bool = False,
    detach: bool = False,
    quiet: bool = False,
) -> tuple[Job, Progress]:
    """Send what a search finds and, unless `detach`, wait for it.

    Keeps at most settings.window batches in flight. The first Ctrl-C sends REST_BATCHES more without
    waiting, so that the job goes on by itself. Where Redis came back without what it had confirmed, it looks
    again, as a new job, for what is missing.

    Args:
        producer: whose queue, and whose store.
        found: the posters.
        force: embed even what the store already holds.
        verify: let the worker compare contents, and trust no modification time.
        detach: send everything and return.
        quiet: show no bar.

    Raises:
        KeyboardInterrupt: with the job as its argument, after that was sent.
    """
    while True:
        try:
            return _send_all(producer, found, force=force, verify=verify, detach=detach, quiet=quiet)
        except LedgerSetBack as error:
            if detach:
                raise
            say(f"{error}. Looking again for what is missing …")
            found.begin_again()


def _send_all(
    producer: Producer, found: Search, *, force: bool, verify: bool, detach: bool, quiet: bool
) -> tuple[Job, Progress]:
    current = Currency(producer, say)
    job = producer.begin()
    feed = producer.feed(
        job, found, force=force, verify=verify, is_current=nobody if verify else current, patient=not detach
    )
    try:
        if detach:
            for _ in feed:
                pass
            progress = job.progress()
        else:
            with tqdm(desc="posters", unit="poster", file=sys.stderr, disable=True if quiet else None) as bar:
                bar.smoothing = 0.1
                _count_in_background(found, bar)
                progress = follow(producer, job, feed, bar)
    finally:
        current.close()
    summarise(found, producer.settings)
    return job, progress


def follow(producer: Producer, job: Job, feed: Iterator[int], bar: tqdm[Any], *, rest: bool = True) -> Progress:
    """Send batch after batch within the window, and wait until nothing of the job is open.

    Args:
        producer: whose queue.
        job: what the batches belong to.
        feed: sends a batch whenever it is asked for the next number.
        bar: shows how far it is.
        rest: what to do at Ctrl-C: send the rest without waiting, or leave the job at what was sent.

    Raises:
        KeyboardInterrupt: with the job's id.
    """
    obstacles = Obstacles(producer)
    producer.on_wait = obstacles.tell
    sent = False
    try:
        while True:
            obstacles.look()
            progress = patiently(job.progress, obstacles)
            _show(bar, progress)
            if sent and progress.at_rest:
                return progress
            patiently(producer.repair_if_due, obstacles)
            if not sent and progress.open_batches < producer.settings.window:
                sent = _send(feed, producer.settings.window - progress.open_batches)
            else:
                if not sent:
                    patiently(lambda: producer.ledger.still_sending(job.id), obstacles)
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        if not sent and not rest:
            with suppress(RedisUnreachable):  # then the ledger finds out by itself that nobody sends any more
                producer.ledger.sent(job.id)
        elif not sent:
            say("sending the rest, so that the job goes on by itself (Ctrl-C again to leave it at what was sent) …")
            if not _send(feed, REST_BATCHES):
                producer.ledger.sent(job.id)
                say("that is more than Redis should hold at once: run the same command again for what is left")
        raise KeyboardInterrupt(job.id) from None


def nobody(posters: Sequence[Poster]) -> set[str]:
    """The ids of no poster: every one is sent."""
    return set()


def _send(feed: Iterator[int], room: int) -> bool:
    """Send up to `room` batches; True when there are no more."""
    return any(next(feed, None) is None for _ in range(room))


def _show(bar: tqdm[Any], progress: Progress) -> None:
    bar.n = progress.settled + progress.doing
    if bar.total is not None:
        bar.total = max(bar.total, bar.n)  # entries without a file were not counted
    if progress.failed:
        bar.set_postfix(failed=progress.failed, refresh=False)
    bar.refresh()


def _count_in_background(found: Search, bar: tqdm[Any]) -> None:
    """Give the bar its total once it is known; until then it shows count and rate, and no time left."""
    if bar.disable:
        return

    def count() -> None:
        bar.total = sum(1 for _ in found.files())

    threading.Thread(target=count, name="count", daemon=True).start()


def patiently(call: Callable[[], Item], obstacles: Obstacles) -> Item:
    """Call until Redis answers, saying once that it does not."""
    while True:
        try:
            return call()
        except RedisUnreachable:
            obstacles.look()
            time.sleep(RETRY_S)
