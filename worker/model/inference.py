"""Inference on chunks of images: recovers from exhausted memory and recomputes invalid vectors."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from producer.embedding import Vectors, is_unit
from producer.errors import DeviceLost, PosterError, WrongVectors
from worker.model.device import is_exhaustion, is_lost, own_torch_defaults
from worker.model.executors import Encoder, Executor, Fetch
from worker.model.oom_backoff import AdaptiveBatchSize, Result, Slice
from worker.model.parity import PARITY_COSINE

COLLAPSE_FACTOR: Final = 4  # times slower than before; a card that is hot or shared loses half at most
SLOW_CHUNKS: Final = 8  # in a row before the warning: a single slow chunk means nothing
BASELINE_CHUNKS: Final = 8  # needed before any rate can be called slow
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedChunk:
    """The vectors of a chunk of images; row i belongs to image i."""

    vectors: Vectors  # float32 (n, dimension), unit length; rows in `failures` are zero
    failures: Mapping[int, str]  # row → why that image has no vector
    seconds: float = 0.0  # device time spent on the chunk


@dataclass(frozen=True)
class Pending:
    """A chunk that the device is working on; its pixels must not change before `result` has returned.

    `result` waits for the vectors and may be called once; DeviceLost: the accelerator needs a fresh process.
    """

    result: Callable[[], EmbeddedChunk]


class Engine:
    """Runs chunks through an executor. Threads may share it; each fetches its own results in the order of its submits.

    They take turns at launching and at recovering; nobody holds the lock while a result is waited for.
    """

    def __init__(
        self, executor: Executor, fallback: CpuFallback, dimension: int, limit: int, *, watch_speed: bool = False
    ) -> None:
        """`limit`: most images per forward pass. `watch_speed`: warn when the device has become slow."""
        self.executor, self._fallback, self._dimension = executor, fallback, dimension
        self.chunk_size = AdaptiveBatchSize(limit)
        self._slowdown = SlowdownMonitor() if watch_speed else None
        self._turn = threading.RLock()

    def submit(self, pixels: torch.Tensor, *, urgent: bool = False) -> Pending:
        """Start on uint8 (n, 3, height, width), n > 0, which must not change before the result is fetched.

        `urgent` chunks are computed before those that were submitted earlier, where the device can do so.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        with _device_loss_translated(), self._turn:
            slices = list(self._run(pixels, partial(self.executor.launch, urgent=urgent)))
        return Pending(partial(self._collect, pixels, slices, urgent))

    def probe(self) -> None:
        """Compute something small on the device and wait for it; raises DeviceLost. A full device has answered."""
        try:
            with _device_loss_translated():
                self.executor.probe()
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise

    def _run(self, pixels: torch.Tensor, step: Callable[[torch.Tensor], Result]) -> Iterator[Slice[Result]]:
        return self.chunk_size.run(
            len(pixels),
            lambda start, stop: step(pixels[start:stop]),
            is_exhaustion=is_exhaustion,
            recover=self._free_memory,
        )

    def _collect(self, pixels: torch.Tensor, slices: list[Slice[Fetch]], urgent: bool) -> EmbeddedChunk:
        """Fetch the vectors of launched slices; a slice that ran out of memory is recomputed in smaller parts."""
        vectors = np.zeros((len(pixels), self._dimension), np.float32)
        with _device_loss_translated():
            seconds = self._fetch(pixels, slices, vectors)
        if not urgent:
            self._check_speed(len(pixels), seconds)
        failures = self._recompute_invalid(pixels, vectors)
        for rows in same_vectors(vectors):
            self._recompute_same(pixels, vectors, [row for row in rows if row not in failures], failures)
        return EmbeddedChunk(vectors, failures, seconds)

    def _fetch(self, pixels: torch.Tensor, slices: list[Slice[Fetch]], vectors: Vectors) -> float:
        """Fill in `vectors`; returns the device seconds."""
        seconds = 0.0
        for start, stop, fetch in slices:
            if fetch is None:
                continue  # a single image that did not fit: its row stays zero and is recomputed as invalid
            exhausted = False
            try:
                vectors[start:stop], used = fetch()
                seconds += used
            except Exception as error:
                if not is_exhaustion(error):
                    raise
                exhausted = True
            if exhausted:  # after the except block, whose traceback would keep tensors alive
                with self._turn:
                    self._free_memory()
                    self._recompute_slice(pixels[start:stop], vectors[start:stop])
        return seconds

    def _recompute_slice(self, pixels: torch.Tensor, vectors: Vectors) -> None:
        """Launch and fetch part by part, so that an out-of-memory error belongs to a known part."""
        for start, stop, result in self._run(pixels, lambda part: self.executor.launch(part)()):
            if result is not None:
                vectors[start:stop] = result[0]

    def _recompute_invalid(self, pixels: torch.Tensor, vectors: Vectors) -> dict[int, str]:
        """Recompute rows that are not of unit length; returns the reasons of those that still have no vector."""
        failures: dict[int, str] = {}
        for row in map(int, np.flatnonzero(~is_unit(vectors))):
            with self._turn:
                result = self._fallback.embed(pixels[row : row + 1])
            if isinstance(result, str):
                failures[row], vectors[row] = result, 0
            else:
                vectors[row] = result
        return failures

    def _recompute_same(
        self, pixels: torch.Tensor, vectors: Vectors, rows: list[int], failures: dict[int, str]
    ) -> None:
        """Recompute rows with one vector on the CPU, unless their images are the same; WrongVectors if it differs."""
        if all(torch.equal(pixels[rows[0]], pixels[row]) for row in rows[1:]):
            return
        logger.warning("%d different images got the same vector: recomputing them on the CPU", len(rows))
        for row in rows:
            with self._turn:
                result = self._fallback.embed(pixels[row : row + 1])
            if isinstance(result, str):
                failures[row], vectors[row] = result, 0
                continue
            cosine = float(result.astype(np.float64) @ vectors[row].astype(np.float64))
            if cosine < PARITY_COSINE:
                reason = (
                    f"{len(rows)} different images got the same, where the CPU's has a cosine of {cosine:.5f} to it"
                )
                raise WrongVectors(f"the device computes wrong vectors: {reason}")
            vectors[row] = result

    def _check_speed(self, images: int, seconds: float) -> None:
        """Full chunks only: single images and halved chunks are slower per image anyway."""
        if self._slowdown is None or self.chunk_size.size < self.chunk_size.limit or images < self.chunk_size.limit:
            return
        message = self._slowdown.record(images, seconds)
        if message:
            logger.warning(message)

    def _free_memory(self) -> None:
        gc.collect()
        self.executor.free_memory()
        size = self.chunk_size.size
        logger.warning("out of memory at %d image(s): %s", size, "halving" if size > 1 else "the CPU takes over")


