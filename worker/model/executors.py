"""One tower on one device: chunks go in without waiting, and come out as vectors.

On a CPU every core runs slices of its own: a forward pass that all cores share would stop at each of its
hundred steps until the slowest is there, and decoding shares the same cores. On CUDA the pixels travel on
one stream while the chunk before is computed on another, and the vectors come back behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Final, Protocol

import numpy as np
import torch

from producer.embedding import Vectors
from worker.model.threads import one_core_threads, usable_cores

Tower = Callable[[torch.Tensor], torch.Tensor]
CORE_SLICE: Final = 16  # images; what a core computes then still lies in its cache (measured, docs/performance.md)


class Launched(Protocol):
    """Images on their way through the device."""

    def fetch(self) -> Vectors:
        """Wait: float32 (n, dimension), unit length, or NaN or zero where the numbers ran away."""

    @property
    def seconds(self) -> float:
        """How long the device worked on them; known after `fetch`."""


class Forward(Protocol):
    """A tower on a device. Not safe to share between threads: a device has one driver."""

    def launch(self, pixels: torch.Tensor) -> Launched:
        """Start on uint8 (n, 3, height, width); the pixels must not be changed before `fetch` has returned."""

    def free_memory(self) -> None:
        """Give back what nobody uses; waits for what is on its way."""

    def close(self) -> None:
        """End what was started."""


def forward_on(device: torch.device, tower: Tower) -> Forward:
    """The way that suits the device."""
    return CudaForward(device, tower) if device.type == "cuda" else CpuForward(tower)


class CpuForward:
    """Slices of a chunk on cores of their own."""

    def __init__(self, tower: Tower, cores: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        """`cores` 0: as many as torch would use here, and this process may."""
        self._tower, self._clock = tower, clock
        self._cores = cores or min(usable_cores(), torch.get_num_threads())
        self._lanes = one_core_threads(self._cores, "forward")
        self._free_at = 0.0  # when the device was through with what was fetched last

    def launch(self, pixels: torch.Tensor) -> Launched:
        """Cut into one slice per core, or more where they would be long."""
        size = min(CORE_SLICE, -(-len(pixels) // self._cores))
        return _OnCores(self, [self._lanes.submit(self._run, part) for part in pixels.split(size)])

    def free_memory(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self._lanes.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _run(self, pixels: torch.Tensor) -> tuple[Vectors, float, float]:
        began = self._clock()
        vectors: Vectors = self._tower(pixels).numpy()
        return vectors, began, self._clock()

    def _worked(self, began: float, ended: float) -> float:
        """Seconds, without those in which the slices before were still running."""
        seconds = max(0.0, ended - max(began, self._free_at))
        self._free_at = max(self._free_at, ended)
        return seconds


class _OnCores:
    def __init__(self, owner: CpuForward, parts: Sequence[Future[tuple[Vectors, float, float]]]) -> None:
        self._owner, self._parts, self.seconds = owner, parts, 0.0

    def fetch(self) -> Vectors:
        wait(self._parts)  # all of them, also when one failed: nothing may run on behind the caller's back
        results = [part.result() for part in self._parts]
        self.seconds = self._owner._worked(min(began for _, began, _ in results), max(end for *_, end in results))
        return np.concatenate([vectors for vectors, _, _ in results])


class CudaForward:
    """Pixels, computation and vectors on streams of their own."""

    def __init__(self, device: torch.device, tower: Tower) -> None:
        self._device, self._tower = device, tower
        self._copying, self._computing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        torch.cuda.synchronize(device)  # these streams do not wait for the one on which the tower was made

    @torch.inference_mode()
    def launch(self, pixels: torch.Tensor) -> Launched:
        """Queue copy and computation; memory that is missing shows here, a broken context here or later."""
        with torch.cuda.stream(self._copying):
            # torch gives a pinned block to nobody else before a copy that was begun from it is over.
            arrived = pixels.to(self._device, non_blocking=True)
        self._computing.wait_stream(self._copying)
        arrived.record_stream(self._computing)  # made for one stream, used on the other: free it after both
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._computing):
            began.record()
            unit = self._tower(arrived)
            vectors = torch.empty(unit.shape, dtype=unit.dtype, pin_memory=True)
            vectors.copy_(unit, non_blocking=True)
            ended.record()
        return _OnCuda(pixels, vectors, began, ended)

    def free_memory(self) -> None:
        torch.cuda.synchronize(self._device)  # what is on its way holds memory that is free a moment later
        torch.cuda.empty_cache()

    def close(self) -> None:
        """The process's end lets go of a context."""


class _OnCuda:
    def __init__(
        self, pixels: torch.Tensor, vectors: torch.Tensor, began: torch.cuda.Event, ended: torch.cuda.Event
    ) -> None:
        self._pixels: torch.Tensor | None = pixels  # held until the copy is certainly over
        self._vectors, self._began, self._ended, self.seconds = vectors, began, ended, 0.0

    def fetch(self) -> Vectors:
        self._ended.synchronize()
        self.seconds = self._began.elapsed_time(self._ended) / 1000
        self._pixels = None
        return self._vectors.numpy().copy()  # pinned memory is scarce, and goes back at once
