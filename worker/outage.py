"""An outage: trouble that passes, and how long to rest before what met it is tried again."""

from __future__ import annotations

import random
import time
from typing import Final

FIRST_PAUSE_S: Final = 2.0  # doubles
LONGEST_PAUSE_S: Final = 60.0


class Outage:
    """Pauses of 2 s, 4 s … 60 s, a quarter more or less, so that not all come back at once."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._grows_at: float | None = None  # monotonic: when the pause that was given last is over

    def pause_s(self) -> float:
        """Doubles when trouble outlasts a pause; the batches that meet it meanwhile do not count as more of it."""
        now = time.monotonic()
        if self._grows_at is None or now >= self._grows_at:
            if self._grows_at is not None:
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._grows_at = now + self._pause_s
        return self._pause_s * random.uniform(0.75, 1.25)

    def is_over(self) -> None:
        """Something went well: the next trouble is a new one."""
        self._pause_s, self._grows_at = FIRST_PAUSE_S, None
