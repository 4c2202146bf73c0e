"""From a batch of paths to rows in the store: decode ahead in threads, embed in chunks, store behind.

    decode threads            this thread               store thread
    read → digest → decode →  chunk → submit → result → put

The next chunk is on the device before the result of the one before is asked for, so that the device goes
from one to the other without a pause. The embedder, the store and the clock are arguments, so that the
pipeline runs without GPU and Redis.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from worker.budget import MemoryBudget
from worker.embedder import Embedder, Pending
from worker.errors import UnreadablePoster
from worker.files import FileContent, read_file
from worker.images import Limits, decode
from worker.messages import EmbedBatch, Poster
from worker.progress import Failure, Outcome
from worker.room import keep_rows, room_for
from worker.threads import one_core_threads, usable_cores
from worker.timings import Timings
from worker.vectors import Row, Vectors, VectorStore

CHUNKS_AHEAD = 3  # one decoded, one being decoded, one for those that take longer
CHUNKS_ON_DEVICE = 2  # one computed, one that has arrived
FIRST_CHUNK_SHARE = 8  # a batch begins with an eighth of a chunk, so that the device starts sooner
PUTS_BEHIND = 2  # chunks that may wait for the store before the device has to


class _Read(NamedTuple):
    """A poster that was read.

    Attributes:
        row: what is known of it.
        known: its vector, if the store knew the content already.
        unchanged: the store has this content under this id.
        twin: another poster of the batch has the same content; its pixels were not decoded.
    """

    row: Row
    known: Vectors | None = None
    unchanged: bool = False
    twin: bool = False


@dataclass
class _Run:
    """What the threads have to know of the batch that runs: its rows as they were, and contents as they are met."""

    batch: EmbedBatch
    before: Mapping[str, Row]
    first: dict[str, str] | None  # digest → id of the poster that is decoded for all that have it

    def is_twin(self, row: Row) -> bool:
        """True when another poster of this batch was met before with the same content."""
        return self.first is not None and self.first.setdefault(row.digest, row.id) != row.id


@dataclass
class _Chunk:
    posters: Sequence[Poster]
    pixels: torch.Tensor  # uint8 (n, 3, H, W); row i belongs to posters[i]
    reads: list[Future[_Read]]


@dataclass
class _Submitted:
    """A chunk whose good posters are on the device; `fresh` are their places in the chunk, and their rows."""

    chunk: _Chunk
    settled: int  # its posters but for the twins, which come at the end of the batch
    fresh: list[tuple[int, Row]]
    pending: Pending | None
    rows: list[Row]  # of posters whose content the store knew already, with their vectors
    vectors: list[Vectors]


@dataclass
class _Tally:
    embedded: int = 0
    reused: int = 0
    unchanged: int = 0  # by content; what is unchanged by size and time is not even read
    twins: list[Poster] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    vectors: dict[str, bytes] = field(default_factory=dict)


class Pipeline:
    """Runs batches, one at a time; keeps its threads between them."""

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore,
        *,
        root: Path,
        threads: int = 0,
        look_ahead_images: int = 0,
        max_file_bytes: int = 100_000_000,
        decode_memory_bytes: int = 1 << 30,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`threads` 0: one per core that this process may use; `look_ahead_images` 0: three chunks."""
        self.embedder, self.store, self.root = embedder, store, root
        self.timings = Timings()
        self._max_file_bytes, self._limits, self._clock = max_file_bytes, limits or Limits(), clock
        self._look_ahead = look_ahead_images
        self._budget = MemoryBudget(decode_memory_bytes)
        self._readers = one_core_threads(threads or usable_cores(), "decode")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")

    def run(
        self,
        batch: EmbedBatch,
        progress: Callable[[int], None] = lambda done: None,
        *,
        begun_before: bool = False,
    ) -> Outcome:
        """Embed what is not in the store yet, store it, and say what became of each poster.

        Args:
            batch: whose posters to embed; each ends in exactly one part of the outcome.
            progress: called with the number of posters done after every chunk.
            begun_before: an earlier attempt may have stored a part; that part counts as embedded.

        Raises:
            StoreError, OSError: the store or the posters root is out of reach. Chunks that were
                stored stay stored; running the batch again does only the rest.
            DeviceLost: the accelerator needs a fresh process.
        """
        self.timings, began = Timings(), self._clock()
        space = self.embedder.space
        if batch.space not in (None, space.id):
            return Outcome(failures=tuple(_of_another_space(batch, space.id)))
        todo = list(batch.posters)
        rows = {} if batch.force else self.store.rows(space.id, [poster.id for poster in todo])
        if not batch.force and not batch.verify:
            todo = [poster for poster in todo if not _is_current(poster, rows.get(poster.id))]
        unchanged = len(batch.posters) - len(todo)
        tally = _Tally()
        if batch.reply and unchanged:
            ids = {poster.id for poster in batch.posters} - {poster.id for poster in todo}
            stored = self.store.get(space.id, sorted(ids))
            tally.vectors.update((name, vector.astype("<f4").tobytes()) for name, vector in stored.items())
        run = _Run(batch, rows, None if batch.force else {})
        self._run_chunks(todo, run, tally, lambda done: progress(unchanged + done))
        if tally.twins:  # now the store knows their content, or each fails as the first of them did
            settled = unchanged + len(todo) - len(tally.twins)
            self._run_chunks(tally.twins, _Run(batch, rows, None), tally, lambda done: progress(settled + done))
        self.timings.total, self.timings.images = self._clock() - began, tally.embedded
        if begun_before:
            tally.embedded, unchanged = tally.embedded + unchanged, 0
        unchanged += tally.unchanged
        return Outcome(tally.embedded, tally.reused, unchanged, tuple(tally.failures), tally.vectors)

    def embed_one(self, data: bytes, name: str = "the image") -> Vectors:
        """Embed an image that is no poster: float32 (dimension,), unit length; nothing is stored.

        Raises:
            UnreadablePoster: it has no vector; says why.
            DeviceLost: the accelerator needs a fresh process.
        """
        pixels = decode(data, self.embedder.geometry, name=name, limits=self._limits, budget=self._budget)
        result = self.embedder.submit(pixels.unsqueeze(0)).result()
        for reason in result.failures.values():
            raise UnreadablePoster(name, "internal", reason)
        vector: Vectors = result.vectors[0]
        return vector

    def close(self) -> None:
        """End the threads; the store stays open, it belongs to the caller."""
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def _run_chunks(self, todo: Sequence[Poster], run: _Run, tally: _Tally, progress: Callable[[int], None]) -> None:
        on_device: deque[_Submitted] = deque()
        puts: deque[Future[int]] = deque()
        done = 0
        chunks = self._decode_ahead(todo, run)

        def collect() -> None:
            submitted = on_device.popleft()
            rows, vectors = self._result(submitted, tally)
            if run.batch.reply:
                raw = vectors.astype("<f4")
                tally.vectors.update((row.id, raw[i].tobytes()) for i, row in enumerate(rows))
            puts.append(self._writer.submit(self._put, rows, vectors, submitted.settled))

        try:
            for chunk in chunks:
                on_device.append(self._submit(chunk, tally))
                if len(on_device) >= CHUNKS_ON_DEVICE:
                    collect()
                while puts and (puts[0].done() or len(puts) > PUTS_BEHIND):
                    done += self._wait_for_store(puts.popleft())
                progress(done)
            while on_device:
                collect()
            while puts:
                done += self._wait_for_store(puts.popleft())
            progress(done)
        finally:
            chunks.close()
            for put in puts:
                put.exception()  # nothing of this batch may be written after run has returned

    def _decode_ahead(self, todo: Sequence[Poster], run: _Run) -> Generator[_Chunk, None, None]:
        """Yield chunks in order, every read done, while the next ones are being decoded."""
        waiting: deque[_Chunk] = deque()
        position, size = 0, max(1, self.embedder.chunk // FIRST_CHUNK_SHARE)
        try:
            while position < len(todo) or waiting:
                ahead = sum(len(chunk.posters) for chunk in waiting)
                limit = self._look_ahead or CHUNKS_AHEAD * self.embedder.chunk
                if position < len(todo) and (not waiting or ahead < limit):
                    chunk = self._read_ahead(todo[position : position + size], run)
                    position += len(chunk.posters)
                    size = min(2 * size, self.embedder.chunk)
                    waiting.append(chunk)
                    continue
                chunk = waiting.popleft()
                began = self._clock()
                for read in chunk.reads:
                    read.exception()
                self.timings.waiting_for_decode += self._clock() - began
                yield chunk
        finally:
            for chunk in waiting:
                for read in chunk.reads:
                    read.cancel()

    def _read_ahead(self, posters: Sequence[Poster], run: _Run) -> _Chunk:
        pixels = room_for(len(posters), self.embedder.geometry, self.embedder.device)
        reads = [self._readers.submit(self._read, poster, pixels[row], run) for row, poster in enumerate(posters)]
        return _Chunk(posters, pixels, reads)

    def _read(self, poster: Poster, target: torch.Tensor, run: _Run) -> _Read:
        content: FileContent = read_file(poster.path, root=self.root, max_bytes=self._max_file_bytes)
        row = Row(poster.id, content.digest, content.size, content.mtime_ns)
        before = run.before.get(poster.id)
        if run.batch.verify and row == before and not run.batch.reply:
            return _Read(row, unchanged=True)
        if not run.batch.force:
            known = self.store.by_content(self.embedder.space.id, [content.digest])
            if known:
                same = run.batch.verify and before is not None and before.digest == content.digest
                return _Read(row, known[content.digest], unchanged=same)
            if run.is_twin(row):
                return _Read(row, twin=True)
        geometry, limits = self.embedder.geometry, self._limits
        target.copy_(decode(content.data, geometry, name=poster.path, limits=limits, budget=self._budget))
        return _Read(row)

    def _submit(self, chunk: _Chunk, tally: _Tally) -> _Submitted:
        """Send what was decoded to the device; posters that failed are tallied and left out."""
        twins = len(tally.twins)
        fresh: list[tuple[int, Row]] = []
        rows: list[Row] = []
        vectors: list[Vectors] = []
        for index, (poster, read) in enumerate(zip(chunk.posters, chunk.reads, strict=True)):
            try:
                row, known, unchanged, twin = read.result()
            except UnreadablePoster as error:
                tally.failures.append(Failure(poster.id, poster.path, error.word, error.reason))
                continue
            tally.unchanged += unchanged
            if twin:
                tally.twins.append(poster)
            elif known is not None:  # also a file with a new date only: its row is to say so
                rows.append(row)
                vectors.append(known)
                tally.reused += not unchanged
            elif not unchanged:
                fresh.append((index, row))
        settled = len(chunk.posters) - (len(tally.twins) - twins)
        pending = self.embedder.submit(keep_rows(chunk.pixels, [index for index, _ in fresh])) if fresh else None
        return _Submitted(chunk, settled, fresh, pending, rows, vectors)

    def _result(self, submitted: _Submitted, tally: _Tally) -> tuple[list[Row], Vectors]:
        """Rows and vectors of the chunk, aligned; posters that got no vector are tallied and left out."""
        rows, vectors = submitted.rows, submitted.vectors
        if submitted.pending is not None:
            result = submitted.pending.result()
            self.timings.on_device += result.seconds
            for position, (index, row) in enumerate(submitted.fresh):
                reason = result.failures.get(position)
                if reason is None:
                    rows.append(row)
                    vectors.append(result.vectors[position])
                    tally.embedded += 1
                else:
                    tally.failures.append(Failure(row.id, submitted.chunk.posters[index].path, "internal", reason))
        if not rows:
            return [], np.zeros((0, self.embedder.space.dimension), np.float32)
        return rows, np.stack(vectors)

    def _put(self, rows: Sequence[Row], vectors: Vectors, posters: int) -> int:
        if rows:
            self.store.put(self.embedder.space, rows, vectors, self.embedder.provenance)
        return posters

    def _wait_for_store(self, put: Future[int]) -> int:
        began = self._clock()
        try:
            return put.result()
        finally:
            self.timings.waiting_for_store += self._clock() - began


def _is_current(poster: Poster, row: Row | None) -> bool:
    """True when the stored row describes the file as the producer saw it."""
    return row is not None and poster.size >= 0 and (row.size, row.mtime_ns) == (poster.size, poster.mtime_ns)


def _of_another_space(batch: EmbedBatch, mine: str) -> Iterator[Failure]:
    for poster in batch.posters:
        reason = f"queued for the space {batch.space}, and this worker makes {mine}: run `index` again"
        yield Failure(poster.id, poster.path, "internal", reason)
