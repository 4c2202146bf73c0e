"""A bound on what several threads hold in memory at once, in bytes and not in images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Lets threads hold `limit_bytes` together; who asks for more than is left waits.

    What is larger than the whole budget is let in when nobody else holds anything: it is refused by
    other limits or not at all, and waiting for room that never comes would be worse.
    """

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` must be positive."""
        if limit_bytes < 1:
            raise ValueError(f"the budget must be at least 1 byte, not {limit_bytes}")
        self._limit, self._held = limit_bytes, 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount_bytes: int) -> Iterator[None]:
        """Hold so many bytes inside the block. Blocks must not be nested: two threads could wait for each other."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + amount_bytes <= self._limit)
            self._held += amount_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount_bytes
                self._changed.notify_all()
