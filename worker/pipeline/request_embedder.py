"""Embeds what callers wait for, beside a running batch: reads requests in threads, then runs one forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from producer.embedding import Vectors
from producer.errors import UnreadablePoster, WrongVectors
from producer.host import usable_cores
from producer.queue.messages import EmbedBatch
from producer.requests.codec import IMAGE, POSTER, Answer, Refusal, Request
from producer.vectors.base import Row, VectorStore
from worker.model.inference import EmbeddedChunk
from worker.model.threads import one_core_threads
from worker.pipeline.buffers import chunk_buffer
from worker.pipeline.pipeline import Pipeline
from worker.pipeline.poster_reader import BatchState

MAX_THREADS: Final = 8  # that decode; more would take the cores from the batch, whose own threads decode as well
MAX_GROUP: Final = 64  # requests in one forward pass at most; decoding more takes longer than it saves


@dataclass
class Prepared:
    """A request that was read.

    Attributes:
        pixels: uint8 (3, height, width), to be embedded; None where `vector` is known.
        vector: float32 (dimension,), stored for the same content.
        row: of a poster, to be stored.
        seen: the rows that the store had before.
        core_s: seconds that reading it took of one core.
    """

    pixels: torch.Tensor | None = None
    vector: Vectors | None = None
    row: Row | None = None
    seen: Mapping[str, Row] = field(default_factory=dict)
    core_s: float = 0.0


class RequestEmbedder:
    """Answers the requests of one list. One thread calls `embed`; `prepare` is for its threads."""

    def __init__(self, pipeline: Pipeline, store: VectorStore) -> None:
        """Start the threads; reader, device and store are those of the batches."""
        self.share, self._embedder, self._reader = pipeline.share, pipeline.embedder, pipeline.reader
        self._check = pipeline.check
        self._store = store
        self._cores = usable_cores()
        self._threads: ThreadPoolExecutor = one_core_threads(min(self._cores, MAX_THREADS), "request")
        self._prepare: dict[str, Callable[[Request], Prepared]] = {IMAGE: self._read_image, POSTER: self._read_poster}

    @property
    def space(self) -> str:
        """Id of the space of its vectors."""
        return self._embedder.space.id

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of requests that it answers."""
        return tuple(self._prepare)

    @property
    def limit(self) -> int:
        """Most requests in one forward pass."""
        return min(self._embedder.chunk, MAX_GROUP)

    def submit(self, call: Callable[[], Prepared | Refusal]) -> Future[Prepared | Refusal]:
        """Call in a thread in which torch uses one core."""
        return self._threads.submit(call)

    def prepare(self, request: Request) -> Prepared:
        """Read and decode a request.

        Raises:
            UnreadablePoster: it has no vector; says why.
            BadMessage: its body is not what its kind says.
            StoreError, OSError: of a poster: the store or the posters root is unreachable for now.
        """
        began = time.thread_time()
        prepared = self._prepare[request.kind](request)
        prepared.core_s = time.thread_time() - began
        return prepared

    def embed(self, prepared: Sequence[Prepared]) -> list[Answer | Refusal]:
        """The answers, in order; vectors of posters are stored before.

        Raises:
            StoreError: the store is unreachable for now.
            DeviceLost: the accelerator needs a fresh process.
            WrongVectors: so it does, and what it stored since it was last right was removed from the store.
        """
        if self._embedder.device.type == "cpu":  # where whoever decodes takes the device's time
            self.share.answered(sum(each.core_s for each in prepared) / self._cores)
        found: list[Vectors | str | None] = [each.vector for each in prepared]
        fresh = [(index, each.pixels) for index, each in enumerate(prepared) if each.pixels is not None]
        if fresh:
            chunk = self._run([image for _, image in fresh])
            for row, (index, _) in enumerate(fresh):
                found[index] = chunk.failures.get(row) or chunk.vectors[row]
        self._put([(each, vector) for each, vector in zip(prepared, found, strict=True) if each.row is not None])
        return [self._answer(vector) for vector in found]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, images: Sequence[torch.Tensor]) -> EmbeddedChunk:
        """One forward pass, with the known image behind the others if it is due."""
        canary = self._check.due(len(images))
        rows = [*images, canary.pixels] if canary is not None else images
        pixels = chunk_buffer(len(rows), self._embedder.geometry, self._embedder.device)
        for row, image in enumerate(rows):
            pixels[row].copy_(image)
        try:
            chunk = self._embedder.submit(pixels, urgent=True).result()
            self.share.answered(chunk.seconds)
            if canary is not None:
                self._check.check(canary, chunk.vectors[-1])
        except WrongVectors as error:
            self._check.remove(error)
            raise
        return chunk

    def _read_image(self, request: Request) -> Prepared:
        return Prepared(self._reader.decode(request.body, "the image"))

    def _read_poster(self, request: Request) -> Prepared:
        """Like a batch of one poster: the same checks, the same reuse of what is stored."""
        poster, geometry = request.poster(), self._embedder.geometry
        stored = self._store.rows(self.space, [poster.id])
        batch = EmbedBatch("", "", (poster,))
        state = BatchState(batch, stored, None, self._reader.root.resolve(), wants_vectors=True)
        pixels = torch.empty((1, 3, geometry.height, geometry.width), dtype=torch.uint8)
        (read,) = self._reader.read([poster], pixels, state)
        if isinstance(read, UnreadablePoster):
            raise read
        if read.vector is None:
            return Prepared(pixels[0], row=read.row, seen=stored)
        return Prepared(vector=read.vector, row=None if read.row == stored.get(poster.id) else read.row, seen=stored)

    def _put(self, found: Sequence[tuple[Prepared, Vectors | str | None]]) -> None:
        """Store the rows of posters that have a vector; a row that others changed meanwhile stays theirs."""
        rows = {
            each.row.id: (each.row, vector) for each, vector in found if each.row and isinstance(vector, np.ndarray)
        }
        if rows:
            self._check.note([each.row for each, _ in found if each.row and each.pixels is not None])
            self._check.note_copies([row for row, _ in rows.values()])
            seen = {name: row for each, _ in found for name, row in each.seen.items()}
            vectors = np.stack([vector for _, vector in rows.values()])
            self._check.put([row for row, _ in rows.values()], vectors, seen)

    def _answer(self, vector: Vectors | str | None) -> Answer | Refusal:
        if isinstance(vector, np.ndarray):
            return Answer(self.space, vector.astype("<f4").tobytes())
        return Refusal("internal", vector or "no vector was made")
