"""Exponential backoff with jitter, for outages of the store and of the posters root."""

from __future__ import annotations

import math
import random
import time
from typing import Final

FIRST_PAUSE_S: Final = 2.0  # doubles
MAX_PAUSE_S: Final = 60.0


class Backoff:
    """Exponential backoff with jitter for transient failures: 2 s, 4 s … 60 s, a quarter more or less.

    A pause doubles when a failure outlasts it. Failures of other batches before its end are the same outage, which is
    why redis.backoff does not serve: it counts failures.
    """

    def __init__(self) -> None:
        self._pause_s, self._ends_at = 0.0, 0.0  # `_ends_at`: monotonic, end of the last pause
        self.reset()

    def pause_s(self) -> float:
        """The pause after a failure."""
        now = time.monotonic()
        if now >= self._ends_at:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._ends_at = now + self._pause_s
        return self._pause_s * random.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begin with the shortest pause again, after a success."""
        self._pause_s, self._ends_at = FIRST_PAUSE_S / 2, -math.inf
