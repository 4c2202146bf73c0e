"""The pipeline of a batch: decode ahead in threads, embed in chunks, store in the background.

    decode threads            this thread               store thread
    read → digest → decode →  chunk → submit → result → put

The next chunk is submitted before the result of the previous one is fetched, so that the device never
idles in between. Embedder, store and clock are arguments, so that tests need neither GPU nor Redis.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import numpy as np

from producer.embedding import Vectors
from producer.errors import StoreUnavailable, UnreadablePoster, WrongVectors
from producer.queue.messages import EmbedBatch, Poster
from producer.queue.progress import Failure, Outcome
from producer.settings import Settings
from producer.vectors.base import Row, VectorStore
from worker.model.inference import Pending
from worker.model.parity import Canary
from worker.pipeline.buffers import keep_rows
from worker.pipeline.device_check import DeviceCheck
from worker.pipeline.device_share import DeviceShare
from worker.pipeline.loader import Chunk, Loader
from worker.pipeline.poster_reader import BatchState, PosterReader, ReadPoster
from worker.pipeline.protocols import Embedder
from worker.pipeline.timings import Timings

CHUNKS_ON_DEVICE = 2  # one being computed, one ready
MAX_PENDING_PUTS = 2  # chunks that may wait for the store before the device has to wait
MAX_ROUNDS = 3  # a poster is embedded again if its row is not in the store at the end of the batch
PosterChunk = Chunk[Poster, ReadPoster | UnreadablePoster]


@dataclass
class _Submitted:
    """A chunk whose new contents are on the device."""

    chunk: PosterChunk
    settled: int  # its posters except duplicates, which are settled at the end of the batch
    fresh: list[tuple[int, Row]]  # position in the chunk and row of each image on the device
    pending: Pending | None
    canary: Canary | None  # the last image on the device, if it is there
    rows: list[Row]  # of posters whose content the store already has, aligned with `vectors`
    vectors: list[Vectors]


class _How(Enum):
    """How a poster got its vector."""

    EMBEDDED = "computed in this batch"
    REUSED = "stored for the same content"
    SAME_CONTENT = "stored before: the file was read, and its content is the same"
    SAME_FILE = "stored before: size and time of the file are the same"


@dataclass
class _Tally:
    """The result of each poster by its id; `digests` are of those that have a vector."""

    how: dict[str, _How] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    duplicates: list[Poster] = field(default_factory=list)

    def stored(self, row: Row, how: _How) -> None:
        self.how[row.id], self.digests[row.id] = how, row.digest

    def failed(self, poster: Poster, word: str, reason: str) -> None:
        self.failures[poster.id] = Failure(poster.id, poster.path, word, reason)

    def forget(self, posters: Iterable[Poster]) -> None:
        for poster in posters:
            for results in (self.how, self.digests, self.failures):
                results.pop(poster.id, None)
        self.duplicates = []


class Pipeline:
    """Runs batches one at a time; keeps its threads between them.

    Attributes:
        share: how the device is shared with requests, which RequestEmbedder answers meanwhile in threads of its own.
        reader: reads and decodes images, also those of requests.
        check: of the device, and what was stored since the last one.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore,
        settings: Settings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start the threads; the settings are those of the images and the posters root."""
        self.embedder, self.store = embedder, store
        self.share, self._clock = DeviceShare(), clock
        self._timings = Timings(), Timings()  # of earlier batches and of this one; together, as other threads read them
        self.check = DeviceCheck(embedder, store)
        self.reader = PosterReader(embedder, store, settings, clock)
        self._loader = Loader(
            embedder.geometry,
            embedder.device,
            lambda: embedder.chunk,
            threads=settings.decode_threads,
            look_ahead_images=settings.look_ahead_images,
            ramp=True,
            clock=clock,
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")

    @property
    def timings(self) -> Timings:
        """Of the current batch, or the last one."""
        return self._timings[1]

    @property
    def all_timings(self) -> Timings:
        """Of all batches so far; in any thread."""
        earlier, current = self._timings
        return earlier.followed_by(current)

    def run(
        self, batch: EmbedBatch, progress: Callable[[int], None] = lambda done: None, *, begun_before: bool = False
    ) -> Outcome:
        """Embed and store the posters that are not in the store yet.

        Args:
            batch: each of its posters is counted in exactly one part of the outcome.
            progress: called after every chunk with the number of posters done.
            begun_before: an earlier attempt may have stored some of the posters; they count as embedded.

        Raises:
            StoreError, OSError: the store or the posters root is unreachable. Stored chunks stay
                stored; running the batch again processes only the rest.
            DeviceLost: the accelerator needs a fresh process.
            WrongVectors: so it does, and what it stored since it was last right was removed from the store.
        """
        self._timings, began = (self.all_timings, Timings()), self._clock()
        space = self.embedder.space
        if batch.space not in (None, space.id):
            reason = f"queued for the space {batch.space}, but this worker uses {space.id}: run `index` again"
            return Outcome(failures=tuple(Failure(p.id, p.path, "internal", reason) for p in batch.posters))
        tally, todo = _Tally(), list(batch.posters)

        def report(done: int) -> None:
            self.timings.total = self._clock() - began
            progress(done)

        with self.share.batch():
            for _ in range(MAX_ROUNDS):
                tally.forget(todo)
                try:
                    self._embed(batch, todo, tally, report)
                except WrongVectors as error:
                    self.check.remove(error)
                    raise
                todo = self._not_stored(batch, tally)
                if not todo:
                    break
            else:
                names = ", ".join(poster.id for poster in todo[:3])
                raise StoreUnavailable(f"{len(todo)} rows keep disappearing from the store, or changing: {names}")
        counts = Counter(tally.how.values())
        self.timings.total = self._clock() - began
        self.timings.for_requests = self.share.requests_s
        unchanged = counts[_How.SAME_FILE] + counts[_How.SAME_CONTENT]
        before = (counts[_How.SAME_FILE] if batch.verify else unchanged) if begun_before else 0
        return Outcome(
            counts[_How.EMBEDDED] + before,
            counts[_How.REUSED],
            unchanged - before,
            tuple(tally.failures.values()),
        )

    def close(self) -> None:
        """End the threads; the store belongs to the caller and stays open."""
        self._loader.close()
        self._writer.shutdown()

    def _embed(self, batch: EmbedBatch, todo: Sequence[Poster], tally: _Tally, progress: Callable[[int], None]) -> None:
        """Embed and store these posters of the batch; all others count as done."""
        space, done = self.embedder.space, len(batch.posters) - len(todo)
        rows = self.store.rows(space.id, [poster.id for poster in todo])
        if not batch.force and not batch.verify:
            current = {p.id: rows[p.id] for p in todo if p.id in rows and rows[p.id].matches(p.size, p.mtime_ns)}
            for row in current.values():
                tally.stored(row, _How.SAME_FILE)
            todo, done = [poster for poster in todo if poster.id not in current], done + len(current)
        state = BatchState(batch, rows, None if batch.force else {}, self.reader.root.resolve())
        self._run_chunks(todo, state, tally, lambda more: progress(done + more))
        if tally.duplicates:  # the store has their content now, or each fails as the first of them did
            done += len(todo) - len(tally.duplicates)
            state = replace(state, first_ids=None)
            self._run_chunks(tally.duplicates, state, tally, lambda more: progress(done + more))

    def _not_stored(self, batch: EmbedBatch, tally: _Tally) -> list[Poster]:
        """The posters that a reader of the store would not find as they are about to be counted.

        Their rows were left alone, because another writer was faster; or the store is another one than when they were
        written, because its file was deleted or replaced.
        """
        found = self.store.rows(self.embedder.space.id, list(tally.digests))
        return [
            poster
            for poster in batch.posters
            if poster.id in tally.digests
            and (poster.id not in found or found[poster.id].digest != tally.digests[poster.id])
        ]

    def _run_chunks(
        self, todo: Sequence[Poster], state: BatchState, tally: _Tally, progress: Callable[[int], None]
    ) -> None:
        on_device: deque[_Submitted] = deque()
        puts: deque[Future[int]] = deque()
        done = 0
        chunks = self._loader.chunks(todo, partial(self.reader.read, state=state))

        def collect() -> None:
            submitted = on_device.popleft()
            rows, vectors = self._result(submitted, tally)
            puts.append(self._writer.submit(self._put, rows, vectors, state, submitted.settled))

        try:
            for chunk in chunks:
                self.timings.waiting_for_decode += chunk.waited_s
                on_device.append(self._submit(chunk, tally))
                if len(on_device) >= CHUNKS_ON_DEVICE:
                    collect()
                while puts and (puts[0].done() or len(puts) > MAX_PENDING_PUTS):
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
                put.exception()  # nothing may be written after run has returned

    def _submit(self, chunk: PosterChunk, tally: _Tally) -> _Submitted:
        """Submit the decoded posters to the device; failed ones are only tallied."""
        duplicates = len(tally.duplicates)
        fresh: list[tuple[int, Row]] = []
        rows: list[Row] = []
        vectors: list[Vectors] = []
        for index, (poster, read) in enumerate(zip(chunk.items, chunk.results(), strict=True)):
            if isinstance(read, UnreadablePoster):
                tally.failed(poster, read.word, read.reason)
                continue
            row, known, unchanged, duplicate = read
            if duplicate:
                tally.duplicates.append(poster)
            elif known is None and not unchanged:
                fresh.append((index, row))
            else:
                tally.stored(row, _How.SAME_CONTENT if unchanged else _How.REUSED)
            if known is not None:  # stored even if only the file's time is new, to update the row
                rows.append(row)
                vectors.append(known)
        settled = len(chunk.items) - (len(tally.duplicates) - duplicates)
        pending, canary = None, None
        if fresh:
            pending, canary = self._launch(chunk, [index for index, _ in fresh])
            self.share.submitted()
        return _Submitted(chunk, settled, fresh, pending, canary, rows, vectors)

    def _launch(self, chunk: PosterChunk, rows: list[int]) -> tuple[Pending, Canary | None]:
        """Submit these rows of the chunk, and behind them the known image if it is due and the chunk has room."""
        pixels, canary = keep_rows(chunk.pixels, rows), self.check.due(len(rows))
        if canary is None:
            return self.embedder.submit(pixels), None
        chunk.memory[len(rows)].copy_(canary.pixels)
        return self.embedder.submit(chunk.memory[: len(rows) + 1]), canary

    def _result(self, submitted: _Submitted, tally: _Tally) -> tuple[list[Row], Vectors]:
        """Rows and vectors of the chunk, aligned; posters without a vector are only tallied."""
        rows, vectors = submitted.rows, submitted.vectors
        self.check.note_copies(rows)
        if submitted.pending is not None:
            result = submitted.pending.result()
            self.timings.on_device += result.seconds
            self.share.fetched()
            if submitted.canary is not None:
                self.check.check(submitted.canary, result.vectors[len(submitted.fresh)])
            else:
                self.check.note([row for _, row in submitted.fresh])
            self.timings.images += len(submitted.fresh) - len(result.failures)
            for position, (index, row) in enumerate(submitted.fresh):
                reason = result.failures.get(position)
                if reason is None:
                    rows.append(row)
                    vectors.append(result.vectors[position])
                    tally.stored(row, _How.EMBEDDED)
                else:
                    tally.failed(submitted.chunk.items[index], "internal", reason)
        self._loader.recycle(submitted.chunk)
        if not rows:
            return [], np.zeros((0, self.embedder.space.dimension), np.float32)
        return rows, np.stack(vectors)

    def _put(self, rows: Sequence[Row], vectors: Vectors, state: BatchState, posters: int) -> int:
        if rows:
            self.check.put(rows, vectors, state.stored)
        return posters

    def _wait_for_store(self, put: Future[int]) -> int:
        began = self._clock()
        try:
            return put.result()
        finally:
            self.timings.waiting_for_store += self._clock() - began
