"""A limit in bytes on the memory that several threads use at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Lets threads reserve `limit_bytes` in total; a thread waits until its amount is available.

    An amount above the whole budget is granted when nothing else is reserved: rejecting large images is
    the task of other limits, and waiting would never end.
    """

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` must be positive."""
        if limit_bytes < 1:
            raise ValueError(f"the budget must be at least 1 byte, not {limit_bytes}")
        self._limit, self._reserved = limit_bytes, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, amount_bytes: int) -> Iterator[None]:
        """Reserve bytes for the duration of the block. Blocks must not be nested: threads could deadlock."""
        with self._changed:
            self._changed.wait_for(lambda: self._reserved == 0 or self._reserved + amount_bytes <= self._limit)
            self._reserved += amount_bytes
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= amount_bytes
                self._changed.notify_all()
