"""``batch_size=auto``: the chunk size above which throughput does not grow, within limits of memory and time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from worker.model.device import MemoryWatch
from worker.model.inference import Engine
from worker.model.oom_backoff import AdaptiveBatchSize

SIZES: Final = {"cuda": (16, 32, 64, 128, 256, 512, 1024), "cpu": (8, 16, 32, 64, 128)}
REPETITIONS: Final = 3  # the fastest counts: noise only slows down
MEMORY_SHARE: Final = 0.8  # of the free memory: the rest is for what other programs take later
MIN_GROWTH: Final = 1.05  # a size that is not 5 % faster than a smaller one only costs memory and latency
SEARCH_S: Final = 20.0  # most time that the search may add to a start; a GPU needs about one second
logger = logging.getLogger(__name__)


def choose_chunk_size(engine: Engine, blank: Callable[[int], torch.Tensor], device: torch.device) -> None:
    """Measure on the device and set the engine's chunk size; `blank` returns as many images as asked for."""
    began = time.perf_counter()

    def measure(size: int) -> float | None:
        chunk_size = engine.chunk_size = AdaptiveBatchSize(size)
        pixels, seconds = blank(size), []
        with MemoryWatch(device) as memory:
            engine.submit(pixels).result()  # warm-up
            for _ in range(REPETITIONS):
                started = time.perf_counter()
                engine.submit(pixels).result()
                seconds.append(time.perf_counter() - started)
        return size / min(seconds) if chunk_size.size == size and memory.share_used <= MEMORY_SHARE else None

    chosen, rates = find_chunk_size(SIZES[device.type], measure)
    engine.chunk_size = AdaptiveBatchSize(chosen)
    measured = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
    logger.info("chunks of %d images, measured in %.1f s (images/s: %s)", chosen, time.perf_counter() - began, measured)


def find_chunk_size(
    sizes: Sequence[int],
    measure: Callable[[int], float | None],
    *,
    budget_s: float = SEARCH_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, dict[int, float]]:
    """The smallest of the fast sizes.

    Args:
        sizes: in ascending order, each twice the one before; if none fits, the first is returned.
        measure: images per second at a size, or None where it does not fit into memory.
        budget_s: stop when this time is over or would be exceeded by the next size, which takes about
            twice as long as the one before.

    Returns:
        The smallest size within 5 % of the fastest, and what was measured: size → images per second.
    """
    began, last_s, fastest = clock(), 0.0, 0.0
    rates: dict[int, float] = {}
    for size in sizes:
        started = clock()
        if rates and started - began + 2 * last_s > budget_s:
            break
        rate = measure(size)
        last_s = clock() - started
        if rate is None:
            break
        rates[size] = rate
        if rate <= MIN_GROWTH * fastest:
            break
        fastest = rate
    enough = max(rates.values(), default=0) / MIN_GROWTH
    return next((size for size, rate in rates.items() if rate >= enough), sizes[0]), rates
