"""Heartbeat thread: renews the current claim, the GPU lease and the registry entry, and ends work that hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Final, NamedTuple, NoReturn

from producer.errors import RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.locks import Lease
from producer.queue.messages import INTERACTIVE, LANES, EmbedBatch
from producer.queue.workers import QUIET_UNTIL, READY, RENEWAL_S, UNLOADED_SINCE, WorkerRegistry
from producer.settings import Settings
from worker.runtime.health import Health

HEARTBEAT_S: Final = 0.5  # how often progress is reported
LANES_S: Final = 2.0  # between two looks whether messages wait
FORCE_S: Final = 5.0  # between asking a batch to stop and ending its process; a chunk takes less
# A process in which no Python thread has run for this long ends. Code in C that never returns the interpreter's lock
# stops the heartbeat, the handling of signals, and every other limit. The longest known stretch during work is 0.2 s
# (a WebP of 30 megapixels), and a heartbeat waits for Redis for 20 s at most; loading the model, where imports hold the
# lock for seconds, is not watched. A process that was suspended for longer (SIGSTOP) may end as well: as after any
# crash, its batch is done again, and the attempt counts.
STALL_S: Final = 60.0
JOIN_S: Final = 5.0  # how long a heartbeat blocked on an unresponsive Redis can take
EX_SOFTWARE: Final = 70  # sysexits.h: internal software error
EX_WRONG_VECTORS: Final = 79  # the first that sysexits.h leaves free: the device computes wrong vectors
EX_TEMPFAIL: Final = 75  # sysexits.h: temporary failure, try again
logger = logging.getLogger(__name__)


class BatchInterrupted(Exception):
    """Raised when this worker must abandon the batch: it is stopping, or another worker has claimed the batch."""


class _Work(NamedTuple):
    name: str
    claim: tuple[EmbedBatch, str] | None  # batch and holder; None for requests
    ends: float  # monotonic: its time limit


class Heartbeat(threading.Thread):
    """Renews the current claim, the GPU lease and the registry entry until `stop`.

    Attributes:
        owner: id of the worker, shared by a parent process and its children.
        stopping: set when this worker is to release the batch in progress.
        gpu_lease: the lease of the worker's GPU; None while it has none.
        health: what the worker notices of itself once it is ready; published as the fields `fault` and `ending`.
        fields: fields of the registry entry beside its state; never changed in place, as threads share it: see `note`.
    """

    def __init__(self, settings: Settings, owner: str, job_store: JobStore) -> None:
        """`owner` is the key of the registry entry."""
        super().__init__(name="heartbeat", daemon=True)
        self.owner, self.stopping = owner, threading.Event()
        self.gpu_lease: Lease | None = None
        self.health = Health()
        self.fields: Mapping[str, object] = {"restarts": 0}
        self._wrong_vectors = 0  # processes of this worker before this one that ended for that
        self._noting = threading.Lock()
        self._state = ""
        self._settings = settings
        self._claims, self._registry = Claims(job_store), WorkerRegistry(settings.redis_url)
        self._work: dict[int, _Work] = {}  # by thread
        self._done, self._lost = 0, False
        self._stopping_since: float | None = None
        self._ended = threading.Event()

    def note(self, **fields: object) -> None:
        """Change fields of the registry entry, which are published with the next renewal; in any thread."""
        with self._noting:
            self.fields = {**self.fields, **fields}

    def take_over(self) -> None:
        """Go on with the counts of the process that this one replaces, where it has left them in the registry."""
        before = None
        with suppress(RedisUnreachable):
            before = self._registry.get(self.owner)
        if before is not None and before.get("pid"):  # an entry without one is the parent's
            self._wrong_vectors = int(before.get("wrong_vectors") or 0)
            self.note(restarts=int(before.get("restarts") or 0) + (not before.get(UNLOADED_SINCE)))
        self.note(wrong_vectors=self._wrong_vectors)

    def publish_wrong_vectors(self) -> None:
        """Publish that the device of this process, which is about to end, has computed wrong vectors."""
        self.publish(self._state, wrong_vectors=self._wrong_vectors + 1)

    def publish(self, state: str, **fields: object) -> bool:
        """Publish a state now and with every renewal; False while Redis is unreachable, and after `stop`."""
        self._state = state
        self.note(**fields)
        if self._ended.is_set():
            return False
        try:
            self._publish_entry()
        except RedisUnreachable:
            return False
        return True

    @contextmanager
    def watch(
        self, name: str, claim: tuple[EmbedBatch, str] | None = None, *, limit_s: float | None = None
    ) -> Iterator[None]:
        """Renew the claim inside the block, and end the process if the block hangs, or no thread can run.

        Threads may watch at the same time, each one block; only one of them has a claim.

        Args:
            name: what the block works on, for the log.
            claim: batch and holder; None for requests.
            limit_s: how long the block may take; None: as long as a batch.
        """
        thread = threading.get_ident()
        if claim:
            self._done, self._lost = 0, False
        ends = time.monotonic() + (self._settings.batch_time_limit_s if limit_s is None else limit_s)
        self._work[thread] = _Work(name, claim, ends)
        _end_if_stalled()
        try:
            with self.health.steps(name) if limit_s is None else nullcontext():
                yield
        finally:
            del self._work[thread]
            if not self._work:
                faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def message(self) -> Iterator[None]:
        """The time in which a message from a lane is in hand."""
        self.note(claimed_at=time.time())
        with self.health.message():
            yield

    def report(self, done: int) -> None:
        """Note how many posters are done; raises BatchInterrupted when this worker must abandon the batch."""
        self._done = done
        self.health.step()
        if self._lost:
            raise BatchInterrupted("claimed by another worker, or already finished")
        if self.stopping.is_set():
            raise BatchInterrupted("this worker is stopping")

    def is_overdue(self) -> bool:
        """True when the batch in progress has exceeded its time limit."""
        work = self._batch()
        return work is not None and time.monotonic() >= work.ends

    def run(self) -> None:
        """Renew what is due until `stop`; end the process on any error, as without renewals its batch is taken away."""
        try:
            self._renew_until_ended()
        except Exception:
            logger.critical("the heartbeat failed; this process exits so that another takes over", exc_info=True)
            exit_now(EX_SOFTWARE)

    def _renew_until_ended(self) -> None:
        entry_renewed = claim_renewed = lanes_seen = -1e9
        reported = -1
        while not self._ended.wait(HEARTBEAT_S):
            now, work = time.monotonic(), self._batch()
            if self._work:
                _end_if_stalled()
            else:
                faulthandler.cancel_dump_traceback_later()  # `watch` may have ended while it was being armed
            claim = work.claim if work else None
            try:
                if claim and (self._done != reported or now - claim_renewed > self._settings.claim_s / 3):
                    reported, claim_renewed = self._done, now
                    if not self._claims.renew(*claim, reported) and self._batch() is work:
                        self._lost = True
                if now - entry_renewed > RENEWAL_S:
                    entry_renewed = now
                    self._renew_gpu_lease(claim)
                    if self._state:
                        self._publish_entry()
                if self._state == READY:
                    if now - lanes_seen > LANES_S:
                        lanes_seen = now
                        self.health.lanes(hold_messages=self._has_messages())
                    self._publish_fault()
            except RedisUnreachable:
                self.health.redis_is_away()
                entry_renewed = now  # logged by the thread that runs the batch; try again at the next renewal
            self._end_if_hanging(now)

    def _publish_entry(self) -> None:
        until = self._settings.quiet.until()
        self._registry.publish(self.owner, self._state, {**self.fields, **({QUIET_UNTIL: until} if until else {})})

    def _has_messages(self) -> bool:
        """Whether messages wait that this worker is to take."""
        lanes = () if self.stopping.is_set() else (INTERACTIVE,) if self._settings.quiet.until() else LANES
        return self._claims.any_queued(lanes)

    def _publish_fault(self) -> None:
        """Publish why this worker is not ready as soon as that changes; its main process reads when it must end."""
        fault = self.health.fault()
        published = self.fields.get("fault", ""), self.fields.get("ending", "")
        if (fault.reason, ending := fault.reason if fault.ends else "") == published:
            return
        if not published[0]:
            logger.error("this worker is not ready: %s", fault.reason)
        elif not fault.reason:
            logger.info("this worker is ready again")
        self.note(fault=fault.reason, ending=ending)
        self._publish_entry()

    def _batch(self) -> _Work | None:
        """The work that has a claim."""
        return next((work for work in list(self._work.values()) if work.claim), None)

    def stop(self) -> None:
        """End the thread, remove the registry entry, release the GPU.

        With `idle_unload_s` the parent does the last two, as it keeps both while the model is unloaded.
        """
        self._ended.set()
        if self.is_alive():
            self.join(JOIN_S)  # so that it does not publish the entry again
        faulthandler.cancel_dump_traceback_later()
        if self._settings.idle_unload_s is None:
            try:
                self._registry.withdraw(self.owner)
            except RedisUnreachable:
                logger.info("Redis is unreachable; registry entry and lease expire by themselves")
            self.release_gpu()
        self._registry.close()

    def release_batch(self) -> None:
        """Release the batch in progress, whose attempt does not count: this process ends for another reason."""
        batch = self._batch()
        if batch is not None and batch.claim:
            with suppress(RedisUnreachable):  # it expires by itself
                self._claims.release(*batch.claim)

    def release_gpu(self) -> None:
        """Release the GPU's lease, and renew it no more."""
        lease, self.gpu_lease = self.gpu_lease, None
        if lease is not None:
            with suppress(RedisUnreachable):  # it expires by itself
                lease.release()

    def _renew_gpu_lease(self, claim: tuple[EmbedBatch, str] | None) -> None:
        lease = self.gpu_lease
        holder = lease.acquire() if lease else None
        if holder is not None:
            logger.critical("%s took the GPU while this worker could not reach Redis; this process exits", holder)
            self._release_and_exit(claim)

    def _end_if_hanging(self, now: float) -> None:
        """End the process for work that exceeds its time limit, and for a batch that does not stop when it must.

        Not Celery's parent process, which would keep a timer for each message until its time is over, done or not.
        """
        batch = self._batch()
        for work in list(self._work.values()):
            if now > work.ends:
                logger.critical("%s exceeded its time limit; this process exits for a fresh one", work.name)
                self._release_and_exit(batch.claim if batch else None, count=work is batch)
        if not self.stopping.is_set():
            self._stopping_since = None
        elif self._stopping_since is None:
            self._stopping_since = now
        elif batch and now - self._stopping_since > FORCE_S:
            logger.critical("%s did not stop in time; releasing it and exiting", batch.name)
            self._release_and_exit(batch.claim)

    def _release_and_exit(self, claim: tuple[EmbedBatch, str] | None, *, count: bool = False) -> None:
        if claim:
            with suppress(RedisUnreachable):  # it expires by itself
                self._claims.release(*claim, count=count)
        exit_now(EX_TEMPFAIL)


def _end_if_stalled() -> None:
    """End the process with status 1, and print what its threads do, unless this is called again within STALL_S.

    faulthandler's own thread does so without the interpreter's lock.
    """
    # 2 is the file descriptor of stderr: Celery replaces sys.stderr by an object that has none.
    faulthandler.dump_traceback_later(STALL_S, exit=True, file=2)


def exit_now(status: int) -> NoReturn:
    """End the process without the interpreter's shutdown, which would wait for threads that hang."""
    logging.shutdown()
    os._exit(status)
