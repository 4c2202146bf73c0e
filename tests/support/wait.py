"""Waiting for something to come true in processes that are being hurt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

from producer.errors import PosterError

LOOK_S = 0.02
LONG_S = 120.0  # a noisy machine with two cores starts a worker in 20 s


def wait_for(look: Callable[[], Any], what: str, within_s: float = LONG_S) -> Any:
    """Until `look` returns something true, which is returned; Redis may be away meanwhile."""
    ends = time.monotonic() + within_s
    while True:
        try:
            found = look()
        except (PosterError, redis.RedisError, AssertionError):
            found = None
        if found:
            return found
        if time.monotonic() > ends:
            raise AssertionError(f"waited {within_s:.0f} s in vain for {what}")
        time.sleep(LOOK_S)
