"""What to do when memory runs out: halve, redo only the slice that failed, grow back later. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

Result = TypeVar("Result")
GROW_AFTER: Final = 16  # full-sized successes before a larger size is tried again
PATIENCE_MOST: Final = 1024  # successes; a size that failed again and again is still tried now and then


class Slice(NamedTuple, Generic[Result]):
    """Items from `start` up to `stop`, and what the step made of them; None where not even one item fits."""

    start: int
    stop: int
    result: Result | None


class AdaptiveBatchSize:
    """Remembers the size that fits. Not safe to share between threads: a device has one driver.

    After GROW_AFTER successes in a row at the full current size it tries twice the size, up to the
    limit; each time that fails, it waits twice as long before the next try.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the size to begin with, and never to exceed."""
        if limit < 1:
            raise ValueError(f"the limit must be at least 1, not {limit}")
        self.limit = limit
        self.size = limit
        self._successes = 0
        self._patience = GROW_AFTER
        self._probing = False

    def run(
        self,
        count: int,
        step: Callable[[int, int], Result],
        *,
        is_exhaustion: Callable[[Exception], bool],
        recover: Callable[[], None],
    ) -> Iterator[Slice[Result]]:
        """Cover the items 0 to `count` in order, in slices as large as fit; yields each slice once.

        Args:
            step: does the items from start up to stop; may raise.
            is_exhaustion: tells whether what it raised means that memory ran out. All else is raised.
            recover: frees memory. Called after the ``except`` block was left: inside it, the
                traceback would keep alive the very tensors that have to go.
        """
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            exhausted = False
            try:
                result = step(start, stop)
            except Exception as error:
                if not is_exhaustion(error):
                    raise
                exhausted = True
            if not exhausted:
                self._fits(stop - start)
                yield Slice(start, stop, result)
                start = stop
                continue
            recover()
            if stop - start == 1:
                self._fails(1)
                yield Slice(start, stop, None)
                start = stop
            else:
                self._fails(stop - start)

    def _fits(self, size: int) -> None:
        if size < self.size or self.size == self.limit:
            self._probing = self._probing and size < self.size
            return
        if self._probing:
            self._probing, self._patience = False, GROW_AFTER
        self._successes += 1
        if self._successes >= self._patience:
            self.size, self._successes, self._probing = min(2 * self.size, self.limit), 0, True

    def _fails(self, size: int) -> None:
        if self._probing:
            self._patience = min(2 * self._patience, PATIENCE_MOST)
        self.size, self._successes, self._probing = max(1, size // 2), 0, False
