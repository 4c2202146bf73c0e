"""Figures of requests: how long they wait and take, and how many are answered per second."""

from __future__ import annotations

import time
from bisect import bisect_left
from itertools import accumulate
from typing import Final

# Upper bounds for Prometheus, from a text alone on a card to the longest that a caller waits.
BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATE_DECAY: Final = 0.8  # weight of the earlier groups: the published rate covers about the last five


class Durations:
    """Seconds, counted by the bucket that they fall into. One thread adds, others may read."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, the last of them ``+Inf``, and how many were no longer."""
        return list(zip([*map(str, BUCKETS_S), "+Inf"], accumulate(self._counts), strict=True))


class Rate:
    """Answers per second while requests wait, of the last few groups."""

    def __init__(self) -> None:
        self._count = self._seconds = 0.0
        self._ended = 0.0  # monotonic

    def add(self, count: int, began: float) -> str:
        """Count a group that was begun then and is answered now; the rate as text, empty while there is none."""
        now = time.monotonic()
        self._seconds = RATE_DECAY * self._seconds + now - max(began, self._ended)
        self._count, self._ended = RATE_DECAY * self._count + count, now
        return f"{self._count / self._seconds:.1f}" if self._seconds > 0 and self._count else ""
