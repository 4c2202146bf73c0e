"""A worker's pulse: a thread that keeps its claim, its card and its announcement alive, and ends what hangs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from producer.errors import RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.locks import Lease
from producer.queue.messages import EmbedBatch
from producer.queue.workers import RENEWAL_S, WorkerRegistry
from producer.settings import Settings

HEARTBEAT_S: Final = 0.5  # how often the ledger hears how far a batch is
FORCE_S: Final = 5.0  # from being asked to leave a batch to being made to; a chunk is over in less
JOIN_S: Final = 5.0  # a beat that meets a Redis that hangs takes so long
EX_TEMPFAIL: Final = 75  # sysexits.h: temporary failure, try again
logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The batch in work is to be left at once: this worker stops, or the batch is another's."""


class Heartbeat(threading.Thread):
    """Beats until `stop`; says what the worker last said of itself, and one batch at a time is its concern.

    Attributes:
        owner: whose pulse it is, a parent process with all its children.
        leaving: this worker is asked to give back what it works on.
        card: the lease of the card that it works on; None while it has none.
        fields: what the worker says of itself beside its state.
    """

    def __init__(self, settings: Settings, owner: str, job_store: JobStore, *, solo: bool) -> None:
        """`owner` signs the announcement; `solo`: no parent process ends a batch that hangs."""
        super().__init__(name="pulse", daemon=True)
        self.owner, self.leaving = owner, threading.Event()
        self.card: Lease | None = None
        self.fields: dict[str, object] = {}
        self._state = ""
        self._settings, self._solo = settings, solo
        self._claims, self.registry = Claims(job_store), WorkerRegistry(settings.redis_url)
        self._work: tuple[EmbedBatch, str, float] | None = None  # batch, holder, when it began
        self._done, self._lost = 0, False
        self._left_at: float | None = None
        self._looking_since: float | None = None
        self._ended = threading.Event()

    def publish(self, state: str, **fields: object) -> bool:
        """Announce a state, now and for as long as this thread beats; False while Redis does not hear it."""
        self._state, self.fields = state, self.fields | fields
        try:
            self.registry.publish(self.owner, state, self.fields)
        except RedisUnreachable:
            return False
        return True

    @contextmanager
    def work(self, batch: EmbedBatch, holder: str) -> Iterator[None]:
        """Keep the claim alive inside the block."""
        self._done, self._lost, self._work = 0, False, (batch, holder, time.monotonic())
        try:
            yield
        finally:
            self._work = None

    @contextmanager
    def look(self) -> Iterator[None]:
        """Inside the block something that is no batch is worked on; in a solo worker it may take as long as one."""
        self._looking_since = time.monotonic()
        try:
            yield
        finally:
            self._looking_since = None

    def tell(self, done: int) -> None:
        """Hear how many posters are done; Stopped when the rest is not to be done here."""
        self._done = done
        if self._lost:
            raise Stopped("another worker has it now, or it was finished")
        if self.leaving.is_set():
            raise Stopped("this worker stops")

    def overdue(self) -> bool:
        """True when the batch in work has taken longer than it may."""
        work = self._work
        return work is not None and time.monotonic() - work[2] >= self._settings.batch_time_limit_s

    def run(self) -> None:
        """Beat every PULSE_S."""
        renewed = beaten = -1e9
        said = -1
        while not self._ended.wait(HEARTBEAT_S):
            now, work = time.monotonic(), self._work
            try:
                if work and (self._done != said or now - beaten > self._settings.claim_s / 3):
                    said, beaten = self._done, now
                    if not self._claims.renew(work[0], work[1], said) and self._work is work:
                        self._lost = True
                if now - renewed > RENEWAL_S:
                    renewed = now
                    self._keep_card(work)
                    if self._state:
                        self.registry.publish(self.owner, self._state, self.fields)
            except RedisUnreachable:
                renewed = now  # whoever works reports it; try again at the next renewal
            if self._solo and work:
                self._watch(work, now)
            looking = self._looking_since
            if self._solo and looking is not None and now - looking > self._settings.batch_time_limit_s:
                logger.critical("a query hangs; this process leaves, its supervisor starts another")
                _exit()

    def stop(self) -> None:
        """End the thread, withdraw the announcement, let go of the card."""
        self._ended.set()
        if self.is_alive():
            self.join(JOIN_S)  # so that it says nothing after the farewell
        try:
            self.registry.withdraw(self.owner)
        except RedisUnreachable:
            logger.info("Redis is away; announcement and lease expire by themselves")
        self.leave_card()
        self.registry.close()

    def leave_card(self) -> None:
        """Let go of the card, and renew its lease no more."""
        card, self.card = self.card, None
        if card is not None:
            with suppress(RedisUnreachable):  # the lease expires by itself
                card.release()

    def _keep_card(self, work: tuple[EmbedBatch, str, float] | None) -> None:
        card = self.card
        holder = card.acquire() if card else None
        if holder is None:
            return
        logger.critical("the card went to %s while Redis did not hear this worker; this process leaves it", holder)
        self._leave(work)

    def _watch(self, work: tuple[EmbedBatch, str, float], now: float) -> None:
        """In a solo worker: end a batch that hangs, or that does not stop when it is asked to."""
        if now - work[2] > self._settings.batch_time_limit_s:
            logger.critical("batch %s hangs; this process leaves, its supervisor starts another", work[0].batch)
            _exit()
        if not self.leaving.is_set():
            self._left_at = None
        elif self._left_at is None:
            self._left_at = now
        elif now - self._left_at > FORCE_S:
            logger.critical("batch %s does not stop; it is given back, and this process leaves", work[0].batch)
            self._leave(work)

    def _leave(self, work: tuple[EmbedBatch, str, float] | None) -> None:
        if work:
            with suppress(RedisUnreachable):  # its claim expires by itself
                self._claims.release(work[0], work[1])
        _exit()


def _exit() -> None:
    logging.shutdown()
    os._exit(EX_TEMPFAIL)  # a normal exit would wait for what does not end
