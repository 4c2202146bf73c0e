"""Wait for a condition while processes fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

from producer.errors import PosterError

POLL_S = 0.02
TIMEOUT_S = 120.0  # a busy machine with two cores starts a worker in 20 s


def wait_for(condition: Callable[[], Any], what: str, within_s: float = TIMEOUT_S) -> Any:
    """Call `condition` until it returns something true, and return that; errors of Redis count as false."""
    ends = time.monotonic() + within_s
    while True:
        try:
            found = condition()
        except (PosterError, redis.RedisError, AssertionError):
            found = None
        if found:
            return found
        if time.monotonic() > ends:
            raise AssertionError(f"timed out after {within_s:.0f} s waiting for {what}")
        time.sleep(POLL_S)
