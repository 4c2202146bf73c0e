"""How a batch and requests share the device: where both have work, the batch gets at least half of its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

CREDIT_S: Final = 0.5  # of device time by which requests may fall behind and make up for it later


class DeviceShare:
    """Accounts of the device's seconds, kept by the thread that runs batches and those that answer requests.

    The debt of the requests is how much longer than the batch they have used the device. While there is one, and the
    batch has something on the device, requests wait. A batch that waits for its decoders or the store leaves the device
    to them. The batch's seconds count as they pass and not chunk by chunk: a chunk takes seconds on a CPU.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.all_requests_s = 0.0  # device seconds of requests so far, during batches or not
        self._changed, self._clock = threading.Condition(), clock
        self._counted_until = clock()
        self._batch_runs = False
        self._chunks = 0  # of the batch, on the device
        self._debt_s = 0.0
        self._requests_s = 0.0  # during this batch

    @contextmanager
    def batch(self) -> Iterator[None]:
        """The time in which a batch runs."""
        with self._changed:
            self._batch_runs, self._chunks, self._requests_s = True, 0, 0.0
        try:
            yield
        finally:
            with self._changed:
                self._batch_runs, self._chunks = False, 0
                self._changed.notify_all()

    @property
    def requests_s(self) -> float:
        """Device seconds of requests during this batch, or the last one."""
        return self._requests_s

    def submitted(self) -> None:
        """The batch has put a chunk on the device."""
        with self._changed:
            self._count_batch()
            self._chunks += 1

    def fetched(self) -> None:
        """The batch has fetched a chunk."""
        with self._changed:
            self._count_batch()
            self._chunks -= 1
            self._changed.notify_all()

    def answered(self, seconds: float) -> None:
        """The device has spent so much time on requests."""
        with self._changed:
            self.all_requests_s += seconds
            if self._batch_runs:
                self._count_batch()
                self._requests_s += seconds
                # The requests had them. Where the batch had something on the device, they were counted for it.
                self._debt_s += 2 * seconds if self._chunks else seconds

    def wait_for_turn(self, timeout_s: float) -> bool:
        """Wait until requests may use the device; False if it is still the batch's turn after `timeout_s`."""
        with self._changed:
            ends = self._clock() + timeout_s
            while (debt_s := self._count_batch()) > 0 and self._chunks:
                left_s = ends - self._clock()
                if left_s <= 0:
                    return False
                self._changed.wait(min(debt_s, left_s))
            return True

    def _count_batch(self) -> float:
        """Count the time since the last call for the batch, if it had something on the device; the debt after that."""
        now = self._clock()
        if self._chunks:
            self._debt_s = max(self._debt_s - (now - self._counted_until), -CREDIT_S)
        self._counted_until = now
        return self._debt_s
