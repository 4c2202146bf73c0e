"""From paths to chunks of pixels: read, digest and decode in threads, ahead of the device and never too far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import torch

from producer.embedding import Vectors
from producer.errors import UnreadablePoster
from producer.files import DAMAGE, FileContent, read_file
from producer.queue.messages import EmbedBatch, Poster
from producer.vectors.base import Row, VectorStore
from worker.images.decode import Limits, decode
from worker.images.memory_budget import MemoryBudget
from worker.model.threads import one_core_threads, usable_cores
from worker.pipeline.buffers import chunk_buffer
from worker.pipeline.protocols import Embedder
from worker.pipeline.timings import Timings

CHUNKS_AHEAD: Final = 3  # one decoded, one being decoded, one for those that take longer
TRIES_LEAST: Final = 5  # of a file that its disk does not give; each is a try of the batch, after a pause
TRIES_S: Final = 60.0  # between the first and the last of them, at least
SMALLEST_SHARE: Final = 8  # of a chunk: with so little a batch begins and ends


class Read(NamedTuple):
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
    duplicate: bool = False


@dataclass
class Run:
    """What the threads have to know of the batch that runs: its rows as they were, and contents as they are met."""

    batch: EmbedBatch
    before: Mapping[str, Row]
    first: dict[str, str] | None  # digest → id of the poster that is decoded for all that have it

    def is_duplicate_in_batch(self, row: Row) -> bool:
        """True when another poster of this batch was met before with the same content."""
        return self.first is not None and self.first.setdefault(row.digest, row.id) != row.id


@dataclass
class Chunk:
    posters: Sequence[Poster]
    pixels: torch.Tensor  # uint8 (n, 3, H, W); row i belongs to posters[i]
    reads: list[Future[Read]]


def next_size(before: int, chunk: int, left: int) -> int:
    """How many posters the next chunk takes.

    A batch begins with an eighth of a chunk and doubles, so that the device starts soon; it ends in halves down to
    an eighth, so that little is still to be computed when the last poster is decoded.

    Args:
        before: what the last one took; 0 for the first.
        chunk: images per forward pass.
        left: posters that are still to be taken, more than 0.
    """
    least = max(1, chunk // SMALLEST_SHARE)
    size = min(2 * before, chunk) if before else least
    if left < 2 * size:
        size = max(-(-left // 2), least)
    return left if left - size < least else size


class Loader:
    """Threads that read and decode; they are kept between batches."""

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore,
        root: Path,
        *,
        threads: int,
        look_ahead_images: int,
        max_file_bytes: int,
        decode_memory_bytes: int,
        limits: Limits | None,
        clock: Callable[[], float],
    ) -> None:
        """As Pipeline; `embedder` says how large images are to be, `store` which contents are known."""
        self._embedder, self._store, self._root = embedder, store, root
        self._look_ahead, self._max_file_bytes = look_ahead_images, max_file_bytes
        self._limits, self._budget, self._clock = limits or Limits(), MemoryBudget(decode_memory_bytes), clock
        self._troubled: dict[str, tuple[int, float]] = {}  # path → tries that failed, and when the first did
        self._threads = one_core_threads(threads or usable_cores(), "decode")

    def _read_file(self, poster: Poster) -> FileContent:
        """Read it; a file that the disk fails to give again and again, while its root is there, is unreadable."""
        try:
            content = read_file(poster.path, root=self._root, max_bytes=self._max_file_bytes)
        except OSError as error:
            if error.errno not in DAMAGE or error.filename is None:
                raise  # more is gone than this file
            tries, since = self._troubled.get(poster.path, (0, self._clock()))
            self._troubled[poster.path] = tries + 1, since
            if tries + 1 < TRIES_LEAST or self._clock() - since < TRIES_S:
                raise
            del self._troubled[poster.path]
            reason = f"the disk did not give it in {tries + 1} tries: {error.strerror}"
            raise UnreadablePoster(poster.path, "unreadable", reason) from error
        self._troubled.pop(poster.path, None)
        return content

    def decode(self, data: bytes, name: str) -> torch.Tensor:
        """uint8 (3, height, width) at the model's size; UnreadablePoster says why not."""
        return decode(data, self._embedder.geometry, name=name, limits=self._limits, budget=self._budget)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def chunks(self, todo: Sequence[Poster], run: Run, timings: Timings) -> Generator[Chunk, None, None]:
        """Yield chunks in order, every read done, while the next ones are being decoded.

        What the caller had to wait for is added to `timings`. Closing it early cancels what has not begun.
        """
        waiting: deque[Chunk] = deque()
        position = size = 0
        try:
            while position < len(todo) or waiting:
                ahead = sum(len(chunk.posters) for chunk in waiting)
                limit = self._look_ahead or CHUNKS_AHEAD * self._embedder.chunk
                if position < len(todo) and (not waiting or ahead < limit):
                    size = next_size(size, self._embedder.chunk, len(todo) - position)
                    chunk = self._read_ahead(todo[position : position + size], run)
                    position += len(chunk.posters)
                    waiting.append(chunk)
                    continue
                chunk = waiting.popleft()
                began = self._clock()
                for read in chunk.reads:
                    read.exception()
                timings.waiting_for_decode += self._clock() - began
                yield chunk
        finally:
            for chunk in waiting:
                for read in chunk.reads:
                    read.cancel()

    def _read_ahead(self, posters: Sequence[Poster], run: Run) -> Chunk:
        pixels = chunk_buffer(len(posters), self._embedder.geometry, self._embedder.device)
        reads = [self._threads.submit(self._read, poster, pixels[row], run) for row, poster in enumerate(posters)]
        return Chunk(posters, pixels, reads)

    def _read(self, poster: Poster, target: torch.Tensor, run: Run) -> Read:
        content = self._read_file(poster)
        row = Row(poster.id, content.digest, content.size, content.mtime_ns)
        before = run.before.get(poster.id)
        if run.batch.verify and row == before and not run.batch.reply:
            return Read(row, unchanged=True)
        if not run.batch.force:
            known = self._store.by_content(self._embedder.space.id, [content.digest])
            if known:
                same = run.batch.verify and before is not None and before.digest == content.digest
                return Read(row, known[content.digest], unchanged=same)
            if run.is_duplicate_in_batch(row):
                return Read(row, duplicate=True)
        target.copy_(self.decode(content.data, poster.path))
        return Read(row)


Item = TypeVar("Item")
Result = TypeVar("Result")


def look_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor, depth: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield ``(item, future)`` in the order of `items`, every future done.

    At most `depth` items are submitted and not yet yielded. The future carries an item's
    exception, so that one bad item never ends its neighbors: call ``future.result()``.
    When the consumer stops early, what has not begun is cancelled.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    source = iter(items)
    try:
        for item in source:
            waiting.append((item, executor.submit(function, item)))
            if len(waiting) >= depth:
                break
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # waits; what it raised is the consumer's business
            for following in source:
                waiting.append((following, executor.submit(function, following)))
                break
            yield item, future
    finally:
        for _, future in waiting:
            future.cancel()
