"""What the served interface holds while it runs: clients, the index in memory, small pictures, jobs that it sends."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from producer.client import Producer
from producer.collection.catalogue import Catalogue
from producer.collection.resolve import PosterResolver
from producer.embedding import Space
from producer.files import file_stamp
from producer.job import Job
from producer.maintenance.spaces import find_space, store_for_reading
from producer.map.maker import MapMaker
from producer.map.poster_map import PosterMap
from producer.output import notify
from producer.report.pages import poster_file
from producer.report.thumbnails import File, small_picture
from producer.search.index import Index
from producer.settings import Settings, load_settings
from producer.vectors.base import VectorStore
from producer.web.problems import busy, not_found

if TYPE_CHECKING:
    from producer.search.duplicates import Duplicates

PICTURE_CACHE_BYTES: Final = 64_000_000  # about 3,000 pictures
WIDTHS: Final = (160, 320, 640, 1280)  # a picture is made in one of them, so that the cache is not filled with others
# Jobs that are sent from here, or wait for workers, at once. Each has a thread, which sleeps nearly all of the time. As
# many as a person begins while bulk work is paused.
SENDERS_MOST: Final = 32
END_S: Final = 3.0  # for their last words to Redis, when the server ends
BEGIN_S: Final = 60.0  # for a job to begin: opening the catalogue, and reaching Redis
# Names of routes whose addresses are looked up: no endpoint of the surrounding application is called so.
JOBS_ROUTE: Final = "list_poster_jobs"
JOB_ROUTE: Final = "read_poster_job"
logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Bounded:
    """Threads for one kind of work: so many at once, so many more that wait, and `busy` for the rest."""

    def __init__(self, what: str, *, at_once: int, waiting: int, retry_s: int) -> None:
        self._what, self._most, self._retry_s = what, at_once + waiting, retry_s
        self._limiter, self._count = CapacityLimiter(at_once), 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, for the time of the block; in the event loop."""
        if self._count >= self._most:
            raise busy(f"{self._count} {self._what} are answered or wait already", self._retry_s)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    async def run(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Call in a thread, when it is its turn."""
        with self.place():
            return await to_thread.run_sync(call, *arguments, limiter=self._limiter)


class Service:
    """The client side of one installation; threads share it. Nothing is opened before it is needed."""

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: from config.json and the environment."""
        self.settings = settings or load_settings()
        self.producer = Producer(self.settings)
        self.resolver = PosterResolver(self.settings)
        self.requests = Bounded("images", at_once=8, waiting=24, retry_s=2)
        self.pictures = Bounded("pictures", at_once=4, waiting=400, retry_s=2)
        self.comparisons = Bounded("comparisons of all posters", at_once=1, waiting=3, retry_s=30)
        self.streams = Bounded("streams", at_once=1, waiting=63, retry_s=10)
        self.senders = Senders()
        self.maps = MapMaker(self.settings)
        self._index: Index | None = None
        self._opening = threading.Lock()
        self._cache: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._cached_bytes, self._caching = 0, threading.Lock()
        self._duplicates: tuple[tuple[object, ...], Duplicates] | None = None

    def catalogue(self) -> Catalogue:
        """The catalogue as it is now."""
        return self.resolver.catalogue()

    def index(self) -> Index:
        """The vectors in memory, loaded on first use."""
        with self._opening:
            self._index = self._index or Index.open(self.settings)
            return self._index

    def store(self) -> closing[VectorStore]:
        """The store, for the time of a `with`; ConfigurationError where there is none."""
        return closing(store_for_reading(self.settings))

    def find_file(self, poster: str) -> File | None:
        """The file of a poster below the posters root; None where there is none."""
        return poster_file(self.settings, poster, self.catalogue())

    def file(self, poster: str) -> File:
        """The same; a Problem where there is none."""
        found = self.find_file(poster)
        if found is None:
            raise not_found(f"the poster {poster!r} has no file any more", "GET /api/v1/posters lists the posters.")
        return found

    def etag(self, poster: str, width: int) -> str:
        """What names the content of a small picture; changes with the file."""
        root, name = self.file(poster)
        stamp = file_stamp(root / name if root else Path(name))
        return hashlib.sha256(repr((name, stamp, _width(width))).encode()).hexdigest()[:32]

    def picture(self, poster: str, width: int) -> tuple[bytes, str]:
        """A small picture of a poster and its media type; kept in memory until its file changes."""
        key = self.etag(poster, width)
        with self._caching:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        made = small_picture(self.settings, self.file(poster), _width(width))
        if made is None:
            raise not_found(
                f"no picture can be made of {poster!r}", "GET /api/v1/failures says why it failed, if it did."
            )
        with self._caching:
            if key not in self._cache:
                self._cache[key] = made
                self._cached_bytes += len(made[0])
            while self._cached_bytes > PICTURE_CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1][0])
        return made

    def duplicates(self, key: tuple[object, ...], find: Callable[[], Duplicates]) -> Duplicates:
        """What `find` finds, kept for as long as the next callers have the same key; called by one thread at a time."""
        if self._duplicates is None or self._duplicates[0] != key:
            self._duplicates = key, find()
        return self._duplicates[1]

    def map(self) -> tuple[Space, PosterMap | None, bool]:
        """The space in use, its newest map, and whether that is current; ConfigurationError where there is no store."""
        with self.store() as store:
            space = find_space(store).space
            return space, *self.maps.latest(store, space.id)

    def close(self) -> None:
        """Close connections, and release the vectors. A job that is being sent ends with what was sent."""
        if self._index is not None:
            self._index.close()
        self.maps.close()
        self.producer.close()
        self.senders.join()
        self.producer.close()  # the connections by which they said so


