"""Unload the model of a worker that has no work, and load it again for the first work that comes.

A CUDA context lives as long as its process: only when the child has ended is the card's memory really free. Its parent
then keeps the registry entry, which stays READY, and the lease of the GPU.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from enum import Enum
from typing import Final

from producer.errors import RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.locks import LEASE_S, Lease
from producer.queue.messages import BULK, QUEUES
from producer.queue.workers import (
    ANSWERED_AT,
    FAILED,
    LOADED_AT,
    QUIET_UNTIL,
    READY,
    RELOADED_S,
    UNLOADED_SINCE,
    WAITING,
    Announcement,
    WorkerRegistry,
)
from producer.requests.codec import LISTS, TEXT
from producer.requests.inbox import holds_requests
from producer.settings import Settings
from worker.broker.child import Child
from worker.runtime.backoff import Backoff
from worker.runtime.health import ROOT, Health
from worker.runtime.startup import WAKING_VARIABLE

END_S: Final = 15.0  # in less a child answers what it has in hand, and closes the store
logger = logging.getLogger(__name__)


class Stage(Enum):
    """Where a worker is, from loaded to loaded again."""

    LOADED = "loaded"
    HOLDING = "holding"  # no message is asked for; what was asked for before may still come
    ENDING = "ending"  # the child is
    UNLOADED = "unloaded"
    RELOADING = "reloading"


class IdleUnload:
    """Runs in the supervisor's thread, which calls `step` about once a second; raises RedisUnreachable.

    Nothing is lost: before the child ends, the parent has asked for no message, and got none; and what comes while it
    ends, or what it leaves, is why it is started again.
    """

    def __init__(
        self, settings: Settings, owner: str, child: Child, job_store: JobStore, registry: WorkerRegistry
    ) -> None:
        """`settings` have `idle_unload_s`; the rest is the caller's to close."""
        self._settings, self._owner, self._child = settings, owner, child
        self._job_store, self._registry, self._claims = job_store, registry, Claims(job_store)
        self._stage, self._stage_at = Stage.LOADED, 0.0  # wall clock, as the registry entry has it
        self._entry = Announcement(owner, READY, {})  # the child's last
        self._unloaded_at = 0.0
        self._failure, self._retry_at, self._backoff = "", 0.0, Backoff()
        self._health = Health()  # of what the child no longer looks at

    def step(self, entry: Announcement | None) -> bool:
        """Do what is due; `entry` is the worker's. Returns whether its model is unloaded, or being loaded again."""
        if self._stage is Stage.LOADED:
            if entry is not None and self._has_idled(entry) and not self._work_waits():
                self._child.hold(True)
                self._enter(Stage.HOLDING)
        elif self._stage is Stage.HOLDING:
            self._unload_if_still_idle(entry)
        elif self._stage is Stage.ENDING:
            self._wait_for_end()
        elif self._stage is Stage.UNLOADED:
            # One that could not be loaded is tried again in any case: nobody asks a worker that is not ready.
            if self._publish() and time.monotonic() >= self._retry_at and (self._failure or self._work_waits()):
                self._reload()
        else:
            self._wait_for_model(entry)
        return self._stage not in (Stage.LOADED, Stage.HOLDING)

    def close(self) -> None:
        """Remove the registry entry, and release the GPU: the child, which has ended, left both to its parent."""
        try:
            entry = self._registry.get(self._owner)
            if entry is not None and entry.state == FAILED:
                return  # whoever waits shall read why; its child has released the GPU
            self._registry.withdraw(self._owner)
            if (lease := self._lease(entry or self._entry)) is not None:
                lease.release()
        except RedisUnreachable:
            logger.info("Redis is unreachable; registry entry and lease expire by themselves")

    def _enter(self, stage: Stage) -> None:
        self._stage, self._stage_at = stage, time.time()

    def _has_idled(self, entry: Announcement) -> bool:
        """Whether the child had done nothing for `idle_unload_s` when it published the entry."""
        if entry.state != READY or entry.get("fault") or not entry.get(LOADED_AT):
            return False
        last = max(float(entry.get(field) or 0) for field in (LOADED_AT, ANSWERED_AT, "progress_at"))
        return float(entry.get("at")) - last >= (self._settings.idle_unload_s or 0)

    def _unload_if_still_idle(self, entry: Announcement | None) -> None:
        """End the child, once it has said, since no message is asked for, that it is still idle."""
        if entry is None or not self._has_idled(entry) or self._work_waits():
            self._child.hold(False)
            self._enter(Stage.LOADED)
        elif float(entry.get("at")) > self._stage_at and self._child.end():
            logger.info("no work for %d s: the model is unloaded until some comes", self._settings.idle_unload_s)
            self._entry, self._unloaded_at = entry, time.time()
            self._enter(Stage.ENDING)

    def _wait_for_end(self) -> None:
        if not self._child.pids():
            self._enter(Stage.UNLOADED)
            self._publish()
        elif time.time() - self._stage_at > END_S:
            self._child.signal(signal.SIGKILL)

    def _reload(self) -> None:
        os.environ[WAKING_VARIABLE] = repr(time.monotonic())
        if self._child.start():
            logger.info("work has come: loading the model again")
            self._enter(Stage.RELOADING)

    def _wait_for_model(self, entry: Announcement | None) -> None:
        """Wait until the child has loaded the model; where it cannot, have it end, and try again later."""
        if entry is None or entry.get("pid") == str(os.getpid()):
            self._publish()  # the child does not speak for itself yet
        elif entry.state == READY:
            os.environ.pop(WAKING_VARIABLE, None)
            self._child.hold(False)
            self._failure, self._retry_at = "", 0.0
            self._backoff.reset()
            self._enter(Stage.LOADED)
        elif entry.state == FAILED and self._child.end():
            pause_s = self._backoff.pause_s()
            self._failure, self._retry_at = entry.get("reason"), time.monotonic() + pause_s
            logger.error("the model cannot be loaded again, next try in %.0f s: %s", pause_s, self._failure)
            self._enter(Stage.ENDING)
        else:
            self._renew_lease()

    def _publish(self) -> bool:
        """Publish the entry, and renew the lease. Returns False while another worker has the GPU."""
        holder, why = self._renew_lease(), self._failure
        if holder is not None:
            why = f"the GPU is in use by {holder}"
        dropped = ("at", QUIET_UNTIL, RELOADED_S)
        fields: dict[str, object] = {name: text for name, text in self._entry.fields.items() if name not in dropped}
        fields |= {"pid": os.getpid(), UNLOADED_SINCE: repr(self._unloaded_at), "stage": ""}
        fields["reason"] = f"its model is unloaded, and cannot be loaded: {why}" if why else ""
        self._health.probe(ROOT, lambda: os.scandir(self._settings.root).close())
        fields["fault"] = self._health.fault().reason
        if until := self._settings.quiet.until():
            fields[QUIET_UNTIL] = until
        self._registry.publish(self._owner, WAITING if why else READY, fields)
        return holder is None

    def _renew_lease(self) -> str | None:
        """Keep the GPU for the child; who else has it, None: nobody."""
        lease = self._lease(self._entry)
        return lease.acquire() if lease else None

    def _lease(self, entry: Announcement) -> Lease | None:
        card = entry.get("card")
        return Lease(self._job_store, card_key(card), self._owner, LEASE_S) if card else None

    def _work_waits(self) -> bool:
        """Whether there is a request or a batch that this worker could take, or one that it holds."""
        if self._child.has_message():
            return True
        redis = self._job_store.redis
        kinds = [kind for kind in LISTS if kind != TEXT or self._settings.text]
        if any(holds_requests(redis, LISTS[kind], self._owner) for kind in kinds):
            return True
        rests = bool(self._settings.quiet.until()) or self._claims.paused_since() is not None
        return any(redis.llen(queue) for lane, queue in QUEUES.items() if not (rests and lane == BULK))
