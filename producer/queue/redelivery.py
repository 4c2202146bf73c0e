"""Redelivery: send open batches again whose message is gone.

Returned batches, and the halves of split ones, are known by name: they are sent as soon as their pause is over.
Lost ones (Redis lost the message, a worker died with parent and child) must be searched: among all open batches,
those that are on no lane and not claimed. The scan reads every message that is queued, so one process alone does
it, and then rests fifty times as long as the scan took. A batch need not be read for that: one that a newer version
recorded is sent as well.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from producer.errors import RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.keys import REDELIVERY_LEASE
from producer.queue.locks import Lease
from producer.queue.messages import BatchMessage

SCAN_EVERY_S: Final = 5.0
REST_FACTOR: Final = 50  # so that scanning takes at most a fiftieth of the time, Redis' and ours
MAX_REST_S: Final = 60.0
RETURNED_EVERY_S: Final = 1.0
GRACE_S: Final = 8.0  # recording and sending a batch, and taking and claiming it, are milliseconds apart
Clock = Callable[[], float]


class Redelivery:
    """Producers and workers call `run` repeatedly; it does what is due. Duplicates do no harm."""

    def __init__(
        self, claims: Claims, job_store: JobStore, send: Callable[[BatchMessage], None], clock: Clock = time.monotonic
    ) -> None:
        """`send` puts a batch on its lane; `clock` in seconds; claims and job store are the caller's to close."""
        self._claims, self._job_store, self._send, self._clock = claims, job_store, send, clock
        me = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._lease = Lease(job_store, REDELIVERY_LEASE, me, 2 * SCAN_EVERY_S)
        self._missing_since: dict[tuple[str, str], float] = {}
        self._scan_at = self._returned_at = clock()
        self._busy = threading.Lock()  # a producer's threads share this object

    def run(self) -> int:
        """Do what is due. Returns how many batches were sent again."""
        if not self._busy.acquire(blocking=False):
            return 0
        try:
            sent, now = 0, self._clock()
            if now >= self._returned_at:
                self._returned_at = now + RETURNED_EVERY_S
                sent += sum(self._resend(job, name) for job, name in self._claims.take_returned())
            if now >= self._scan_at:
                self._scan_at = now + SCAN_EVERY_S
                if self._lease.acquire() is None:
                    sent += self._resend_lost()
                    rest_s = min(MAX_REST_S, max(SCAN_EVERY_S, REST_FACTOR * (self._clock() - now)))
                    self._scan_at = now + rest_s
                    self._lease.acquire(2 * rest_s)
                else:
                    self._missing_since.clear()
            return sent
        finally:
            self._busy.release()

    def close(self) -> None:
        """Leave the scanning to another process."""
        with suppress(RedisUnreachable):
            self._lease.release()

    def _resend_lost(self) -> int:
        """Send what was missing in two scans that are GRACE_S or more apart."""
        opened = {name: job for job in self._job_store.list_active() for name in self._claims.open_batches(job)}
        missing = set(opened) - self._claims.queued(opened) if opened else set()
        missing -= self._claims.claimed(missing)
        missing -= self._claims.resting() if missing else set()
        now = self._clock()
        found = {(opened[name], name) for name in missing}
        self._missing_since = {batch: self._missing_since.get(batch, now) for batch in found}
        lost = [batch for batch, since in self._missing_since.items() if now - since >= GRACE_S]
        for batch in lost:
            del self._missing_since[batch]
        return sum(self._resend(*batch) for batch in lost)

    def _resend(self, job: str, name: str) -> bool:
        message = self._claims.message(job, name)
        if message is not None:
            self._send(message)
        return message is not None
