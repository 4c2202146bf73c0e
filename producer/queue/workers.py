"""How a worker shows that it lives: one hash in Redis that expires when it falls silent.

posters:worker:OWNER   hash   state, host, pid, device, model, space, …   ANNOUNCEMENT_S, renewed

OWNER is NODE-NAME/PID/NONCE: two workers that were started with one node name, on one machine or in two
containers, are two, and a worker that was started anew is not the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
WAITING: Final = "waiting"  # another worker has the card; `reason` says who
READY: Final = "ready"
STORE: Final = "store"  # stages of LOADING: it cannot be written for now and is waited for; `reason` says why
WEIGHTS: Final = "weights"  # they are looked for, and downloaded if need be
MODEL: Final = "model"  # they are there; the model is built and warmed up
FAILED: Final = "failed"  # it will leave; `reason` says why


@dataclass(frozen=True)
class Announcement:
    """What a worker says of itself; everything but owner and state may be empty while it loads."""

    owner: str
    state: str
    fields: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its node name, as Celery has it; several may share it."""
        return self.owner.rsplit("/", 2)[0]

    def get(self, field: str) -> str:
        """A field's text; empty where the worker has not said it (yet)."""
        return self.fields.get(field, "")


class WorkerRegistry:
    """Write and read announcements; RedisUnreachable when Redis does not answer."""

    def __init__(self, url: str, client: RedisClient | None = None) -> None:
        """`url` as settings.redis_url; `client`: connections to use instead of its own, the caller's to close."""
        self._redis = client or connect(url)
        self._publish = load_script(self._redis, "publish_worker")

    def publish(self, owner: str, state: str, fields: Mapping[str, object]) -> None:
        """Announce, replacing what this owner said before."""
        entry = {"state": state, "at": repr(time.time())} | {field: str(value) for field, value in fields.items()}
        arguments = [text for field in entry.items() for text in field]
        self._publish([PREFIX + owner, OWNERS], [owner, ANNOUNCEMENT_S, *arguments])

    def of(self, owner: str) -> Announcement | None:
        """What one worker says; None when it is silent."""
        entry = cast(dict[str, str], self._redis.hgetall(PREFIX + owner))
        return Announcement(owner, entry.pop("state"), entry) if entry else None

    def find(self, name: str) -> Announcement | None:
        """What the worker of a node name says; of several that share it, the one that spoke last."""
        named = [worker for worker in self._heard() if worker.name == name]
        return max(named, key=lambda worker: float(worker.get("at")), default=None)

    def alive(self) -> list[Announcement]:
        """All workers that are alive, by name; not one that failed, as soon as it was started anew."""
        alive = self._heard()
        begun = {worker.name for worker in alive if worker.state != FAILED}
        return [worker for worker in alive if worker.state != FAILED or worker.name not in begun]

    def withdraw(self, owner: str) -> None:
        """Say goodbye."""
        self._redis.delete(PREFIX + owner)
        self._redis.srem(OWNERS, owner)

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()

    def _heard(self) -> list[Announcement]:
        owners = sorted(cast(set[str], self._redis.smembers(OWNERS)))
        heard = {owner: self.of(owner) for owner in owners}
        silent = [owner for owner in owners if heard[owner] is None]
        if silent:
            self._redis.srem(OWNERS, *silent)  # one that only paused adds itself again
        return [worker for worker in heard.values() if worker is not None]


def common_space(workers: Iterable[Announcement]) -> Space | None:
    """The space that the ready ones among the workers make vectors of; None while none is ready.

    Raises:
        SpaceMismatch: they make vectors of more than one; names who makes which.
    """
    makers = {worker.get("space_json"): worker for worker in workers if worker.state == READY}
    if len(makers) > 1:
        told = ", ".join(f"{worker.name}: {worker.get('space')}" for worker in makers.values())
        raise SpaceMismatch(
            f"the workers make vectors of {len(makers)} spaces ({told}), and nobody can tell which of them will "
            "take a poster: stop those of the model that you leave "
            f"(one that was killed is forgotten after {ANNOUNCEMENT_S} s)"
        )
    return next((Space.from_json(text) for text in makers if text), None)
