"""Vectors for a waiting caller: from the store, or from a worker ahead of all bulk work."""

from __future__ import annotations

import math
import threading
import time
from numbers import Real
from typing import TYPE_CHECKING, Final

import numpy as np

from producer.embedding import SpacedVectors, with_space
from producer.errors import EmbedTimeout, SpaceMismatch, StoreError, UnreadablePoster
from producer.host import abandon, program, renew_after_fork
from producer.job import Job
from producer.queue.image_requests import ImageRequests, image_bytes
from producer.queue.keys import REPLY_S
from producer.queue.messages import INTERACTIVE, Poster
from producer.queue.workers import common_space, why_no_answer
from producer.vectors import store_exists

if TYPE_CHECKING:
    from producer.queue_client import QueueClient
    from producer.vectors.base import VectorStore


READY_POLL_S: Final = 0.05  # between two checks whether a worker has loaded its model


class OnDemand:
    """Producer.embed and Producer.embed_image. Threads may share an instance."""

    def __init__(self, queue: QueueClient) -> None:
        """`queue` is the caller's to close."""
        self._queue = queue
        self._requests = ImageRequests(queue.settings.redis_url)
        self._store: VectorStore | None = None
        self._opening = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: open a store of its own when one is needed."""
        abandon(self._store)
        self._store, self._opening = None, threading.Lock()

    def embed(self, poster: Poster, timeout: float | None) -> SpacedVectors:
        """Like Producer.embed."""
        deadline = _deadline(timeout)
        stored = self._stored(poster)
        if stored is not None:
            return stored
        queue, space = self._queue, self._ready_space(deadline, poster.path)
        job = Job(queue, queue.create_job(keep_s=REPLY_S), is_own=True)
        queue.feed_all(job, [poster], lane=INTERACTIVE, reply=True, space=space)
        progress = job.wait(max(0.0, deadline - time.monotonic()))
        raw = queue.job_store.vectors(job.id, [poster.id]).get(poster.id)
        if raw is not None:
            return with_space(np.frombuffer(raw, "<f4").astype(np.float32), space)
        for failure in job.failures():
            now = queue.space() if failure.word == "internal" else None
            if now is not None and now.id != space:
                raise SpaceMismatch(f"{failure.path}: {failure.reason}")
            raise UnreadablePoster(failure.path, failure.word, failure.reason)
        job.cancel()
        state = f"job {job.id} is {progress.state}"
        raise EmbedTimeout(f"no vector for {poster.path} within {timeout:g} s ({state}): {self._why()}")

    def embed_image(self, image: object, timeout: float | None, name: str) -> SpacedVectors:
        """Like Producer.embed_image."""
        deadline = _deadline(timeout)
        data, name = image_bytes(image, name)
        self._ready_space(deadline, name)
        token = self._requests.put(data, max(0.1, deadline - time.monotonic()), name)
        self._queue.send_query(token)
        answer = self._requests.wait(token, deadline - time.monotonic(), name)
        if answer is None:
            raise EmbedTimeout(f"no vector for {name} within {timeout:g} s: {self._why()}")
        return with_space(np.frombuffer(answer.vector, "<f4").astype(np.float32), answer.space)

    def close(self) -> None:
        """Close connections and store."""
        self._requests.close()
        if self._store is not None:
            self._store.close()

    def _stored(self, poster: Poster) -> SpacedVectors | None:
        """The stored vector of an unchanged poster; None where there is none, or the store is unreachable.

        Of the space that the workers make, or, while no worker is ready, of the store's current one.
        """
        made = common_space(self._queue.workers())
        try:
            store = self._visible_store()
            space = (made.id if made else store.current()) if store else None
            if store is None or space is None:
                return None
            row = store.rows(space, [poster.id]).get(poster.id)
            if row is None or not row.matches(poster.size, poster.mtime_ns):
                return None
            vector = store.get(space, [poster.id]).get(poster.id)
        except StoreError:  # the worker may be able to read it
            return None
        return None if vector is None else with_space(vector, space)

    def _visible_store(self) -> VectorStore | None:
        """The store, opened once; None where it is a file that does not exist (yet): opening would create it."""
        if not store_exists(self._queue.settings.store):
            return None
        with self._opening:
            self._store = self._store or self._queue.store()
            return self._store

    def _ready_space(self, deadline: float, name: str) -> str:
        """Wait for a worker that is ready, until `deadline` on the monotonic clock; the id of the space it makes."""
        while True:
            space = common_space(self._queue.workers(at_least_one=True))
            if space is not None:
                return space.id
            if time.monotonic() >= deadline:
                raise EmbedTimeout(f"no vector for {name}: {self._why()}")
            time.sleep(READY_POLL_S)

    def _why(self) -> str:
        return f"{why_no_answer(self._queue.workers())}; `{program()} doctor` checks everything"


def _deadline(timeout: object) -> float:
    """The end of a timeout in seconds on the monotonic clock; None is no limit.

    Raises:
        TypeError: it is no number.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, Real) or math.isnan(timeout):
        raise TypeError(f"timeout must be a number of seconds, or None to wait without limit, not {timeout!r}")
    return time.monotonic() + float(timeout)
