"""The commands `doctor`, which checks all that can stop the work, in the order in which it would, and `ready`."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from producer.cli.main import EX_OK, EX_SOME_FAILED, EX_UNREACHABLE, EX_USAGE, as_json, example
from producer.client import Producer
from producer.errors import PosterError, RedisUnreachable, StoreUnavailable
from producer.host import program, worker_command
from producer.output import emit, emit_json, notify
from producer.queue.workers import (
    FAILED,
    LOADING,
    READY,
    STORE,
    WAITING,
    WEIGHTS,
    Announcement,
    WorkerRegistry,
    why_not_ready,
)
from producer.settings import load_settings, without_password
from producer.vectors import store_exists

# Variables of other Celery programs, which people set in the belief that they choose the Redis.
CELERY_VARIABLES: Final = (
    *("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"),
    *("CELERY_RESULT_BACKEND", "CELERY_CONFIG_MODULE", "REDIS_URL"),
)
SAME_STORE: Final = "set POSTERS_STORE to the same for both, best with an absolute path, and start the worker again"


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
    """Yield a finding for Redis, worker, model, posters root, store and dead letters.

    Without Redis, for what can be seen without it.
    """
    settings = producer.settings
    ready: list[Announcement] = []
    is_reachable = True
    try:
        workers = producer.workers()
    except PosterError as error:
        is_reachable = False
        advice = "start it: `redis-server`, or `docker compose up -d redis`"
        yield Finding("redis", f"{error}{_foreign_variables()}", advice, in_reach=False)
    else:
        ready = [worker for worker in workers if worker.state == READY]
        yield _attempt("redis", lambda: _redis(producer), "see docs/redis.acl")
        yield _alive(workers)
        yield _model(workers, ready)
    yield _root(settings.root, ready)
    yield _attempt("store", lambda: _store(producer, ready), "check the path, its owner, and the free space")
    if is_reachable:
        yield _attempt("dead letters", lambda: _dead_letters(producer), "see docs/redis.acl")


def _redis(producer: Producer) -> Finding:
    url = without_password(producer.settings.redis_url)
    info = producer.job_store.server_info()
    if info.get("role") in ("slave", "replica"):
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        return Finding("redis", f"{url} is a replica of {primary}", "set POSTERS_REDIS_URL to the primary")
    if info.get("cluster_enabled"):
        advice = "use a Redis that is no cluster: the keys of a job must lie on one server"
        return Finding("redis", f"{url} is a node of a cluster", advice)
    producer.job_store.check_write()
    is_kept = "" if info.get("aof_enabled") else "; it loses everything when it stops (appendonly no)"
    seen = f"{url} takes a write{is_kept}{_foreign_variables()}"
    policy = str(info.get("maxmemory_policy", ""))
    if policy in ("noeviction", ""):
        return Finding("redis", seen)
    advice = "set `maxmemory-policy noeviction`: any other may evict queued batches"
    return Finding("redis", f"{seen}; its policy is {policy}", advice)


def _foreign_variables() -> str:
    """A note on variables that look as if they chose the Redis, which POSTERS_REDIS_URL alone does."""
    found = sorted(name for name in os.environ if name in CELERY_VARIABLES)
    return f"; {', '.join(found)} in the environment does not apply here, POSTERS_REDIS_URL does" if found else ""


def _alive(workers: list[Announcement]) -> Finding:
    if not workers:
        return Finding("worker", "none is alive", f"start one: `{worker_command()}`", in_reach=False)
    if (faulty := next((worker for worker in workers if worker.get("fault")), None)) is not None:
        seen = f"{faulty.name} {why_not_ready(faulty)}"
        return Finding("worker", seen, "its log says more; it ends by itself if that lasts", in_reach=False)
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
    if (lost := next((worker for worker in ready if worker.get("lost_device")), None)) is not None:
        seen = f"{lost.name} uses the CPU in place of {lost.get('lost_device')}, which it had before"
        return Finding("model", seen, "`nvidia-smi` says whether the card is there; then start the worker again")
    return Finding("model", seen)


def _root(root: Path, ready: list[Announcement]) -> Finding:
    here = root.resolve()
    if not root.is_dir():
        return Finding("posters root", f"{here} is not a folder", "set POSTERS_ROOT")
    if not os.access(root, os.R_OK | os.X_OK):
        return Finding("posters root", f"{here} cannot be read", "check its owner and mode")
    seen = f"{here} is readable"
    inode = str(here.stat().st_ino)  # the same folder has the same one in a container and on a network drive
    for worker in ready:
        theirs = worker.get("root")
        if theirs == str(here) or worker.get("root_inode") == inode:
            continue
        if worker.get("host") == socket.gethostname():
            advice = "set POSTERS_ROOT to the same folder for both"
            return Finding("posters root", f"{seen}; but {worker.name} reads {theirs}", advice)
        seen += f"; {worker.name} on {worker.get('host')} uses {theirs} (right if both are the same folder)"
        break
    return Finding("posters root", seen)


def _store(producer: Producer, ready: list[Announcement]) -> Finding:
    url = producer.settings.store
    shown = _absolute(without_password(url))
    if not store_exists(url):
        return _absent_store(Path(url.removeprefix("sqlite:")).absolute(), ready)
    with closing(producer.store()) as store:
        identity, current = store.check(), store.current()
        held = f"{store.count(current)} vectors in {current}" if current else "no vectors yet"
    seen = f"{shown} takes a write, {held}"
    for worker in ready:
        if not _is_same_store(worker, url, identity):
            return Finding("store", f"{seen}; but {_writes_to(worker)}", SAME_STORE)
    made = ready[0].get("space") if ready else ""
    if current and made and made != current:
        advice = f"`{program()} spaces` shows when {made} is complete, `spaces use {made}` switches the readers"
        return Finding("store", f"{seen}, which readers use; but {ready[0].name} makes vectors of {made}", advice)
    return Finding("store", seen)


def _without_user(url: str) -> str:
    """The URL without user and password: worker and backend are two users of one Redis."""
    return re.sub("//[^@/]*@", "//", url)


def _absent_store(path: Path, ready: list[Announcement]) -> Finding:
    """The finding where the SQLite file does not exist; it is not created."""
    seen = f"there is no file {path}"
    if ready:
        return Finding("store", f"{seen}; {_writes_to(ready[0])}", SAME_STORE)
    if not path.parent.is_dir():
        advice = "set POSTERS_STORE to the right place; if this is it, the worker will create both"
        return Finding("store", f"{seen}, nor its folder", advice)
    if not os.access(path.parent, os.W_OK):
        return Finding("store", f"{seen}, and none can be created in its folder", "check its owner and mode")
    return Finding("store", f"{seen} yet; the worker creates it")


def _is_same_store(worker: Announcement, url: str, identity: str) -> bool:
    """By the store's own id. On one host by the file as well: a copy of a file has the id of the original."""
    if worker.get("store_id") not in ("", identity):
        return False
    if not worker.get("store_id"):  # of an older version
        return _without_user(worker.get("store")) == _without_user(without_password(url))
    if not url.startswith("sqlite:") or worker.get("host") != socket.gethostname():
        return True
    theirs, ours = (
        text.removeprefix("sqlite:") for text in (_absolute(worker.get("store"), worker.get("folder")), _absolute(url))
    )
    return not os.path.exists(theirs) or os.path.samefile(theirs, ours)


