"""Heartbeat thread: renews the current claim, the GPU lease and the registry entry, and ends what hangs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, NoReturn

from producer.errors import RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.locks import Lease
from producer.queue.messages import EmbedBatch
from producer.queue.workers import RENEWAL_S, WorkerRegistry
from producer.settings import Settings

HEARTBEAT_S: Final = 0.5  # how often progress is reported
FORCE_S: Final = 5.0  # between asking a batch to stop and ending its process; a chunk takes less
JOIN_S: Final = 5.0  # a heartbeat that meets a hanging Redis takes so long
EX_TEMPFAIL: Final = 75  # sysexits.h: temporary failure, try again
logger = logging.getLogger(__name__)


class BatchInterrupted(Exception):
    """The batch in progress must be left at once: this worker stops, or another worker has the batch."""


class _Current(NamedTuple):
    batch: EmbedBatch
    holder: str
    since: float  # monotonic


class Heartbeat(threading.Thread):
    """Renews the current claim, the GPU lease and the registry entry until `stop`.

    Attributes:
        owner: id of the worker, shared by a parent process and its children.
        stopping: set when this worker is to release the batch in progress.
        gpu_lease: the lease of the worker's GPU; None while it has none.
        fields: fields of the registry entry beside its state.
    """

    def __init__(self, settings: Settings, owner: str, job_store: JobStore, *, solo: bool) -> None:
        """`owner` is the key of the registry entry; `solo`: there is no parent process that ends a batch that hangs."""
        super().__init__(name="heartbeat", daemon=True)
        self.owner, self.stopping = owner, threading.Event()
        self.gpu_lease: Lease | None = None
        self.fields: dict[str, object] = {}
        self._state = ""
        self._settings, self._solo = settings, solo
        self._claims, self._registry = Claims(job_store), WorkerRegistry(settings.redis_url)
        self._current: _Current | None = None
        self._done, self._lost = 0, False
        self._stopping_since: float | None = None
        self._request_since: float | None = None
        self._ended = threading.Event()

    def publish(self, state: str, **fields: object) -> bool:
        """Publish a state now and with every renewal; False while Redis is unreachable."""
        self._state, self.fields = state, self.fields | fields
        try:
            self._registry.publish(self.owner, state, self.fields)
        except RedisUnreachable:
            return False
        return True

    @contextmanager
    def keep_claim(self, batch: EmbedBatch, holder: str) -> Iterator[None]:
        """Renew the claim inside the block."""
        self._done, self._lost, self._current = 0, False, _Current(batch, holder, time.monotonic())
        try:
            yield
        finally:
            self._current = None

    @contextmanager
    def watch_request(self) -> Iterator[None]:
        """In a solo worker, end the process when the block takes longer than a batch may."""
        self._request_since = time.monotonic()
        try:
            yield
        finally:
            self._request_since = None

    def report(self, done: int) -> None:
        """Note how many posters are done; raises BatchInterrupted when the rest is not to be done here."""
        self._done = done
        if self._lost:
            raise BatchInterrupted("another worker has it, or it is finished")
        if self.stopping.is_set():
            raise BatchInterrupted("this worker stops")

    def is_overdue(self) -> bool:
        """True when the batch in progress has exceeded its time limit."""
        current = self._current
        return current is not None and time.monotonic() - current.since >= self._settings.batch_time_limit_s

    def run(self) -> None:
        """Renew every HEARTBEAT_S what is due."""
        entry_renewed = claim_renewed = -1e9
        reported = -1
        while not self._ended.wait(HEARTBEAT_S):
            now, current = time.monotonic(), self._current
            try:
                if current and (self._done != reported or now - claim_renewed > self._settings.claim_s / 3):
                    reported, claim_renewed = self._done, now
                    if not self._claims.renew(current.batch, current.holder, reported) and self._current is current:
                        self._lost = True
                if now - entry_renewed > RENEWAL_S:
                    entry_renewed = now
                    self._renew_gpu_lease(current)
                    if self._state:
                        self._registry.publish(self.owner, self._state, self.fields)
            except RedisUnreachable:
                entry_renewed = now  # logged by the thread that runs the batch; try again at the next renewal
            if self._solo:
                self._end_if_hanging(current, now)

    def stop(self) -> None:
        """End the thread, remove the registry entry, release the GPU."""
        self._ended.set()
        if self.is_alive():
            self.join(JOIN_S)  # so that it does not publish the entry again
        try:
            self._registry.withdraw(self.owner)
        except RedisUnreachable:
            logger.info("Redis is unreachable; registry entry and lease expire by themselves")
        self.release_gpu()
        self._registry.close()

    def release_gpu(self) -> None:
        """Release the GPU's lease, and renew it no more."""
        lease, self.gpu_lease = self.gpu_lease, None
        if lease is not None:
            with suppress(RedisUnreachable):  # it expires by itself
                lease.release()

    def _renew_gpu_lease(self, current: _Current | None) -> None:
        lease = self.gpu_lease
        holder = lease.acquire() if lease else None
        if holder is not None:
            logger.critical("%s took the GPU while this worker could not reach Redis; this process exits", holder)
            self._release_and_exit(current)

    def _end_if_hanging(self, current: _Current | None, now: float) -> None:
        """In a solo worker, end a request or batch that hangs, and a batch that does not stop when it is asked to."""
        limit_s = self._settings.batch_time_limit_s
        request_since = self._request_since  # another thread sets it to None
        if request_since is not None and now - request_since > limit_s:
            logger.critical("an image request hangs; this process exits, the service manager starts another")
            exit_now(EX_TEMPFAIL)
        if current is None:
            return
        name = current.batch.batch
        if now - current.since > limit_s:
            logger.critical("batch %s hangs; this process exits, the service manager starts another", name)
            exit_now(EX_TEMPFAIL)
        if not self.stopping.is_set():
            self._stopping_since = None
        elif self._stopping_since is None:
            self._stopping_since = now
        elif now - self._stopping_since > FORCE_S:
            logger.critical("batch %s does not stop; it is released, and this process exits", name)
            self._release_and_exit(current)

    def _release_and_exit(self, current: _Current | None) -> None:
        if current:
            with suppress(RedisUnreachable):  # its claim expires by itself
                self._claims.release(current.batch, current.holder)
        exit_now(EX_TEMPFAIL)


def exit_now(status: int) -> NoReturn:
    """End the process without the interpreter's shutdown, which would wait for what does not end."""
    logging.shutdown()
    os._exit(status)
