"""A thread of the worker's main process: sends lost batches again, and sees that the worker ends when it should."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from celery.worker import state as celery_state

from producer.errors import PosterError
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.messages import EmbedBatch
from producer.queue.redelivery import Redelivery
from producer.queue.sender import create_sender, send
from producer.queue.workers import FAILED, LOADING, WorkerRegistry
from producer.settings import Settings
from worker.runtime.batch_runner import BatchRunner
from worker.runtime.heartbeat import FORCE_S

LOOK_S: Final = 1.0  # how soon a failed start ends the worker, and a batch that was given back is sent again
IDLE_S: Final = 3.0  # an idle child leaves by itself in less; one that still loads its model does not
logger = logging.getLogger(__name__)


class Supervisor(threading.Thread):
    """Watches while the worker works, and after `close` until the process ends."""

    def __init__(
        self, settings: Settings, consumer: Any, owner: str, *, give_up: Callable[[], None], runner: BatchRunner | None
    ) -> None:
        """Of the worker `owner`, which its child signs with as well.

        `consumer` is Celery's; `give_up` is called when no model could be loaded; `station`: a solo worker's own.
        """
        super().__init__(name="attendant", daemon=True)
        self._settings, self._consumer, self._give_up, self._runner = settings, consumer, give_up, runner
        self._owner = owner
        self._job_store = JobStore(settings.redis_url, claim_s=settings.claim_s, keep_s=settings.keep_jobs_days * 86400)
        self._claims = Claims(self._job_store)
        self._closing = threading.Event()
        self._cold = False
        self._registry = WorkerRegistry(settings.redis_url)

    def run(self) -> None:
        """Look every second until the worker closes; then see to it that it does in settings.stop_s."""
        app = create_sender(self._settings)  # a producer's: bounded waiting, its own connections
        redelivery = Redelivery(self._claims, self._job_store, lambda batch: send(app, batch))
        self._tend(redelivery)
        redelivery.close()
        self._see_it_end()

    def release_dead(self, message: object) -> None:
        """Free the batch that a child died with, or was ended for; called by Celery's own thread."""
        if self._runner is not None:
            return  # a solo worker has no child
        try:
            self._claims.release_dead(EmbedBatch.decode(message), self._owner)
        except PosterError as error:
            logger.warning("the batch of a child that died has to wait until its claim expires: %s", error)

    def close(self, *, at_once: bool) -> None:
        """The worker stops: give its batch settings.stop_s, or no time at all. Returns at once."""
        self._cold = self._cold or at_once
        self._closing.set()
        if self._cold and self._runner is not None:
            self._runner.leave()

    def _tend(self, redelivery: Redelivery) -> None:
        first, silent = True, False
        while not self._closing.wait(LOOK_S) and not self._pool_is_closing():
            try:
                heard = self._registry.get(self._owner)
                if heard is not None and heard.state == FAILED:
                    self._give_up()
                    return
                if heard is None and self._runner is None and first:
                    self._registry.publish(self._owner, LOADING, {})  # its child has not come so far
                first = False
                again = redelivery.run()
                if again:
                    logger.warning("%d batch(es) sent again", again)
                silent = False
            except PosterError as error:
                if not silent:  # once per outage, not once per second
                    logger.warning("looking after lost batches has to wait: %s", error)
                silent = True
            except Exception:
                logger.exception("looking after lost batches failed, and is tried again")

    def _see_it_end(self) -> None:
        """Give the batch in work its time, then ask for it back, then end whoever does not hear."""
        began = time.monotonic()
        idle_since = asked_at = None
        while True:
            now = time.monotonic()
            is_idle = self._runner is None and not celery_state.active_requests
            idle_since = (idle_since or now) if is_idle else None
            has_idled = idle_since is not None and now - idle_since > IDLE_S
            if self._cold or has_idled or now - began > self._settings.stop_s:
                if self._runner is not None:
                    self._runner.leave()  # its pulse ends a batch that does not
                elif asked_at is None:
                    self._signal_children(signal.SIGTERM)
                    asked_at = now
                elif now - asked_at > FORCE_S:
                    self._signal_children(signal.SIGKILL)
            time.sleep(LOOK_S / 2)

    def _pool_is_closing(self) -> bool:
        """True in a cold shutdown, whose signal waits for the pool to be closed before it tells anybody."""
        pool = getattr(self._consumer.pool, "_pool", None)
        self._cold = self._cold or (pool is not None and pool._state != 0)
        return self._cold

    def _signal_children(self, number: int) -> None:
        pool = getattr(self._consumer.pool, "_pool", None)
        for child in list(getattr(pool, "_pool", ())):
            with suppress(ProcessLookupError, TypeError):
                os.kill(child.pid, number)
