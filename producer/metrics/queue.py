"""The figures of the queue for Prometheus, as Redis and the ledger have them when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client import Metric as Family
from prometheus_client.exposition import choose_encoder

from producer.errors import CommandForbidden, JobUnknown, RedisUnreachable
from producer.metrics.families import family
from producer.queue.messages import LANES
from producer.queue.workers import READY, STATES, UNLOADED_SINCE, Announcement, why_bulk_rests, why_not_ready
from producer.queue_client import QueueClient
from producer.requests.codec import LISTS

FAULTY: Final = "faulty"  # ready, but for a fault that it has noticed since
UNLOADED: Final = "unloaded"  # ready without a model, so without metrics of its own


class QueueMetrics:
    """Reads Redis at each call of `collect`; where it is unreachable, that is all there is to say."""

    def __init__(self, client: QueueClient) -> None:
        """The client is the caller's to close."""
        self._client = client

    def collect(self) -> Iterator[Family]:
        """The families of `QUEUE` in families.py."""
        try:
            found = [*self._queue(), *self._ledger(), *self._workers(), *self._redis()]
        except RedisUnreachable:
            found = []
        yield from family("posters_redis_up", bool(found))
        yield from found

    def _queue(self) -> Iterator[Family]:
        redis, lanes = self._client.job_store.redis, {lane: self._client.lane_state(lane) for lane in LANES}
        yield from family("posters_queue_messages", {lane: count for lane, (count, _) in lanes.items()})
        yield from family("posters_queue_oldest_seconds", {lane: age or 0.0 for lane, (_, age) in lanes.items()})
        yield from family("posters_requests_waiting", {kind: redis.llen(key) for kind, key in LISTS.items()})

    def _ledger(self) -> Iterator[Family]:
        store, batches = self._client.job_store, 0
        jobs = store.list_active()
        for job in jobs:
            with suppress(JobUnknown):  # it has ended meanwhile
                batches += store.progress(job).open_batches
        yield from family("posters_jobs_active", len(jobs))
        yield from family("posters_open_batches", batches)
        yield from family("posters_dead_letters", self._client.dead_letters.count())

    def _workers(self) -> Iterator[Family]:
        workers, count = self._client.workers(), Counter(dict.fromkeys((*STATES, FAULTY, UNLOADED), 0))
        count.update(map(_state, workers))
        yield from family("posters_workers", count)
        yield from family("posters_bulk_resting", bool(why_bulk_rests(self._client.claims.paused_since(), workers)))

    def _redis(self) -> Iterator[Family]:
        with suppress(CommandForbidden):  # a user of other rights than docs/redis.acl gives
            info = self._client.job_store.server_info()
            yield from family("posters_redis_memory_used_bytes", int(info["used_memory"]))
            yield from family("posters_redis_memory_max_bytes", int(info["maxmemory"]))


def _state(worker: Announcement) -> str:
    if worker.state != READY:
        return worker.state
    return FAULTY if why_not_ready(worker) else UNLOADED if worker.get(UNLOADED_SINCE) else READY


def render(client: QueueClient, accept: str) -> tuple[bytes, str]:
    """What Prometheus reads, and its media type; `accept`: the header of the request."""
    registry = CollectorRegistry()
    registry.register(QueueMetrics(client))
    ProcessCollector(registry=registry)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
