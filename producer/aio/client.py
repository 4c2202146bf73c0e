"""AsyncProducer: enqueue posters, follow jobs, embed images and texts, in an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar, overload

from producer.aio.job import POLL_S, AsyncJob
from producer.aio.requests import AsyncRequests
from producer.client import Image, Producer
from producer.embedding import Space, SpacedVectors
from producer.errors import PosterError
from producer.host import renew_after_fork
from producer.job import Job
from producer.on_demand import deadline, ready_space, text_bodies, text_vectors, timed_out
from producer.queue.messages import BULK
from producer.queue.workers import Announcement
from producer.queue_client import some_worker
from producer.requests.codec import AT_ONCE, IMAGE, TEXT, Request, poster_request
from producer.requests.images import image_bytes
from producer.settings import Settings

FILE_THREADS: Final = 4  # for the whole client: files, the store and Celery's sending know no event loop
Result = TypeVar("Result")


def _until(cancelled: threading.Event, paths: Iterable[str | Path]) -> Iterator[str | Path]:
    """The paths, until `cancelled` is set."""
    for path in paths:
        if cancelled.is_set():
            raise _Cancelled
        yield path


class _Cancelled(Exception):
    """Ends an `enqueue` in its thread."""


class AsyncProducer:
    """Producer for asyncio: the same calls, arguments and errors, awaited.

    No call holds a thread while it waits: an answer is awaited by a blocking read of Redis, a job's end by a look four
    times a second. Four threads, which all calls share, read files and the store and send batches. A cancelled call
    withdraws what it has put into Redis.

    One instance may be kept for the life of a backend, by any number of event loops, one after the other or side by
    side, and shared with forked processes. ``async with`` closes it.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: from config.json and the environment. Connects on first use; needs no running loop."""
        self._producer = Producer(settings)
        self.settings = self._producer.settings
        self._requests = AsyncRequests(self.settings.redis_url, self.settings.max_requests)
        self._threads: ThreadPoolExecutor | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: threads of its own."""
        self._threads = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def enqueue(self, paths: Iterable[str | Path], *, lane: str = BULK, force: bool = False) -> AsyncJob:
        """Queue posters and return at once; see Producer.enqueue, whose arguments and errors it has.

        `paths` is read in a thread. When the call is cancelled, what was queued is withdrawn, as by AsyncJob.cancel.
        """
        cancelled = threading.Event()
        is_list = not isinstance(paths, str | bytes | os.PathLike)  # otherwise Producer.enqueue refuses it
        given = _until(cancelled, paths) if is_list else paths
        queued = asyncio.ensure_future(self._in_thread(partial(self._producer.enqueue, given, lane=lane, force=force)))
        try:
            job = await asyncio.shield(queued)
        except asyncio.CancelledError:
            cancelled.set()
            with suppress(_Cancelled, PosterError):
                await self._in_thread((await asyncio.shield(queued)).cancel)
            raise
        return self._followed(job)

    async def embed(self, path: str | Path, timeout: float | None = 5.0) -> SpacedVectors:
        """Embed one poster: see Producer.embed."""
        ends = deadline(timeout)
        poster = await self._in_thread(self._producer.poster, path)
        stored = await self._in_thread(self._producer.on_demand.stored, poster)
        if stored is not None:
            return stored
        space = await self._ready_space(ends, poster.path)
        return await self._ask(poster_request(poster, space.id), ends, timeout, poster.path)

    async def embed_image(self, image: Image, timeout: float | None = 5.0, name: str = "") -> SpacedVectors:
        """Embed an image that is not a poster, such as an upload: see Producer.embed_image."""
        ends = deadline(timeout)
        is_data = isinstance(image, bytes | bytearray | memoryview)
        read = partial(image_bytes, image, name)
        data, name = read() if is_data else await self._in_thread(read)
        return await self._ask(Request(IMAGE, data, (await self._ready_space(ends, name)).id), ends, timeout, name)

    @overload
    async def embed_text(self, text: str, timeout: float | None = 5.0) -> SpacedVectors: ...
    @overload
    async def embed_text(self, text: Iterable[str], timeout: float | None = 5.0) -> SpacedVectors: ...
    async def embed_text(self, text: str | Iterable[str], timeout: float | None = 5.0) -> SpacedVectors:
        """Embed a text, or several together, in the space of the images: see Producer.embed_text."""
        ends = deadline(timeout)
        bodies = text_bodies(text)
        space = await self._ready_space(ends, bodies[0][1] if bodies else "no text", TEXT)
        few = asyncio.Semaphore(AT_ONCE)

        async def embed_one(body: bytes, name: str) -> SpacedVectors:
            async with few:
                return await self._ask(Request(TEXT, body, space.id), ends, timeout, name)

        tasks = [asyncio.ensure_future(embed_one(*each)) for each in bodies]
        try:
            found = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return text_vectors(text, found, space)

    async def job(self, job_id: str) -> AsyncJob:
        """A job by its id, or the newest one by ``last``; JobUnknown shows on first use."""
        return self._followed(await self._in_thread(self._producer.job, job_id))

    async def workers(self) -> list[Announcement]:
        """The workers that are alive."""
        return await self._requests.workers()

    async def close(self) -> None:
        """Close the connections and end the threads."""
        await self._requests.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None
        self._producer.close()

    def _followed(self, job: Job) -> AsyncJob:
        return AsyncJob(job, self._requests, self._in_thread)

    async def _ask(self, request: Request, ends: float, timeout: float | None, name: str) -> SpacedVectors:
        """A worker's answer; `name` is what errors call the image, text or poster."""
        vector = await self._requests.embed(request, ends - time.monotonic(), name)
        if vector is None:
            raise timed_out(name, timeout, await self.workers())
        return vector

    async def _ready_space(self, ends: float, name: str, kind: str = IMAGE) -> Space:
        """Wait for a worker that is ready, until `ends` on the monotonic clock; the space it makes."""
        while True:
            workers = some_worker(await self.workers(), self.settings)
            if (space := ready_space(workers, kind, name, ends)) is not None:
                return space
            await asyncio.sleep(POLL_S)

    async def _in_thread(self, call: Callable[..., Result], *arguments: Any) -> Result:
        self._threads = self._threads or ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="posters")
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
