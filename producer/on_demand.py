"""Vectors for a waiting caller: from the store, or from a worker, which answers beside the batch that it runs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Final

import numpy as np

from producer.embedding import Space, SpacedVectors, with_space
from producer.errors import EmbedTimeout, StoreError, TextUnavailable
from producer.host import abandon, program, renew_after_fork
from producer.queue.workers import Announcement, common_space, embeds_text, why_no_answer
from producer.requests.client import RequestClient
from producer.requests.codec import IMAGE, TEXT, Request, poster_request
from producer.requests.images import image_bytes
from producer.requests.texts import as_texts, text_bytes, text_name
from producer.vectors import store_exists

if TYPE_CHECKING:
    from producer.queue.messages import Poster
    from producer.queue_client import QueueClient
    from producer.vectors.base import VectorStore


READY_POLL_S: Final = 0.05  # between two checks whether a worker has loaded its model


class OnDemand:
    """Producer.embed, Producer.embed_image and Producer.embed_text. Threads may share an instance."""

    def __init__(self, queue: QueueClient) -> None:
        """`queue` is the caller's to close."""
        self._queue = queue
        settings = queue.settings
        self._requests = RequestClient(settings.redis_url, settings.max_requests, queue.workers)
        self._store: VectorStore | None = None
        self._opening = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: open a store of its own when one is needed."""
        abandon(self._store)
        self._store, self._opening = None, threading.Lock()

    def embed(self, poster: Poster, timeout: float | None) -> SpacedVectors:
        """Like Producer.embed."""
        ends = deadline(timeout)
        stored = self.stored(poster)
        if stored is not None:
            return stored
        space = self._ready_space(ends, poster.path)
        return self._ask([(poster_request(poster, space.id), poster.path)], ends, timeout)[0]

    def embed_image(self, image: object, timeout: float | None, name: str) -> SpacedVectors:
        """Like Producer.embed_image."""
        ends = deadline(timeout)
        data, name = image_bytes(image, name)
        return self._ask([(Request(IMAGE, data, self._ready_space(ends, name).id), name)], ends, timeout)[0]

    def embed_text(self, text: object, timeout: float | None) -> SpacedVectors:
        """Like Producer.embed_text."""
        ends = deadline(timeout)
        bodies = text_bodies(text)
        space = self._ready_space(ends, bodies[0][1] if bodies else "no text", TEXT)
        found = self._ask([(Request(TEXT, body, space.id), name) for body, name in bodies], ends, timeout)
        return text_vectors(text, found, space)

    def close(self) -> None:
        """Close connections and store."""
        self._requests.close()
        if self._store is not None:
            self._store.close()

    def _ask(self, requests: Sequence[tuple[Request, str]], ends: float, timeout: float | None) -> list[SpacedVectors]:
        """The answers of workers; each request has the name that errors call it by."""
        found = self._requests.embed_all(requests, ends - time.monotonic())
        if found is None:
            raise timed_out(requests[0][1], timeout, self._queue.workers())
        return found

    def stored(self, poster: Poster) -> SpacedVectors | None:
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

    def _ready_space(self, ends: float, name: str, kind: str = IMAGE) -> Space:
        """Wait for a worker that is ready, until `ends` on the monotonic clock; the space it makes."""
        while (space := ready_space(self._queue.workers(at_least_one=True), kind, name, ends)) is None:
            time.sleep(READY_POLL_S)
        return space


def deadline(timeout: object) -> float:
    """The end of a timeout in seconds on the monotonic clock; None is no limit.

    Raises:
        TypeError: it is no number.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, Real) or math.isnan(timeout):
        raise TypeError(f"timeout must be a number of seconds, or None to wait without limit, not {timeout!r}")
    return time.monotonic() + float(timeout)


def ready_space(workers: Sequence[Announcement], kind: str, name: str, ends: float) -> Space | None:
    """The space that the ready ones among the workers make; None while none is ready.

    Raises:
        EmbedTimeout: none is ready, and it is too late.
        SpaceMismatch: they make more than one.
        TextUnavailable: a text is wanted, and none of them embeds any.
    """
    space = common_space(workers)
    if space is None and time.monotonic() >= ends:
        raise timed_out(name, None, workers)
    if space is not None and kind == TEXT and not any(embeds_text(worker) for worker in workers):
        raise TextUnavailable(
            "no worker embeds text: POSTERS_TEXT is false where they run, or they are of an older version"
        )
    return space


def timed_out(name: str, timeout: float | None, workers: Sequence[Announcement]) -> EmbedTimeout:
    """The error for a vector that did not come in time; None: because no worker was ready."""
    within = "" if timeout is None else f" within {timeout:g} s"
    why = f"{why_no_answer(workers)}; `{program()} doctor` checks everything"
    return EmbedTimeout(f"no vector for {name}{within}: {why}")


def text_bodies(text: object) -> list[tuple[bytes, str]]:
    """UTF-8 of each text, and what errors call it; see texts.py for what they raise."""
    return [(text_bytes(item), text_name(item)) for item in as_texts(text)]


def text_vectors(text: object, vectors: Sequence[SpacedVectors], space: Space) -> SpacedVectors:
    """The vector of one text, (dimension,), or the matrix of several, (n, dimension)."""
    if isinstance(text, str):
        return vectors[0]
    rows = np.stack(list(vectors)) if vectors else np.zeros((0, space.dimension), np.float32)
    return with_space(rows, space.id)
