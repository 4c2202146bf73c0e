"""Chunks through the device, whatever it runs out of: halved, redone, computed elsewhere, and never wrong."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from producer.embedding import Vectors, is_unit
from producer.errors import DeviceLost, PosterError
from worker.model.device import is_exhaustion, is_lost
from worker.model.executors import Forward, Launched
from worker.model.oom_backoff import AdaptiveBatchSize, Slice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedChunk:
    """Row i of `vectors`, float32 (n, dimension), belongs to image i; rows in `failures` are zero and mean nothing.

    `seconds` is how long the device worked on it.
    """

    vectors: Vectors
    failures: Mapping[int, str]
    seconds: float = 0.0


class Pending:
    """A chunk on its way through the device."""

    def __init__(self, engine: Engine, pixels: torch.Tensor, slices: list[Slice[Launched]]) -> None:
        self._engine, self._pixels, self._slices = engine, pixels, slices

    def result(self) -> EmbeddedChunk:
        """Wait for it; once.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        return self._engine.collect(self._pixels, self._slices)


class Engine:
    """Drives a forward pass. Not safe to share between threads: a device has one driver."""

    def __init__(
        self, forward: Forward, fallback: CpuFallback, dimension: int, limit: int, *, watched: bool = False
    ) -> None:
        """`limit`: images per forward pass, at most. `watched`: tell when the device has become slow."""
        self.forward, self._fallback, self._dimension = forward, fallback, dimension
        self.chunk_size = AdaptiveBatchSize(limit)
        self._pace = SlowdownMonitor() if watched else None

    def submit(self, pixels: torch.Tensor) -> Pending:
        """Start on uint8 (n, 3, height, width), n > 0; the pixels must stay as they are until its result is there.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        with _lost_is_named():
            slices = self.chunk_size.run(
                len(pixels),
                lambda start, stop: self.forward.launch(pixels[start:stop]),
                is_exhaustion=is_exhaustion,
                recover=self._free_memory,
            )
            return Pending(self, pixels, list(slices))

    def collect(self, pixels: torch.Tensor, slices: list[Slice[Launched]]) -> EmbeddedChunk:
        """Vectors of what was launched; a slice for which memory ran out on the way is done again, in parts."""
        vectors = np.zeros((len(pixels), self._dimension), np.float32)
        with _lost_is_named():
            seconds = self._fetch(pixels, slices, vectors)
        self._watch(len(pixels), seconds)
        return EmbeddedChunk(vectors, self._mend(pixels, vectors), seconds)

    def _fetch(self, pixels: torch.Tensor, slices: list[Slice[Launched]], vectors: Vectors) -> float:
        """Fill in the vectors; how long the device worked."""
        seconds = 0.0
        for start, stop, launched in slices:
            if launched is None:
                continue  # not even one image fitted: the row stays zero, and is computed below
            exhausted = False
            try:
                vectors[start:stop] = launched.fetch()
                seconds += launched.seconds
            except Exception as error:
                if not is_exhaustion(error):
                    raise
                exhausted = True
            if exhausted:  # outside the block, where the traceback holds no tensors any more
                self._free_memory()
                self._redo(pixels[start:stop], vectors[start:stop])
        return seconds

    def _redo(self, pixels: torch.Tensor, vectors: Vectors) -> None:
        """One slice after the other, each waited for, so that whoever runs out of memory is known."""
        for start, stop, found in self.chunk_size.run(
            len(pixels),
            lambda start, stop: self.forward.launch(pixels[start:stop]).fetch(),
            is_exhaustion=is_exhaustion,
            recover=self._free_memory,
        ):
            if found is not None:
                vectors[start:stop] = found

    def _mend(self, pixels: torch.Tensor, vectors: Vectors) -> dict[int, str]:
        """Compute rows that are no vectors again; the reasons of those that stay none."""
        failures: dict[int, str] = {}
        for row in map(int, np.flatnonzero(~is_unit(vectors))):
            again = self._fallback.embed(pixels[row : row + 1])
            if isinstance(again, str):
                failures[row], vectors[row] = again, 0
            else:
                vectors[row] = again
        return failures

    def _watch(self, images: int, seconds: float) -> None:
        """Full chunks only: a single image, or a chunk that was halved, is slower by nature."""
        if self._pace is None or self.chunk_size.size < self.chunk_size.limit or images < self.chunk_size.limit:
            return
        told = self._pace.note(images, seconds)
        if told:
            logger.warning(told)

    def _free_memory(self) -> None:
        gc.collect()
        self.forward.free_memory()
        size = self.chunk_size.size
        logger.warning("out of memory at %d image(s): %s", size, "halving" if size > 1 else "the CPU takes over")


@contextmanager
def _lost_is_named() -> Iterator[None]:
    """Turn the errors after which a context answers nothing but errors into DeviceLost."""
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise DeviceLost(f"the GPU's context is broken: {str(error).splitlines()[0]}") from error
        raise


COLLAPSED: Final = 4  # times slower than before; a card that is hot or shared loses half
CHUNKS_SLOW: Final = 8  # one after the other, so that a single hitch says nothing
CHUNKS_BEFORE: Final = 8  # that have to be known before anything can be called slow


class SlowdownMonitor:
    """Watches the images per second of the device, chunk by chunk."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._usual = 0.0  # images per second when things are well: falls slowly, rises at once
        self._known = self._slow = 0
        self._warned = False

    def note(self, images: int, seconds: float) -> str | None:
        """Take a chunk into account; a sentence when the pace has just collapsed, or come back."""
        if seconds <= 0:
            return None
        rate = images / seconds
        if self._known < CHUNKS_BEFORE or rate * COLLAPSED >= self._usual:
            self._known += 1
            self._slow = 0
            self._usual = max(rate, 0.98 * self._usual)
            if self._warned:
                self._warned = False
                return f"the device is back at {rate:.0f} images/s"
            return None
        self._slow += 1
        if self._slow < CHUNKS_SLOW or self._warned:
            return None
        self._warned = True
        return (
            f"the device has slowed down to {rate:.0f} images/s, from {self._usual:.0f}: another program uses it, or "
            "(on Windows) the driver has moved its memory into the system's. Then set POSTERS_GPU_MEMORY_FRACTION "
            "lower, for example 0.7, or POSTERS_BATCH_SIZE"
        )


class CpuFallback:
    """A second tower, made when it is first needed: it costs memory, and most collections never need it."""

    def __init__(self, make: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> None:
        """`make` gives a tower in fp32 on the CPU, from the same weights; it may raise PosterError."""
        self._make = make
        self._tower: Callable[[torch.Tensor], torch.Tensor] | None = None

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> Vectors | str:
        """uint8 (1, 3, height, width) → float32 (dimension,) of unit length, or why there is none."""
        try:
            if self._tower is None:
                logger.warning(
                    "an image is embedded on the CPU in fp32: it does not fit the device, or came out as no number"
                )
                self._tower = self._make()
            vector: Vectors = self._tower(pixels)[0].numpy()
        except PosterError as error:
            return f"it needs the CPU, and the weights cannot be read again: {error}"
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            return "not even one image fits into memory, neither on the device nor on the CPU"
        if not is_unit(vector[None])[0]:
            return "the model gives no vector for it, not even in fp32"
        return vector