def same_vectors(vectors: Vectors) -> list[list[int]]:
    """Groups of rows, at least two each, of (n, dimension) that are equal in every bit, except rows of zeros."""
    first = np.ascontiguousarray(vectors[:, :2]).view(np.uint64)[:, 0]  # 64 bits, which differ if anything does
    values, counts = np.unique(first, return_counts=True)
    groups: dict[bytes, list[int]] = {}
    for row in map(int, np.flatnonzero(np.isin(first, values[counts > 1]))):
        if vectors[row].any():
            groups.setdefault(vectors[row].tobytes(), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


@contextmanager
def _device_loss_translated() -> Iterator[None]:
    """Raise DeviceLost for errors after which a CUDA context answers nothing but errors."""
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise DeviceLost(f"the GPU's context is broken: {str(error).splitlines()[0]}") from error
        raise


class SlowdownMonitor:
    """Detects a collapse of the device's throughput, and its recovery."""

    def __init__(self) -> None:
        self._baseline = 0.0  # images per second of a healthy device: rises at once, decays slowly
        self._healthy_chunks = self._slow_chunks = 0
        self._warned = False

    def record(self, images: int, seconds: float) -> str | None:
        """Add a chunk; returns a message when the throughput has just collapsed or recovered."""
        if seconds <= 0:
            return None
        rate = images / seconds
        if self._healthy_chunks < BASELINE_CHUNKS or rate * COLLAPSE_FACTOR >= self._baseline:
            self._healthy_chunks += 1
            self._slow_chunks = 0
            self._baseline = max(rate, 0.98 * self._baseline)
            if self._warned:
                self._warned = False
                return f"the device is back at {rate:.0f} images/s"
            return None
        self._slow_chunks += 1
        if self._slow_chunks < SLOW_CHUNKS or self._warned:
            return None
        self._warned = True
        return (
            f"the device has slowed down to {rate:.0f} images/s, from {self._baseline:.0f}: another program uses it, "
            "or (on Windows) the driver has moved its memory into system memory. In that case, set "
            "POSTERS_GPU_MEMORY_FRACTION lower, for example 0.7, or POSTERS_BATCH_SIZE"
        )


class CpuFallback:
    """A second encoder in fp32 on the CPU, built on first use: it takes memory that most collections never need."""

    def __init__(self, build: Callable[[], Encoder]) -> None:
        """`build` returns an fp32 CPU encoder with the same weights; it may raise PosterError."""
        self._build = build
        self._encoder: Encoder | None = None

    @torch.inference_mode()
    @own_torch_defaults()
    def embed(self, pixels: torch.Tensor) -> Vectors | str:
        """uint8 (1, 3, height, width) → float32 (dimension,), unit length, or the reason why there is none."""
        try:
            if self._encoder is None:
                logger.warning(
                    "embedding on the CPU in fp32: an input does not fit the device, or its vector was not valid"
                )
                self._encoder = self._build()
            vector: Vectors = self._encoder(pixels)[0].numpy()
        except PosterError as error:
            return f"it needs the CPU, and the weights cannot be read again: {error}"
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            return "not even one fits into memory, neither on the device nor on the CPU"
        if not is_unit(vector[None])[0]:
            return "the model gives no vector for it, not even in fp32"
        return vector
