"""Do slow work ahead of its use: in threads, in order, and never further ahead than allowed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def look_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor, depth: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield ``(item, future)`` in the order of `items`, every future done.

    At most `depth` items are submitted and not yet yielded. The future carries an item's
    exception, so that one bad item never ends its neighbours: call ``future.result()``.
    When the consumer stops early, what has not begun is cancelled.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    source = iter(items)
    try:
        for item in source:
            waiting.append((item, executor.submit(function, item)))
            if len(waiting) >= depth:
                break
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # waits; what it raised is the consumer's business
            for following in source:
                waiting.append((following, executor.submit(function, following)))
                break
            yield item, future
    finally:
        for _, future in waiting:
            future.cancel()
