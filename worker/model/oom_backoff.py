"""Adaptive batch size: halve when memory runs out, repeat only the failed slice, grow back later. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

Result = TypeVar("Result")
GROW_AFTER: Final = 16  # successes at the full current size before a larger one is tried
MAX_GROW_AFTER: Final = 1024  # a size that failed again and again is still tried now and then


class Slice(NamedTuple, Generic[Result]):
    """Items from `start` up to `stop` and the step's result; None where not even one item fits."""

    start: int
    stop: int
    result: Result | None


class AdaptiveBatchSize:
    """Remembers the batch size that fits. Not thread-safe: one thread drives a device.

    After GROW_AFTER successes in a row at the full current size it tries twice the size, up to the
    limit. Each time that fails, it waits for twice as many successes before the next try.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the initial and the largest size."""
        if limit < 1:
            raise ValueError(f"the limit must be at least 1, not {limit}")
        self.limit = self.size = limit
        self.halvings = 0  # so far
        self._successes, self._grow_after = 0, GROW_AFTER
        self._probing = False  # `size` was just doubled and has not proven to fit yet

    def run(
        self,
        count: int,
        step: Callable[[int, int], Result],
        *,
        is_exhaustion: Callable[[Exception], bool],
        recover: Callable[[], None],
    ) -> Iterator[Slice[Result]]:
        """Cover the items 0 to `count` in order, in slices as large as fit; yield each slice once.

        Args:
            step: processes the items from start up to stop; may raise.
            is_exhaustion: whether an exception means that memory ran out. All others are raised.
            recover: frees memory. Called after the ``except`` block, whose traceback would keep alive
                the very tensors that have to be freed.
        """
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            result, exhausted = None, False
            try:
                result = step(start, stop)
            except Exception as error:
                if not is_exhaustion(error):
                    raise
                exhausted = True
            if exhausted:
                recover()
                self._record_failure(stop - start)
            else:
                self._record_success(stop - start)
            if not exhausted or stop - start == 1:
                yield Slice(start, stop, result)
                start = stop

    def _record_success(self, size: int) -> None:
        if size < self.size or self.size == self.limit:
            self._probing = self._probing and size < self.size
            return
        if self._probing:
            self._probing, self._grow_after = False, GROW_AFTER
        self._successes += 1
        if self._successes >= self._grow_after:
            self.size, self._successes, self._probing = min(2 * self.size, self.limit), 0, True

    def _record_failure(self, size: int) -> None:
        if self._probing:
            self._grow_after = min(2 * self._grow_after, MAX_GROW_AFTER)
        self.halvings += 1
        self.size, self._successes, self._probing = max(1, size // 2), 0, False
