"""`index`: feed a collection to the queue within a window, show how far it is, end with the ledger."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from producer.catalogue import find_posters, read_catalogue
from producer.client import RETRY_S, Job, Producer
from worker.announcement import FAILED, READY
from worker.errors import LedgerSetBack, RedisUnreachable, StoreError
from worker.messages import Poster
from worker.progress import Failure, Progress
from worker.settings import Settings

LOOK_S: Final = 0.2
ASK_FOR_WORKERS_S: Final = 2.0
REST_BATCHES: Final = 256  # that an interrupted `index` may leave in Redis: 20 MB, 65,536 posters


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
class _Watch:
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
        """Redis is away, or refuses what is to be sent."""
        self._say(f"{error} Waiting for it; Ctrl-C leaves.")

    def _say(self, text: str) -> None:
        if text and text != self.said:
            say(text)
        self.said = text


def find(producer: Producer, paths: Sequence[str]) -> Iterator[Poster | Failure]:
    """The posters below `paths`, with the catalogue's ids."""
    settings = producer.settings
    return find_posters(settings.root, paths, read_catalogue(settings.catalogue))


def look_at_catalogue(settings: Settings) -> None:
    """Say what is odd about the catalogue before its posters fail one by one."""
    catalogue = read_catalogue(settings.catalogue)
    if settings.catalogue and "catalogue" in settings.model_fields_set and not settings.catalogue.is_file():
        say(f"there is no catalogue {settings.catalogue}; every poster gets its path as its id")
    elif not catalogue.belongs_to(settings.root):
        say(
            f"none of the {len(catalogue.entries)} posters that {catalogue.path} names lies under {settings.root}: "
            "if it is another folder's, set POSTERS_CATALOGUE to the right one, or to `none`"
        )


def currency(producer: Producer) -> Callable[[Sequence[Poster]], set[str]]:
    """A function that tells which posters' vectors are up to date, by size and modification time.

    Where the store cannot be seen from here, or no worker is ready to tell its space, it says of none
    that it is: the worker, which knows both, looks again. The store's current space would be a guess,
    and wrong on the day on which the model was changed.
    """
    if producer.settings.store.startswith("sqlite:"):
        path = Path(producer.settings.store.removeprefix("sqlite:"))
        if not path.exists():
            return lambda posters: set()
    try:
        space = producer.space()
        store = producer.store()
    except (StoreError, RedisUnreachable) as error:
        say(f"cannot look into the store from here, the worker will: {error}")
        return lambda posters: set()
    if space is None:
        return lambda posters: set()
    space_id = space.id

    def current(posters: Sequence[Poster]) -> set[str]:
        rows = store.rows(space_id, [poster.id for poster in posters])
        return {
            poster.id
            for poster in posters
            if (row := rows.get(poster.id)) and (row.size, row.mtime_ns) == (poster.size, poster.mtime_ns)
        }

    return current


def index(producer: Producer, paths: Sequence[str], *, force: bool, detach: bool, quiet: bool) -> tuple[Job, Progress]:
    """Send what is below `paths` and, unless `detach`, wait for it.

    Keeps at most settings.window batches in flight. The first Ctrl-C sends REST_BATCHES more without
    waiting, so that the job goes on by itself. Where Redis came back without what it had confirmed, it looks
    again, as a new job, for what is missing.

    Raises:
        KeyboardInterrupt: with the job as its argument, after that was sent.
    """
    while True:
        try:
            return _index(producer, paths, force=force, detach=detach, quiet=quiet)
        except LedgerSetBack as error:
            if detach:
                raise
            say(f"{error}. Looking again for what is missing …")


def _index(producer: Producer, paths: Sequence[str], *, force: bool, detach: bool, quiet: bool) -> tuple[Job, Progress]:
    posters = find(producer, paths)  # first, so that a wrong path leaves no empty job behind
    look_at_catalogue(producer.settings)
    watch = _Watch(producer)
    current = currency(producer)
    producer.on_wait = watch.tell
    job = producer.begin()
    feed = producer.feed(job, posters, force=force, is_current=current, patient=not detach)
    if detach:
        for _ in feed:
            pass
        return job, job.progress()
    bar = tqdm(desc="posters", unit="poster", file=sys.stderr, disable=True if quiet else None, smoothing=0.1)
    _count_in_background(producer, paths, bar)
    sent = False
    try:
        with bar:
            while True:
                watch.look()
                progress = _patiently(job.progress, watch)
                _show(bar, progress)
                if sent and progress.at_rest:
                    return job, progress
                _patiently(producer.repair_if_due, watch)
                if not sent and progress.open_batches < producer.settings.window:
                    room = producer.settings.window - progress.open_batches
                    sent = _send(feed, room)
                else:
                    if not sent:
                        _patiently(lambda: producer.ledger.still_sending(job.id), watch)
                    time.sleep(LOOK_S)
    except KeyboardInterrupt:
        if not sent:
            say("sending the rest, so that the job goes on by itself (Ctrl-C again to leave it at what was sent) …")
            if not _send(feed, REST_BATCHES):
                producer.ledger.sent(job.id)
                say("that is more than Redis should hold at once: run the same command again for what is left")
        raise KeyboardInterrupt(job.id) from None


def _send(feed: Iterator[int], room: int) -> bool:
    """Send up to `room` batches; True when there are no more."""
    return any(next(feed, None) is None for _ in range(room))


def _show(bar: tqdm[Any], progress: Progress) -> None:
    bar.n = progress.settled + progress.doing
    if progress.failed:
        bar.set_postfix(failed=progress.failed, refresh=False)
    bar.refresh()


def _count_in_background(producer: Producer, paths: Sequence[str], bar: tqdm[Any]) -> None:
    """Give the bar its total once it is known; until then it shows count and rate, and no time left."""
    if bar.disable:
        return

    def count() -> None:
        bar.total = _length(find(producer, paths))

    threading.Thread(target=count, name="count", daemon=True).start()


def _length(items: Iterable[object]) -> int:
    return sum(1 for _ in items)


def _patiently(call: Callable[[], Any], watch: _Watch) -> Any:
    while True:
        try:
            return call()
        except RedisUnreachable:
            watch.look()
            time.sleep(RETRY_S)
