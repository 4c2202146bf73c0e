"""Executors: run an encoder on a device asynchronously.

On a CPU every core runs slices of its own: a forward pass shared by all cores would wait at each of its
hundred steps for the slowest core, and decoding uses the same cores. On CUDA, pixels are copied on one
stream while the previous chunk is computed on another.

Urgent chunks do not wait for what was launched before them: on a CPU they run in threads of their own, which share the
cores with the others. CUDA runs everything in order, with at most two chunks ahead: an encoder may have only one set of
buffers, as a CUDA graph has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, Protocol

import numpy as np
import torch

from producer.embedding import Vectors
from producer.host import usable_cores
from worker.model.threads import one_core_threads

Encoder = Callable[[torch.Tensor], torch.Tensor]
# Waits for launched images, once: float32 (n, dimension), unit length, NaN or zero where the numbers overflowed; and
# the device seconds spent on them.
Fetch = Callable[[], tuple[Vectors, float]]
CORE_SLICE: Final = 16  # images; their activations still fit a core's cache (measured, docs/performance.md)


class Executor(Protocol):
    """An encoder on a device. One thread at a time may launch, and any thread fetch what it launched itself."""

    def launch(self, pixels: torch.Tensor, *, urgent: bool = False) -> Fetch:
        """Start on uint8 (n, 3, height, width), which must not change before Fetch has returned."""

    def free_memory(self) -> None:
        """Wait for what was launched, then release cached memory."""

    def probe(self) -> None:
        """Compute something small, and wait for it; for a thread of its own, while nothing else is computed."""

    def close(self) -> None:
        """End the threads, if there are any."""


def create_executor(device: torch.device, encoder: Encoder) -> Executor:
    """The executor for the device's type."""
    return CudaExecutor(device, encoder) if device.type == "cuda" else CpuExecutor(encoder)


class CpuExecutor:
    """Runs slices of a chunk in parallel, one core each."""

    def __init__(
        self,
        encoder: Encoder,
        cores: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        core_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`cores` 0: as many as torch would use here and this process may use; `core_clock`: of the calling thread."""
        self._encoder, self._clock, self._core_clock = encoder, clock, core_clock
        self._cores = cores or min(usable_cores(), torch.get_num_threads())
        self._threads = one_core_threads(self._cores, "forward")
        self._urgent_threads: ThreadPoolExecutor | None = None
        self._busy_until = 0.0  # when the last slice that was fetched ended, of those that are not urgent

    def launch(self, pixels: torch.Tensor, *, urgent: bool = False) -> Fetch:
        """Cut into one slice per core, or more where slices would exceed CORE_SLICE."""
        size = min(CORE_SLICE, -(-len(pixels) // self._cores))
        threads = self._for_urgent() if urgent else self._threads
        clock = self._core_clock if urgent else self._clock
        parts = [threads.submit(self._run, part, clock) for part in pixels.split(size)]

        def fetch() -> tuple[Vectors, float]:
            wait(parts)  # all of them, also when one failed: no thread may read the pixels after fetch returned
            vectors, begins, ends = zip(*(part.result() for part in parts), strict=True)
            if urgent:  # other chunks run on the same cores meanwhile: what counts is how long it had them
                return np.concatenate(vectors), (sum(ends) - sum(begins)) / self._cores
            seconds = max(0.0, max(ends) - max(min(begins), self._busy_until))  # overlap is not counted twice
            self._busy_until = max(self._busy_until, *ends)
            return np.concatenate(vectors), seconds

        return fetch

    def free_memory(self) -> None:
        """Nothing is cached."""

    def probe(self) -> None:
        """A processor that runs this line answers."""

    def close(self) -> None:
        for threads in filter(None, (self._threads, self._urgent_threads)):
            threads.shutdown(cancel_futures=True)

    def _for_urgent(self) -> ThreadPoolExecutor:
        self._urgent_threads = self._urgent_threads or one_core_threads(self._cores, "urgent")
        return self._urgent_threads

    @torch.inference_mode()
    def _run(self, pixels: torch.Tensor, clock: Callable[[], float]) -> tuple[Vectors, float, float]:
        began = clock()
        vectors: Vectors = self._encoder(pixels).numpy()
        return vectors, began, clock()


class CudaExecutor:
    """Copies on one stream, computes on another."""

    def __init__(self, device: torch.device, encoder: Encoder) -> None:
        self._device, self._encoder = device, encoder
        self._copy_stream, self._compute_stream = torch.cuda.Stream(device), torch.cuda.Stream(device)
        torch.cuda.synchronize(device)  # new streams do not wait for the one on which the encoder was built

    @torch.inference_mode()
    @torch.autocast("cuda", enabled=False)
    def launch(self, pixels: torch.Tensor, *, urgent: bool = False) -> Fetch:
        """Queue copy and computation. Out-of-memory errors show here, a broken context here or later."""
        with torch.cuda.stream(self._copy_stream):
            # torch reuses a pinned block only after the copies that were started from it are complete.
            on_device = pixels.to(self._device, non_blocking=True)
        self._compute_stream.wait_stream(self._copy_stream)
        on_device.record_stream(self._compute_stream)  # allocated on one stream, used on the other: free after both
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._compute_stream):
            began.record()
            unit = self._encoder(on_device)
            vectors = torch.empty(unit.shape, dtype=unit.dtype, device="cpu", pin_memory=True)
            vectors.copy_(unit, non_blocking=True)
            ended.record()
        copied: list[torch.Tensor] = [pixels]  # kept alive until the copy is complete

        def fetch() -> tuple[Vectors, float]:
            ended.synchronize()
            copied.clear()
            return vectors.numpy().copy(), began.elapsed_time(ended) / 1000  # pinned memory is scarce: not kept

        return fetch

    def free_memory(self) -> None:
        torch.cuda.synchronize(self._device)  # work in progress holds memory that is free a moment later
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def probe(self) -> None:
        with torch.cuda.stream(self._compute_stream):
            torch.ones(1, device=self._device).item()  # waits for this stream

    def close(self) -> None:
        """Nothing to end: the context lives as long as the process."""
