"""All checks, in the order in which what they find would stop the work."""

from __future__ import annotations

from collections.abc import Iterator

from producer.client import Producer
from producer.doctor import places, redis, workers
from producer.doctor.finding import RIGHTS, Finding, attempt, failed
from producer.errors import PosterError
from producer.queue.workers import READY, Announcement


def examine(producer: Producer) -> Iterator[Finding]:
    """Yield a finding for each check; without Redis, for what can be seen without it."""
    settings = producer.settings
    ready: list[Announcement] = []
    is_reachable = True
    try:
        alive = producer.workers()
    except PosterError as error:
        is_reachable = False
        yield redis.not_answering(error)
    else:
        ready = [worker for worker in alive if worker.state == READY]
        yield from _redis(producer)
        yield redis.clocks(producer, alive)
        yield workers.alive(alive)
        yield workers.model(settings, alive, ready)
        yield workers.devices(alive)
    yield places.root(settings.root, ready)
    yield attempt("store", lambda: places.store(producer, ready), "check the path, its owner, and the free space")
    yield places.disk(producer)
    if is_reachable:
        yield attempt("dead letters", lambda: places.dead_letters(producer), RIGHTS)


def _redis(producer: Producer) -> Iterator[Finding]:
    try:
        info = producer.job_store.server_info()
        yield attempt("redis", lambda: redis.of_queue(producer, info), RIGHTS)
        yield from redis.keeping(producer, info)
    except PosterError as error:  # it does not answer any more, or forbids the question
        yield failed("redis", error, RIGHTS)