class Senders:
    """Threads that send the jobs that were begun here, and wait for their end."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def start(self, send: Callable[[Callable[[Job], object]], object]) -> str | None:
        """Call `send` in a thread; the id of the job that it begins, None where it begins none.

        `send` gets a function to call with the job.

        Raises:
            PosterError: `send` raised it before it began a job.
        """
        with self._lock:
            if len(self._threads) >= SENDERS_MOST:
                count = len(self._threads)
                raise busy(f"{count} jobs are sent from here or wait: cancel some, or resume bulk work if it rests", 30)
            begun: Future[str | None] = Future()
            thread = threading.Thread(target=self._run, args=(send, begun), name="sender", daemon=True)
            self._threads.add(thread)
        thread.start()
        try:
            return begun.result(BEGIN_S)
        except TimeoutError:
            raise busy(
                f"the job has not begun within {BEGIN_S:.0f} s; GET /api/v1/jobs shows it when it has", 30
            ) from None

    def join(self) -> None:
        """Wait for the threads, whose producer was closed, for END_S together."""
        ends = time.monotonic() + END_S
        for thread in list(self._threads):
            thread.join(max(0.0, ends - time.monotonic()))

    def _run(self, send: Callable[[Callable[[Job], object]], object], begun: Future[str | None]) -> None:
        def on_job(job: Job) -> None:
            if not begun.done():  # another one replaces it where Redis lost it
                begun.set_result(job.id)

        try:
            send(on_job)
            if not begun.done():
                begun.set_result(None)
        except BaseException as error:  # noqa: BLE001 - the caller raises it, or the log has it
            if begun.done():
                notify(f"job {begun.result()} is not sent any further: {error}")
            else:
                begun.set_exception(error)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())


def service_of(request: Request) -> Service:
    """The service of the application that answers."""
    service: Service | None = getattr(request.app.state, "posters", None)
    if service is None:
        raise RuntimeError("give the application the lifespan of producer.web: FastAPI(lifespan=lifespan)")
    return service


def base_of(request: Request) -> str:
    """The path below which the interface is, without a slash at its end; routers may be included under a prefix."""
    return request.url_for(JOBS_ROUTE).path.removesuffix("/api/v1/jobs")


def picture_url(request: Request, poster: str) -> str:
    """The address of a poster's small picture."""
    return f"{base_of(request)}/api/v1/posters/{quote(poster, safe='/')}/picture"


def _width(width: int) -> int:
    return next((step for step in WIDTHS if step >= width), WIDTHS[-1])
