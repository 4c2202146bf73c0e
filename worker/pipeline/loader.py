"""Decode-ahead loader: threads fill chunks of pixels ahead of the device, within a bound."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import Final, Generic, TypeVar

import torch

from producer.host import usable_cores
from worker.images.resize import Geometry
from worker.model.threads import one_core_threads
from worker.pipeline.buffers import chunk_buffer

CHUNKS_AHEAD: Final = 3  # one decoded, one being decoded, one for images that take longer
MIN_CHUNK_DIVISOR: Final = 8  # a ramp begins and ends with this fraction of a chunk
MAX_SLICE: Final = 16  # images per task of a thread; a future for each image would take 0.05 ms of Python's lock
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Chunk(Generic[Item, Result]):
    """Items whose pixels are loaded, in order."""

    items: Sequence[Item]
    memory: torch.Tensor  # uint8 (more than n, 3, height, width)
    slices: list[Future[list[Result]]]  # done; the results of consecutive items
    waited_s: float = 0.0  # how long the consumer had to wait for the chunk

    @property
    def pixels(self) -> torch.Tensor:
        """uint8 (n, 3, height, width); row i belongs to items[i], undefined where its load failed."""
        return self.memory[: len(self.items)]

    def results(self) -> list[Result]:
        """The result of each item; raises the first exception that a load raised."""
        return list(chain.from_iterable(done.result() for done in self.slices))


class Loader:
    """Threads that load images into chunks, kept between calls of `chunks`; used by one consumer."""

    def __init__(
        self,
        geometry: Geometry,
        device: torch.device,
        chunk_size: Callable[[], int],
        *,
        threads: int = 0,
        look_ahead_images: int = 0,
        ramp: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start the threads.

        Args:
            chunk_size: images per forward pass; called before each chunk, because the size adapts to memory.
            threads: 0: one per core that this process may use.
            look_ahead_images: images loaded ahead, rounded up to whole chunks; 0: CHUNKS_AHEAD chunks.
            ramp: begin and end with small chunks, see `next_chunk_size`.
        """
        self._geometry, self._device, self._chunk_size = geometry, device, chunk_size
        self._look_ahead, self._ramp, self._clock = look_ahead_images, ramp, clock
        self._free: list[torch.Tensor] = []  # buffers for whole chunks, to be filled again
        self._thread_count = threads or usable_cores()
        self._threads = one_core_threads(self._thread_count, "decode")

    def close(self) -> None:
        """End the threads; what has not begun is cancelled."""
        self._threads.shutdown(cancel_futures=True)

    def recycle(self, chunk: Chunk[Item, Result]) -> None:
        """Take back the memory of a chunk that nobody reads any more; the next chunks fill it again.

        The system takes 0.2 ms per image to map new memory, during which it lets no other thread map any.
        """
        if self._device.type != "cuda":  # torch keeps pinned memory itself
            self._free.append(chunk.memory)

    def chunks(
        self, items: Sequence[Item], load: Callable[[Sequence[Item], torch.Tensor], list[Result]]
    ) -> Generator[Chunk[Item, Result], None, None]:
        """Yield chunks in the order of `items`, every load done, while the next ones are being loaded.

        Closing the generator early cancels the loads that have not begun.

        Args:
            load: called in a thread with a few consecutive items and their rows of pixels to fill, uint8
                (n, 3, height, width); returns a result per item. What it raises, the chunk's `results` raises.
        """
        waiting: deque[Chunk[Item, Result]] = deque()
        position = size = 0
        try:
            while position < len(items) or waiting:
                ahead = sum(len(chunk.items) for chunk in waiting)
                full, left = self._chunk_size(), len(items) - position
                if left and (not waiting or ahead < (self._look_ahead or CHUNKS_AHEAD * full)):
                    size = next_chunk_size(size, full, left) if self._ramp else min(full, left)
                    waiting.append(self._start(items[position : position + size], load))
                    position += size
                    continue
                chunk = waiting.popleft()
                began = self._clock()
                for done in chunk.slices:
                    done.exception()  # waits; raises nothing
                chunk.waited_s = self._clock() - began
                yield chunk
        finally:
            for chunk in waiting:
                for pending in chunk.slices:
                    pending.cancel()

    def _start(
        self, items: Sequence[Item], load: Callable[[Sequence[Item], torch.Tensor], list[Result]]
    ) -> Chunk[Item, Result]:
        memory = self._memory(len(items) + 1)  # a row to spare, for the known image
        size = min(MAX_SLICE, -(-len(items) // self._thread_count))
        starts = range(0, len(items), size)
        slices = [
            self._threads.submit(load, items[n : n + size], memory[n : min(n + size, len(items))]) for n in starts
        ]
        return Chunk(items, memory, slices)

    def _memory(self, rows: int) -> torch.Tensor:
        """Memory for at least so many rows."""
        while self._free:
            memory = self._free.pop()
            if len(memory) >= rows:
                return memory
        return chunk_buffer(max(rows, self._chunk_size() + 1), self._geometry, self._device)


def next_chunk_size(before: int, full: int, left: int) -> int:
    """The size of the next chunk of a ramp; `before`: of the previous one, or 0; `left`: images, at least 1.

    A batch begins with an eighth of a `full` chunk and doubles, so that the device starts early; it ends in
    halves down to an eighth, so that little remains to be computed when the last image is decoded.
    """
    least = max(1, full // MIN_CHUNK_DIVISOR)
    size = min(2 * before, full) if before else least
    if left < 2 * size:
        size = max(-(-left // 2), least)
    return left if left - size < least else size
