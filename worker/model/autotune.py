"""``batch_size=auto``: the size from which larger chunks are not faster any more, within memory and patience."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from worker.model.device import MemoryWatch
from worker.model.oom_backoff import AdaptiveBatchSize

if TYPE_CHECKING:
    import torch

    from worker.model.inference import Engine


SIZES: Final = {"cuda": (16, 32, 64, 128, 256, 512, 1024), "cpu": (8, 16, 32, 64, 128)}
MEASURED_TIMES: Final = 3  # of which the fastest counts: noise only ever slows down
MEMORY_SHARE: Final = 0.8  # of what is free: the rest is for what other programs take later
GROWTH_WORTH: Final = 1.05  # a size that is not 5 % faster than a smaller one only costs memory and latency
SEARCH_S: Final = 20.0  # a start may take so much longer; a card needs about one second of it
logger = logging.getLogger(__name__)


def choose_chunk(engine: Engine, blank: Callable[[int], torch.Tensor], device: torch.device) -> None:
    """Measure on the device, and make what was found the engine's limit; says so in the log."""
    began = time.perf_counter()

    def measure(size: int) -> float | None:
        chunk_size = engine.chunk_size = AdaptiveBatchSize(size)
        pixels, seconds = blank(size), []
        with MemoryWatch(device) as memory:
            engine.submit(pixels).result()  # first-time costs
            for _ in range(MEASURED_TIMES):
                started = time.perf_counter()
                engine.submit(pixels).result()
                seconds.append(time.perf_counter() - started)
        return size / min(seconds) if chunk_size.size == size and memory.share_used <= MEMORY_SHARE else None

    chosen, rates = find_chunk(SIZES[device.type], measure)
    engine.chunk_size = AdaptiveBatchSize(chosen)
    told = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
    logger.info("chunks of %d images, measured in %.1f s (images/s: %s)", chosen, time.perf_counter() - began, told)


def find_chunk(
    sizes: Iterable[int],
    measure: Callable[[int], float | None],
    *,
    budget_s: float = SEARCH_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, dict[int, float]]:
    """Try ascending sizes until throughput stops growing.

    Args:
        sizes: ascending; the first one is taken whatever it gives.
        measure: images per second at a size, or None where it does not fit into memory.
        budget_s: no further size is tried when this time is over, or would be, since a size takes
            about twice as long as the one before.

    Returns:
        The smallest size within 5 % of the fastest, and what was measured: size → images per second.
    """
    began, last_s = clock(), 0.0
    rates: dict[int, float] = {}
    first = 0
    for size in sizes:
        first = first or size
        started = clock()
        if rates and started - began + 2 * last_s > budget_s:
            break
        rate = measure(size)
        last_s = clock() - started
        if rate is None:
            break
        grows = not rates or rate > GROWTH_WORTH * max(rates.values())
        rates[size] = rate
        if not grows:
            break
    if not rates:
        return first, rates
    enough = max(rates.values()) / GROWTH_WORTH
    return min(size for size, rate in rates.items() if rate >= enough), rates
