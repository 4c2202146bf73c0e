"""The registry of workers: one hash in Redis for each, which expires unless the worker renews it.

posters:worker:OWNER   hash   state, host, pid, device, model, space, …   ANNOUNCEMENT_S, renewed

OWNER is NODE-NAME/PID/NONCE: workers that share a node name have distinct owners, and so has a worker that was
restarted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast

from producer.embedding import Space
from producer.errors import SpaceMismatch
from producer.queue.scripts import load_script
from producer.redis_client import RedisClient, connect

PREFIX: Final = "posters:worker:"
OWNERS: Final = "posters:workers"
ANNOUNCEMENT_S: Final = 15  # three renewals may be missed before a worker counts as dead
RENEWAL_S: Final = 5
LOADING: Final = "loading"  # the model is being loaded and warmed up
WAITING: Final = "waiting"  # another worker has the GPU; `reason` says which
READY: Final = "ready"
STORE: Final = "store"  # a stage of LOADING: the store cannot be written for now; `reason` says why
WEIGHTS: Final = "weights"  # a stage of LOADING: found, or downloaded
MODEL: Final = "model"  # a stage of LOADING: built and warmed up
FAILED: Final = "failed"  # it will end; `reason` says why
STATES: Final = (LOADING, WAITING, READY, FAILED)
QUIET_UNTIL: Final = "quiet_until"  # field: when the quiet hours end that hold now, ISO 8601; empty outside of them
LOADED_AT: Final = "loaded_at"  # field: when the model was loaded, seconds since 1970
ANSWERED_AT: Final = "answered_at"  # field: when requests were answered last, seconds since 1970
UNLOADED_SINCE: Final = "unloaded_since"  # field of a worker that is READY without a model, seconds since 1970
RELOADED_S: Final = "reloaded_s"  # field: how long the work waited for which the model was last loaded again, seconds


@dataclass(frozen=True)
class Announcement:
    """A worker's entry; everything but owner and state may be empty while it loads."""

    owner: str
    state: str
    fields: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its node name, as Celery has it; several may share it."""
        return node_of(self.owner)

    def get(self, field: str) -> str:
        """A field's text; empty where it is not set (yet)."""
        return self.fields.get(field, "")

    @property
    def quiet(self) -> str:
        """Until when it begins no bulk work, for people; empty where it does, or is not ready."""
        until = self.get(QUIET_UNTIL) if self.state == READY else ""
        return f"quiet hours until {datetime.fromisoformat(until):%H:%M}" if until else ""

    @property
    def unloading(self) -> str:
        """That its model is unloaded, or how long it last took to load it again, for people; empty: it never was."""
        if since := self.get(UNLOADED_SINCE):
            return time.strftime("unloaded since %H:%M:%S UTC until work comes", time.gmtime(float(since)))
        return f"was loaded again in {took} s" if (took := self.get(RELOADED_S)) else ""


class WorkerRegistry:
    """Write and read the entries of workers. Every method raises RedisUnreachable."""

    def __init__(self, url: str, client: RedisClient | None = None) -> None:
        """`url` as settings.redis_url; `client`: connections to use instead of its own, the caller's to close."""
        self._redis = client or connect(url)
        self._publish = load_script(self._redis, "publish_worker")

    def publish(self, owner: str, state: str, fields: Mapping[str, object]) -> None:
        """Write a worker's entry, in place of its last one."""
        entry = {"state": state, "at": repr(time.time())} | {field: str(value) for field, value in fields.items()}
        arguments = [text for field in entry.items() for text in field]
        self._publish([PREFIX + owner, OWNERS], [owner, ANNOUNCEMENT_S, *arguments])

    def get(self, owner: str) -> Announcement | None:
        """The entry of a worker; None when it has none (any more)."""
        return decode_entry(owner, cast(dict[str, str], self._redis.hgetall(PREFIX + owner)))

    def find(self, name: str) -> Announcement | None:
        """The entry of the worker of a node name; of several that share it, the newest."""
        named = [worker for worker in self._read_all() if worker.name == name]
        return max(named, key=lambda worker: float(worker.get("at")), default=None)

    def alive(self) -> list[Announcement]:
        """All workers that are alive, by name; without one that failed and was started again."""
        return without_replaced(self._read_all())

    def withdraw(self, owner: str) -> None:
        """Remove a worker's entry."""
        self._redis.delete(PREFIX + owner)
        self._redis.srem(OWNERS, owner)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _read_all(self) -> list[Announcement]:
        owners = sorted(cast(set[str], self._redis.smembers(OWNERS)))
        entries = {owner: self.get(owner) for owner in owners}
        if expired := [owner for owner, worker in entries.items() if worker is None]:
            self._redis.srem(OWNERS, *expired)  # one that only paused adds itself again
        return [worker for worker in entries.values() if worker is not None]


