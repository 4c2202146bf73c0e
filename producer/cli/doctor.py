"""The commands `doctor`, which checks all that can stop the work, in the order in which it would, and `ready`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from producer.cli.main import EX_OK, EX_SOME_FAILED, EX_UNREACHABLE, EX_USAGE, as_json, example
from producer.client import Producer
from producer.errors import PosterError, RedisUnreachable, StoreUnavailable
from producer.host import program, worker_command
from producer.output import emit, emit_json, notify
from producer.queue.workers import FAILED, LOADING, READY, STORE, WAITING, WEIGHTS, Announcement, WorkerRegistry
from producer.settings import load_settings, without_password


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the check.
        seen: what was found.
        advice: what to do; empty when all is well.
        in_reach: False when it did not answer, or there is none.
    """

    name: str
    seen: str
    advice: str = ""
    in_reach: bool = True

    @property
    def ok(self) -> bool:
        """True when nothing has to be done."""
        return not self.advice


def examine(producer: Producer) -> Iterator[Finding]:
    """Yield a finding for Redis, worker, model, posters root, store and dead letters; stops without Redis."""
    settings = producer.settings
    url = without_password(settings.redis_url)
    try:
        workers = producer.workers()
    except PosterError as error:
        advice = "start it: `redis-server`, or `docker compose up -d redis`"
        yield Finding("redis", str(error), advice, in_reach=False)
        return
    yield _attempt("redis", lambda: _redis(producer, url), "see docs/redis.acl")
    yield _alive(workers)
    ready = [worker for worker in workers if worker.state == READY]
    yield _model(workers, ready)
    yield _root(settings.root, ready)
    yield _attempt("store", lambda: _store(producer, ready), "check the path, its owner, and the free space")
    yield _attempt("dead letters", lambda: _dead_letters(producer), "see docs/redis.acl")


def _redis(producer: Producer, url: str) -> Finding:
    policy, is_kept = producer.job_store.persistence()
    seen = f"answers at {url}" + ("" if is_kept else "; it loses everything when it stops (appendonly no)")
    if policy in ("noeviction", ""):
        return Finding("redis", seen)
    advice = "set `maxmemory-policy noeviction`: any other may evict queued batches"
    return Finding("redis", f"{seen}; its policy is {policy}", advice)


def _alive(workers: list[Announcement]) -> Finding:
    if not workers:
        return Finding("worker", "none is alive", f"start one: `{worker_command()}`", in_reach=False)
    names = ", ".join(f"{worker.name} ({worker.state})" for worker in workers)
    waiting = next((f"; {worker.name}: {worker.get('reason')}" for worker in workers if worker.state == WAITING), "")
    return Finding("worker", names + waiting)


def _model(workers: list[Announcement], ready: list[Announcement]) -> Finding:
    for worker in workers:
        if worker.state == FAILED:
            return Finding("model", f"{worker.name}: {worker.get('reason')}", "fix that, then start it again")
    if not ready:
        blocked = [worker for worker in workers if worker.state == WAITING or worker.get("stage") == STORE]
        if blocked:
            seen = f"{blocked[0].name} is waiting: {blocked[0].get('reason')}"
            return Finding("model", seen, "it continues by itself when that is over")
        if any(worker.get("stage") == WEIGHTS for worker in workers):
            return Finding("model", "its weights are being located or downloaded", "wait")
        if any(worker.state == LOADING for worker in workers):
            return Finding("model", "being loaded", "wait a few seconds")
        return Finding("model", "no worker is ready", "start a worker")
    if len({worker.get("space") for worker in ready}) > 1:
        spaces = ", ".join(f"{worker.name}: {worker.get('space')}" for worker in ready)
        return Finding("model", f"workers make different vectors ({spaces})", "give all one configuration")
    worker = ready[0]
    seen = f"{worker.get('model')} on {worker.get('device')} in {worker.get('precision')}, space {worker.get('space')}"
    if '"untrained-' in worker.get("space_json"):
        seen += "; UNTRAINED weights, for demonstrations and tests only"
    return Finding("model", seen)


