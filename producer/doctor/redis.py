"""Redis: whether it answers, takes a write, keeps what it was given, has room, and tells the same time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

from producer.client import Producer
from producer.doctor.finding import RIGHTS, Finding, attempt, misconfigured, unreachable, warning
from producer.errors import PosterError, RedisRefused
from producer.queue.workers import ANNOUNCEMENT_S, Announcement
from producer.redis_client import connect
from producer.settings import without_password

# Variables of other Celery programs, which people set in the belief that they choose the Redis.
CELERY_VARIABLES: Final = (
    *("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"),
    *("CELERY_RESULT_BACKEND", "CELERY_CONFIG_MODULE", "REDIS_URL"),
)
OLDEST: Final = (7, 0)  # the rules in docs/redis.acl have selectors, which older ones do not know
CLOCK_S: Final = 5.0  # apart; modification times of files and the pages' times are compared between machines
FULL_SHARE: Final = 0.9
GIB: Final = 1 << 30
KEEP: Final = "`redis-cli config set appendonly yes`, and in its configuration; its folder must lie on a disk with room"


def not_answering(error: PosterError) -> Finding:
    """Absence told from a wrong password: one is started, the other one has another URL."""
    text = f"{error}{_foreign_variables()}"
    if isinstance(error, RedisRefused):
        return misconfigured("redis", text, "it runs: correct user and password in POSTERS_REDIS_URL")
    return unreachable("redis", text, "start it: `redis-server`, or `docker compose up -d redis`")


def of_queue(producer: Producer, info: Mapping[str, Any]) -> Finding:
    """Whether the Redis of the queue is one that can be used, and takes a write; `info` is what it says of itself."""
    url = without_password(producer.settings.redis_url)
    if info.get("role") in ("slave", "replica"):
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        return misconfigured("redis", f"{url} is a replica of {primary}", "set POSTERS_REDIS_URL to the primary")
    if info.get("cluster_enabled"):
        way_out = "use a Redis that is no cluster: the keys of a job must lie on one server"
        return misconfigured("redis", f"{url} is a node of a cluster", way_out)
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        least = ".".join(map(str, OLDEST))
        return misconfigured("redis", f"{url} is Redis {version}", f"install Redis {least} or newer, or Valkey")
    producer.job_store.check_write()
    return Finding("redis", f"{url} takes a write{_foreign_variables()}")


def keeping(producer: Producer, info: Mapping[str, Any]) -> list[Finding]:
    """Whether what is given to Redis stays: evicted, or lost at a restart; of the store's Redis as well."""
    settings = producer.settings
    if settings.store.startswith("sqlite:"):
        return [_eviction(info), _persistence(producer, info, holds_vectors=False), _room(info)]
    with closing(connect(settings.store)) as client:
        try:
            theirs = dict(client.info())
        except PosterError:  # the finding `store` says so
            theirs = {}
    if not theirs or theirs.get("run_id") == info.get("run_id"):
        return [_eviction(info), _persistence(producer, info, holds_vectors=True), _room(info)]
    return [
        *(_eviction(info), _persistence(producer, info, holds_vectors=False), _room(info)),
        *(_eviction(theirs, " of the store"), _store_persistence(theirs), _room(theirs, " of the store")),
    ]


def clocks(producer: Producer, workers: list[Announcement]) -> Finding:
    """Whether Redis, this machine and the machines of the workers have the same time."""

    def check() -> Finding:
        before = time.time()
        seconds, microseconds = producer.job_store.redis.time()
        here, there = (before + time.time()) / 2, int(seconds) + int(microseconds) / 1e6
        apart = {"this machine": here - there}
        for worker in workers:
            by = float(worker.get("at") or there) - there
            by = min(0.0, by + ANNOUNCEMENT_S) if by < 0 else by  # it said so that long ago at most
            apart[f"{worker.name} on {worker.get('host') or 'its machine'}"] = by
        wrong = {name: by for name, by in apart.items() if abs(by) > CLOCK_S}
        if not wrong:
            return Finding("clocks", "Redis, this machine and the workers have the same time")
        shown = ", ".join(f"{name} is {abs(by):.0f} s {'ahead' if by > 0 else 'behind'}" for name, by in wrong.items())
        way_out = "let NTP set each clock: `timedatectl set-ntp true`, or `w32tm /resync`"
        return warning("clocks", f"by the clock of Redis, {shown}", way_out)

    return attempt("clocks", check, RIGHTS)


def _foreign_variables() -> str:
    """A note on variables that look as if they chose the Redis, which POSTERS_REDIS_URL alone does."""
    found = sorted(name for name in os.environ if name in CELERY_VARIABLES)
    return f"; {', '.join(found)} in the environment does not apply here, POSTERS_REDIS_URL does" if found else ""


def _eviction(info: Mapping[str, Any], whose: str = "") -> Finding:
    name, policy = f"eviction{whose}", str(info.get("maxmemory_policy", ""))
    if policy in ("noeviction", ""):
        return Finding(name, "Redis evicts nothing (noeviction)")
    lost = "vectors" if whose else "queued batches"
    way_out = "`redis-cli config set maxmemory-policy noeviction`, and in its configuration"
    return misconfigured(name, f"maxmemory-policy is {policy}: when memory is short, Redis may evict {lost}", way_out)


def _persistence(producer: Producer, info: Mapping[str, Any], *, holds_vectors: bool) -> Finding:
    name, risk = "persistence", _risk(info)
    if not risk:
        return Finding(name, "Redis keeps a log of its writes (appendonly yes)")
    jobs = len(producer.job_store.list_active())
    lost = f"what is queued ({jobs} unfinished job(s)){' and the vectors' if holds_vectors else ''}"
    found = misconfigured if holds_vectors or info.get("aof_enabled") else warning
    return found(name, f"{risk}: a restart loses {lost}{_since(info)}", KEEP)


def _store_persistence(info: Mapping[str, Any]) -> Finding:
    name, risk = "persistence of the store", _risk(info)
    if not risk:
        return Finding(name, "Redis keeps a log of its writes (appendonly yes)")
    return misconfigured(name, f"{risk}: a restart loses the vectors{_since(info)}", KEEP)


def _risk(info: Mapping[str, Any]) -> str:
    """Why a restart of Redis would lose something; empty: it keeps a log, and can write it."""
    if not info.get("aof_enabled"):
        return "Redis keeps no log of its writes (appendonly no)"
    status = info.get("aof_last_write_status", "ok")
    return "" if status == "ok" else f"Redis cannot write its log (aof_last_write_status:{status})"


def _since(info: Mapping[str, Any]) -> str:
    """Since when: the last snapshot, if there is one, or the start of the server."""
    saved, changes = int(info.get("rdb_last_save_time", 0)), info.get("rdb_changes_since_last_save", "?")
    if not saved:
        return ""
    return time.strftime(f": {changes} change(s) since %Y-%m-%d %H:%M UTC", time.gmtime(saved))


def _room(info: Mapping[str, Any], whose: str = "") -> Finding:
    name, used = f"memory{whose}", int(info.get("used_memory", 0))
    limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    shown = f"Redis uses {used / GIB:.2f} GiB" + (f" of {limit / GIB:.2f}" if limit else "")
    if not limit or used < FULL_SHARE * limit:
        return Finding(name, shown)
    return warning(name, shown, "give it more memory (maxmemory); once it is full, workers and `index` wait")