def node_of(owner: str) -> str:
    """The node name of a worker, by its id."""
    return owner.rsplit("/", 2)[0]


def decode_entry(owner: str, entry: Mapping[str, str]) -> Announcement | None:
    """A worker's entry as Redis holds it; None where it holds none."""
    fields = dict(entry)
    return Announcement(owner, fields.pop("state"), fields) if fields else None


def without_replaced(workers: Sequence[Announcement]) -> list[Announcement]:
    """The workers without one that failed and was started again."""
    begun = {worker.name for worker in workers if worker.state != FAILED}
    return [worker for worker in workers if worker.state != FAILED or worker.name not in begun]


def why_not_ready(worker: Announcement) -> str:
    """Why a worker embeds nothing now, as it says itself; empty: it is ready.

    A worker in the state READY has its model loaded; what it has noticed since then is in its field `fault`.
    """
    if worker.state != READY:
        return f"is {worker.state}: {worker.get('reason') or worker.get('stage') or 'no reason given'}"
    return f"is {worker.state}, but {fault}" if (fault := worker.get("fault")) else ""


def why_bulk_rests(paused_since: float | None, workers: Iterable[Announcement]) -> str:
    """Why no worker begins bulk work: a pause, or the quiet hours of all that are ready; empty where one may."""
    if paused_since is not None:
        return time.strftime("paused since %Y-%m-%d %H:%M:%S UTC", time.gmtime(paused_since))
    ready = [worker for worker in workers if worker.state == READY]
    if not ready or not all(worker.quiet for worker in ready):
        return ""
    return min(ready, key=lambda worker: datetime.fromisoformat(worker.get(QUIET_UNTIL))).quiet


def embeds_text(worker: Announcement) -> bool:
    """Whether a worker is ready to embed texts."""
    return worker.state == READY and "text" in worker.get("requests").split(",")


def why_no_answer(workers: Sequence[Announcement]) -> str:
    """Why no worker has answered yet, as far as their entries say: what they wait for, load, or are busy with."""
    ready = [worker for worker in workers if worker.state == READY]
    if ready and not any(worker.get("requests") for worker in ready):
        return f"{ready[0].name} is of an older version, which knows no requests: update the workers first"
    if ready and all(map(why_not_ready, ready)):
        return f"{ready[0].name} {why_not_ready(ready[0])}"
    if ready and all(worker.get(UNLOADED_SINCE) for worker in ready):
        return f"{ready[0].name} had unloaded its model, and is loading it again: allow more time"
    if any(worker.get("text") for worker in ready):
        return f"{ready[0].name} is loading its text tower: try again"
    if ready:
        return f"{ready[0].name} is busy with other requests, or its machine or the store is"
    for worker in workers:
        if worker.state == FAILED:
            return f"{worker.name} cannot start: {worker.get('reason')}"
        if worker.state == WAITING or worker.get("stage") == STORE:
            return f"{worker.name} is waiting: {worker.get('reason')}"
        if worker.get("stage") == WEIGHTS:
            return f"{worker.name} is starting, and its weights are being located or downloaded"
        return f"{worker.name} is starting, and is loading its model"
    return "no worker is alive any more"


def common_space(workers: Iterable[Announcement]) -> Space | None:
    """The space that the ready ones among the workers make vectors of; None while none is ready.

    Raises:
        SpaceMismatch: they make vectors of more than one; names who makes which.
    """
    makers = {worker.get("space_json"): worker for worker in workers if worker.state == READY}
    if len(makers) > 1:
        shown = ", ".join(f"{worker.name}: {worker.get('space')}" for worker in makers.values())
        raise SpaceMismatch(
            f"the workers make vectors of {len(makers)} spaces ({shown}), and which of them takes a poster is chance: "
            f"stop those of the old model (a killed one is forgotten after {ANNOUNCEMENT_S} s)"
        )
    return next((Space.from_json(text) for text in makers if text), None)