def _root(root: Path, ready: list[Announcement]) -> Finding:
    here = root.resolve()
    if not root.is_dir():
        return Finding("posters root", f"{here} is not a folder", "set POSTERS_ROOT")
    if not os.access(root, os.R_OK | os.X_OK):
        return Finding("posters root", f"{here} cannot be read", "check its owner and mode")
    seen = f"{here} is readable"
    if other := [worker for worker in ready if worker.get("root") != str(here)]:
        seen += f"; {other[0].name} uses {other[0].get('root')} (right if both are the same folder, as in containers)"
    return Finding("posters root", seen)


def _store(producer: Producer, ready: list[Announcement]) -> Finding:
    with closing(producer.store()) as store:
        store.check()
        current = store.current()
        held = f"{store.count(current)} vectors in {current}" if current else "no vectors yet"
    store_url = without_password(producer.settings.store)
    seen = f"{store_url} is writable, {held}"
    if other := [worker for worker in ready if _without_user(worker.get("store")) != _without_user(store_url)]:
        advice = "set POSTERS_STORE to the same for both"
        return Finding("store", f"{seen}; but {other[0].name} writes to {other[0].get('store')}", advice)
    made = ready[0].get("space") if ready else ""
    if current and made and made != current:
        advice = f"`{program()} spaces` shows when {made} is complete, `spaces use {made}` switches the readers"
        return Finding("store", f"{seen}, which readers use; but {ready[0].name} makes vectors of {made}", advice)
    return Finding("store", seen)


def _without_user(url: str) -> str:
    """The URL without user and password: worker and backend are two users of one Redis."""
    return re.sub("//[^@/]*@", "//", url)


def _dead_letters(producer: Producer) -> Finding:
    count = producer.dead_letters.count()
    if not count:
        return Finding("dead letters", "no message was rejected")
    seen = f"{count} message(s) rejected; the newest: {producer.dead_letters.newest_reason()}"
    cause = "another program writes to these queues, or a producer is newer than the workers"
    advice = f"list them with `redis-cli lrange posters:quarantine 0 9`; {cause}"
    return Finding("dead letters", seen, advice)


def _attempt(name: str, check: Callable[[], Finding], advice: str) -> Finding:
    try:
        return check()
    except PosterError as error:
        return Finding(name, str(error), advice, not isinstance(error, RedisUnreachable | StoreUnavailable))


@example("python -m producer doctor")
@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Check Redis, worker, model, posters root, store and dead letters, and print what to do."""
    findings = list(examine(Producer()))
    if as_json:
        emit_json([asdict(finding) | {"ok": finding.ok} for finding in findings])
    else:
        for finding in findings:
            emit(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.seen}")
            if finding.advice:
                emit(f"     → {finding.advice}")
    if all(finding.ok for finding in findings):
        return
    sys.exit(EX_USAGE if all(finding.in_reach for finding in findings) else EX_UNREACHABLE)


@example("python -m producer ready --worker posters@gpu1")
@click.command()
@click.option("--worker", "name", metavar="NODE", help="Node name of the worker; default: any.")
def ready(name: str | None) -> None:
    """Exit with status 0 if a worker is alive and ready, else with 1 and the reason: for health checks."""
    try:
        with closing(WorkerRegistry(load_settings().redis_url)) as registry:
            alive = registry.alive()
    except RedisUnreachable as error:
        notify(str(error))
        sys.exit(EX_SOME_FAILED)
    asked = [worker for worker in alive if name in (None, worker.name)]
    if any(worker.state == READY for worker in asked):
        sys.exit(EX_OK)
    for worker in asked:
        notify(f"{worker.name} is {worker.state}: {worker.get('reason') or worker.get('stage') or 'no reason given'}")
    if not asked:
        others = ", ".join(worker.name for worker in alive) or "none"
        notify(f"no worker{f' {name}' if name else ''} is alive (alive: {others}); start it: `{worker_command()}`")
    sys.exit(EX_SOME_FAILED)
