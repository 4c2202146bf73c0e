"""The child of Celery's pool that holds the model: end it while there is no work, and start it again.

The undocumented parts of Celery, billiard and kombu that are used are listed in __init__.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from celery.worker import state as celery_state

from worker.broker.transport import HOLD

LOOP_S: Final = 5.0  # for the event loop to come round: it reads, writes and fires timers in milliseconds
Result = TypeVar("Result")


class Child:
    """The only process of a prefork pool. Used in another thread than that of Celery's event loop.

    Celery replaces a child that ends, unless the pool has shrunk. Shrinking and growing change what the event loop
    uses, so they run in its thread.
    """

    def __init__(self, consumer: Any) -> None:
        """`consumer` is Celery's."""
        self._consumer = consumer

    def pids(self) -> list[int]:
        """Process ids: one; two at most while a child is being replaced; none after `end`."""
        pool = getattr(self._consumer.pool, "_pool", None)
        return [child.pid for child in list(getattr(pool, "_pool", ())) if child.pid is not None]

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def has_message(self) -> bool:
        """Whether Celery holds a message for it, or is doing one."""
        return bool(celery_state.reserved_requests)

    def hold(self, is_held: bool) -> None:
        """Ask Redis for no message until it is called with False."""
        if is_held:
            HOLD.set()
        else:
            HOLD.clear()

    def end(self) -> bool:
        """Have it end by SIGTERM, and not be replaced; on `hold`.

        False, and nothing has changed, where a message is on its way: Redis may have answered the last question.
        """
        return self._in_event_loop(self._shrink) or False

    def start(self) -> bool:
        """Start it again, once it has ended; False, and nothing has changed, where the event loop is busy."""
        return self._in_event_loop(self._grow) or False

    def _shrink(self) -> bool:
        consumer = getattr(self._consumer, "task_consumer", None)
        if consumer is None or consumer.channel._in_poll or self.has_message():
            return False
        if self._consumer.pool.num_processes:
            self._consumer.pool.shrink(1)
        return True

    def _grow(self) -> bool:
        if not self._consumer.pool.num_processes:
            self._consumer.pool.grow(1)
        self._consumer.pool.maintain_pool()  # Celery alone would, within 5 s
        return True

    def _in_event_loop(self, call: Callable[[], Result]) -> Result | None:
        """What `call` returns in the thread of the event loop; None, and it is not called, where that is busy."""
        done: Future[Result] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(call())
                except Exception as error:  # noqa: BLE001 - the thread that waits raises it; here it ends the consumer
                    done.set_exception(error)

        self._consumer.hub.call_soon(run)
        try:
            return done.result(LOOP_S)
        except TimeoutError:
            return None if done.cancel() else done.result()
