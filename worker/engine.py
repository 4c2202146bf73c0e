"""Chunks through the device, whatever it runs out of: halved, redone, computed elsewhere, and never wrong."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from worker.device import is_exhaustion, is_lost
from worker.errors import DeviceLost
from worker.forward import Forward, Launched
from worker.halving import Halving, Slice
from worker.pace import Pace
from worker.spare import Spare, is_unit
from worker.vectors import Vectors

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

    def __init__(self, forward: Forward, spare: Spare, dimension: int, limit: int, *, watched: bool = False) -> None:
        """`limit`: images per forward pass, at most. `watched`: tell when the device has become slow."""
        self.forward, self._spare, self._dimension = forward, spare, dimension
        self.halving = Halving(limit)
        self._pace = Pace() if watched else None

    def submit(self, pixels: torch.Tensor) -> Pending:
        """Start on uint8 (n, 3, height, width), n > 0; the pixels must stay as they are until its result is there.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        with _lost_is_named():
            slices = self.halving.run(
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
        for start, stop, found in self.halving.run(
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
            again = self._spare.embed(pixels[row : row + 1])
            if isinstance(again, str):
                failures[row], vectors[row] = again, 0
            else:
                vectors[row] = again
        return failures

    def _watch(self, images: int, seconds: float) -> None:
        """Full chunks only: a single image, or a chunk that was halved, is slower by nature."""
        if self._pace is None or self.halving.size < self.halving.limit or images < self.halving.limit:
            return
        told = self._pace.note(images, seconds)
        if told:
            logger.warning(told)

    def _free_memory(self) -> None:
        gc.collect()
        self.forward.free_memory()
        size = self.halving.size
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
