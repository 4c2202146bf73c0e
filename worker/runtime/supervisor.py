"""Supervisor thread of the worker's main process: redelivers lost batches, and enforces the shutdown.

The undocumented parts of Celery and billiard that are used are listed in worker/broker/__init__.py.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

from celery.worker import state as celery_state

from producer.errors import PosterError
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.messages import BatchMessage
from producer.queue.redelivery import Redelivery
from producer.queue.sender import create_sender, send
from producer.queue.workers import FAILED, LOADING, READY, UNLOADED_SINCE, Announcement, WorkerRegistry
from producer.settings import Settings
from worker.broker.child import Child
from worker.runtime.batch_runner import BatchRunner
from worker.runtime.heartbeat import EX_SOFTWARE, EX_TEMPFAIL, EX_WRONG_VECTORS, FORCE_S, exit_now
from worker.runtime.unloading import IdleUnload

POLL_S: Final = 1.0  # a failed start stops the worker, and a released batch is sent again, within this time
CRASHES: Final = {("exitcode", 1)} | {
    ("signal", number)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP")
    if (number := getattr(signal, name, None)) is not None
}
MAX_WRONG_VECTORS: Final = 2  # children of one worker that end because their device is wrong
IDLE_S: Final = 3.0  # an idle child exits by itself in less; one that is still loading its model does not
logger = logging.getLogger(__name__)


class Supervisor(threading.Thread):
    """Runs from the worker's start, and after `close` until the process exits."""

    def __init__(
        self, settings: Settings, consumer: Any, owner: str, *, give_up: Callable[[], None], runner: BatchRunner | None
    ) -> None:
        """Supervise the worker with the id `owner`, which its child shares.

        `consumer` is Celery's; `give_up` is called when the child could not load the model; `runner` is that of a
        solo worker, which has no child.
        """
        super().__init__(name="supervisor", daemon=True)
        self._settings, self._consumer, self._give_up, self._runner = settings, consumer, give_up, runner
        self._owner = owner
        self._job_store = JobStore(settings.redis_url, claim_s=settings.claim_s, keep_s=settings.keep_jobs_days * 86400)
        self._claims = Claims(self._job_store)
        self._closing = threading.Event()
        self._cold = False
        self._wrong_vectors = 0  # children that ended for that
        self._registry = WorkerRegistry(settings.redis_url)
        self._child = Child(consumer)
        self._unload: IdleUnload | None = None
        if settings.idle_unload_s is not None and runner is None:
            self._unload = IdleUnload(settings, owner, self._child, self._job_store, self._registry)

    def run(self) -> None:
        """Supervise until the process exits; end it on any error, as it could neither stop nor redeliver then."""
        try:
            self._supervise()
        except Exception:
            logger.critical("the supervisor failed; this worker exits so that it can be restarted", exc_info=True)
            with suppress(OSError):
                self._child.signal(signal.SIGTERM)  # so that it releases its batch
            exit_now(EX_SOFTWARE)

    def _supervise(self) -> None:
        """Redeliver lost batches until the worker closes; then make sure that it exits within settings.stop_s."""
        app = create_sender(self._settings)  # as a producer's: bounded waiting, connections of its own
        redelivery = Redelivery(self._claims, self._job_store, lambda batch: send(app, batch))
        self._redeliver_until_closing(redelivery)
        redelivery.close()
        self._enforce_shutdown()

    def release_dead(self, message: object, reason: BaseException | None) -> None:
        """Release the batch that a child died with, unless the child did; called in Celery's thread.

        `reason`: Celery's WorkerLostError.
        """
        if self._runner is not None:
            return  # a solo worker has no child
        if _ending(reason) == ("exitcode", EX_WRONG_VECTORS):
            self._wrong_vectors += 1
            if self._wrong_vectors >= MAX_WRONG_VECTORS:
                logger.critical(
                    "the device has computed wrong vectors %d times: this worker ends. Test the card and its memory, "
                    "or set POSTERS_DEVICE=cpu",
                    self._wrong_vectors,
                )
                self._give_up()
        try:
            self._claims.release_dead(BatchMessage.decode(message), self._owner, crashed=is_crash(reason))
        except PosterError as error:
            logger.warning("the batch of a dead child cannot be released until its claim expires: %s", error)

    def close(self, *, at_once: bool) -> None:
        """Begin the shutdown: the batch in progress has settings.stop_s, or no time if `at_once`. Does not block."""
        self._cold = self._cold or at_once
        self._closing.set()
        if self._cold and self._runner is not None:
            self._runner.stop_after_chunk()

    def leave(self) -> None:
        """Remove what a child leaves to its parent, when the worker ends."""
        self._closing.set()
        if self._unload is not None:
            self._unload.close()

    def _redeliver_until_closing(self, redelivery: Redelivery) -> None:
        first, outage_logged = True, False
        while not self._closing.wait(POLL_S) and not self._pool_is_closing():
            try:
                entry = self._registry.get(self._owner)
                is_reloading = self._unload is not None and self._unload.step(entry)
                if entry is not None and entry.state == FAILED and not is_reloading:
                    self._give_up()
                    return
                if entry is not None and entry.get("ending"):
                    self._end(entry.get("ending"))
                if entry is not None and not is_reloading and self._is_of_dead_child(entry):
                    fields = {name: text for name, text in entry.fields.items() if name != "at"}
                    self._registry.publish(self._owner, LOADING, fields | {"reason": "its process ended", "fault": ""})
                if entry is None and self._runner is None and first:
                    self._registry.publish(self._owner, LOADING, {})  # until the child publishes its own entry
                first = False
                sent = redelivery.run()
                if sent:
                    logger.warning("%d batch(es) sent again", sent)
                outage_logged = False
            except PosterError as error:
                if not outage_logged:
                    logger.warning("redelivery of lost batches is delayed: %s", error)
                outage_logged = True
            except Exception:  # a defect: batches in work go on, and a stop must still be noticed
                logger.exception("redelivery of lost batches failed; it will be retried")

    def _is_of_dead_child(self, entry: Announcement) -> bool:
        """Whether the entry says that a child is ready which has ended; its successor publishes its own when it is up.

        The main process may be busy: a child that has just been started can be missing for a moment.
        """
        if self._runner is not None or entry.state != READY or entry.get(UNLOADED_SINCE):
            return False
        return entry.get("pid") not in map(str, self._child.pids())

    def _end(self, reason: str) -> NoReturn:
        """End the worker, whose child has found that only a restart may help; the child releases its batch."""
        logger.critical("this worker exits so that it can be restarted: %s", reason)
        if self._runner is not None:
            self._runner.stop_after_chunk()  # the heartbeat ends a batch that does not stop
        children = self._child.pids()
        self._child.signal(signal.SIGTERM)
        ends = time.monotonic() + FORCE_S
        while time.monotonic() < ends and (self._is_solo_busy() or any(one in self._child.pids() for one in children)):
            time.sleep(POLL_S / 10)
        with suppress(OSError):
            self._child.signal(signal.SIGKILL)
        self.leave()
        exit_now(EX_TEMPFAIL)

    def _is_solo_busy(self) -> bool:
        return self._runner is not None and bool(celery_state.active_requests)

    def _enforce_shutdown(self) -> None:
        """Give the batch in progress its time, then have it released, then kill a child that does not exit."""
        began = time.monotonic()
        idle_since = terminated_at = None
        while True:
            now = time.monotonic()
            is_idle = self._runner is None and not celery_state.active_requests
            idle_since = (idle_since or now) if is_idle else None
            has_idled = idle_since is not None and now - idle_since > IDLE_S
            if self._cold or has_idled or now - began > self._settings.stop_s:
                if self._runner is not None:
                    self._runner.stop_after_chunk()  # the heartbeat ends a batch that does not stop
                elif terminated_at is None:
                    self._child.signal(signal.SIGTERM)
                    terminated_at = now
                elif now - terminated_at > FORCE_S:
                    self._child.signal(signal.SIGKILL)
            time.sleep(POLL_S / 2)

    def _pool_is_closing(self) -> bool:
        """True in a cold shutdown: Celery closes the pool before it sends the signal that calls `close`."""
        pool = getattr(self._consumer.pool, "_pool", None)
        self._cold = self._cold or (pool is not None and pool._state != 0)
        return self._cold


def is_crash(reason: BaseException | None) -> bool:
    """Whether a child died by itself, of its work, and was not killed from outside.

    billiard tells only in the text of its error how a process ended: "… signal 11 (SIGSEGV) Job: 3." Status 1 is that
    of an unhandled error, and of faulthandler's time-out.
    """
    return _ending(reason) in CRASHES


def _ending(reason: BaseException | None) -> tuple[str, int] | None:
    found = re.search(r"(signal|exitcode) (\d+)", str(reason))
    return (found[1], int(found[2])) if found else None