def _writes_to(worker: Announcement) -> str:
    return f"{worker.name} writes to another one: {_absolute(worker.get('store'), worker.get('folder'))}"


def _absolute(store: str, folder: str = "") -> str:
    """A store's URL with the whole path of its file; `folder`: where a relative path begins."""
    scheme, _, path = store.partition(":")
    return f"sqlite:{os.path.join(folder or os.getcwd(), path)}" if scheme == "sqlite" else store


def _dead_letters(producer: Producer) -> Finding:
    count = producer.dead_letters.count()
    if not count:
        return Finding("dead letters", "no message was rejected")
    seen = f"{count} message(s) rejected; the newest: {producer.dead_letters.newest_reason()}"
    cause = "another program writes to these queues, or a producer is newer than the workers"
    listing, removal = "redis-cli lrange posters:quarantine 0 9", f"{program()} doctor --clear-dead-letters"
    advice = f"list them with `{listing}`, remove them with `{removal}`; {cause}"
    return Finding("dead letters", seen, advice)


def _attempt(name: str, check: Callable[[], Finding], advice: str) -> Finding:
    try:
        return check()
    except PosterError as error:
        return Finding(name, str(error), advice, not isinstance(error, RedisUnreachable | StoreUnavailable))


@example("python -m producer doctor")
@click.command()
@click.option("--clear-dead-letters", is_flag=True, help="First, remove the messages that were rejected.")
@as_json
def doctor(clear_dead_letters: bool, as_json: bool) -> None:
    """Check Redis, worker, model, posters root, store and dead letters, and print what to do.

    It asks whether each takes a write, and whether the workers use the same store and the same posters root. It
    creates no store.
    """
    producer = Producer()
    if clear_dead_letters:
        notify(f"{producer.dead_letters.clear()} rejected message(s) removed")
    findings = list(examine(producer))
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
@click.option("--live", is_flag=True, help="Also 0 while it loads or waits: for what restarts a worker with status 1.")
def ready(name: str | None, live: bool) -> None:
    """Exit with status 0 if a worker is ready, else with 1 and the reason: for health checks.

    Ready: its model is loaded, it renews its registry entry and its lease, takes messages, makes progress while it has
    work, and reaches its device, the store and the posters root. A worker that does not for long ends by itself.

    With --live, Redis out of reach is no reason for status 1: restarting a worker does not bring it back.
    """
    try:
        with closing(WorkerRegistry(load_settings().redis_url)) as registry:
            alive = registry.alive()
    except RedisUnreachable as error:
        notify(str(error))
        sys.exit(EX_OK if live else EX_SOME_FAILED)
    asked = [worker for worker in alive if name in (None, worker.name)]
    if any(worker.state != FAILED if live else not why_not_ready(worker) for worker in asked):
        sys.exit(EX_OK)
    for worker in asked:
        notify(f"{worker.name} {why_not_ready(worker)}")
    if not asked:
        others = ", ".join(worker.name for worker in alive) or "none"
        notify(f"no worker{f' {name}' if name else ''} is alive (alive: {others}); start it: `{worker_command()}`")
    sys.exit(EX_SOME_FAILED)
