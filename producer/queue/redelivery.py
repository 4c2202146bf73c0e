"""Find open batches that nobody will ever deliver, and send them again.

Two kinds. Batches that were given back are known by name: they are sent as soon as their pause is over.
Lost ones (a message that Redis had and has no more, a worker that died whole) must be looked for: among all
open batches, those that lie on no lane and in nobody's hands. That look reads every message that is queued, so
one process alone does it, and it rests fifty times as long as the look took.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from producer.errors import BadMessage, NewerMessage, RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.keys import REDELIVERY_LEASE
from producer.queue.locks import Lease
from producer.queue.messages import EmbedBatch

LOOK_EVERY_S: Final = 5.0
REST_TIMES: Final = 50  # so that looking takes at most a fiftieth of the time, Redis' and ours
LONGEST_REST_S: Final = 60.0
RETURNED_EVERY_S: Final = 1.0
GRACE_S: Final = 8.0  # between "written down" and "sent", and between "taken" and "claimed", lie milliseconds
logger = logging.getLogger(__name__)


class Redelivery:
    """Whoever is alive calls `run` again and again; it does what is due. Duplicates do no harm."""

    def __init__(
        self,
        claims: Claims,
        job_store: JobStore,
        send: Callable[[EmbedBatch], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` puts a batch on its lane; `clock` in seconds; custody and ledger stay their owner's to close."""
        self._claims, self._job_store, self._send, self._clock = claims, job_store, send, clock
        me = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._lease = Lease(job_store, REDELIVERY_LEASE, me, 2 * LOOK_EVERY_S)
        self._missing_since: dict[tuple[str, str], float] = {}
        self._look_at = self._returned_at = clock()
        self._busy = threading.Lock()  # a producer's threads share its repair

    def run(self) -> int:
        """Do what is due; how many batches were sent again."""
        if not self._busy.acquire(blocking=False):
            return 0
        try:
            sent, now = 0, self._clock()
            if now >= self._returned_at:
                self._returned_at = now + RETURNED_EVERY_S
                sent += sum(self._resend(job, name) for job, name in self._claims.returned())
            if now >= self._look_at:
                self._look_at = now + LOOK_EVERY_S
                if self._lease.take() is None:
                    sent += self._look()
                    rest_s = min(LONGEST_REST_S, max(LOOK_EVERY_S, REST_TIMES * (self._clock() - now)))
                    self._look_at = now + rest_s
                    self._lease.take(2 * rest_s)
                else:
                    self._missing_since.clear()
            return sent
        finally:
            self._busy.release()

    def close(self) -> None:
        """Leave the looking to another."""
        with suppress(RedisUnreachable):
            self._lease.let_go()

    def _look(self) -> int:
        """Send what was missed in two looks that lie GRACE_S or more apart."""
        opened = {name: job for job in self._job_store.active() for name in self._claims.opened(job)}
        missing = set(opened) - self._claims.queued(opened) if opened else set()
        missing -= self._claims.claimed(missing)
        now = self._clock()
        found = {(opened[name], name) for name in missing}
        self._missing_since = {batch: self._missing_since.get(batch, now) for batch in found}
        lost = [batch for batch, since in self._missing_since.items() if now - since >= GRACE_S]
        for batch in lost:
            del self._missing_since[batch]
        return sum(self._resend(*batch) for batch in lost)

    def _resend(self, job: str, name: str) -> bool:
        try:
            batch = self._claims.load(job, name)
        except NewerMessage as error:  # it stays open, for those who can read it
            logger.info("batch %s is left to a newer worker: %s", name, error)
            return False
        except BadMessage as error:
            count = self._claims.fail_unreadable(job, name, f"its batch can be read by no worker: {error}")
            logger.error("batch %s can be read by no worker, its %d posters fail: %s", name, count, error)
            return False
        if batch is None:
            return False
        self._send(batch)
        return True
