"""The commands `doctor`, which checks all that can stop the work, and `ready`, for health checks."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from typing import Final

import click

from producer.cli.main import EX_OK, EX_SOME_FAILED, EX_UNREACHABLE, EX_USAGE, as_json, example
from producer.client import Producer
from producer.doctor.examine import examine
from producer.doctor.finding import Status
from producer.errors import RedisUnreachable
from producer.host import worker_command
from producer.output import emit, emit_json, notify
from producer.queue.workers import FAILED, WorkerRegistry, why_not_ready
from producer.settings import load_settings

MARKS: Final = {Status.OK: "ok  ", Status.WARNING: "WARN"}


@example("python -m producer doctor")
@click.command()
@click.option("--clear-dead-letters", is_flag=True, help="First, remove the messages that were rejected.")
@as_json
def doctor(clear_dead_letters: bool, as_json: bool) -> None:
    """Check Redis, workers, model, device, posters root, store and dead letters, and print what to do.

    It asks whether each takes a write, keeps what it was given, and has room, and whether the workers use the same
    store and the same posters root. It creates no store.

    Exit status: 0 nothing stops the work, and a warning may say what could be lost; 2 something is misconfigured;
    3 something is out of reach, or no worker is alive.
    """
    with closing(Producer()) as producer:
        if clear_dead_letters:
            notify(f"{producer.dead_letters.clear()} rejected message(s) removed")
        findings = list(examine(producer))
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            emit(f"{MARKS.get(finding.status, 'FAIL')} {finding.name}: {finding.text}")
            if finding.way_out:
                emit(f"     → {finding.way_out}")
    if all(finding.ok for finding in findings):
        return
    is_away = any(finding.status is Status.UNREACHABLE for finding in findings)
    sys.exit(EX_UNREACHABLE if is_away else EX_USAGE)


@example("python -m producer ready --worker posters@gpu1")
@click.command()
@click.option("--worker", "name", metavar="NODE", help="Node name of the worker; default: any.")
@click.option("--live", is_flag=True, help="Also 0 while it loads or waits: for what restarts a worker with status 1.")
def ready(name: str | None, live: bool) -> None:
    """Exit with status 0 if a worker is ready, else with 1 and the reason: for health checks.

    Ready: its model is loaded, or unloaded until work comes; it renews registry entry and lease, takes messages,
    makes progress while it has work, and reaches its device, the store and the posters root. A worker that does not for
    long ends by itself.

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
        others = f" (alive: {', '.join(worker.name for worker in alive)})" if alive else ""
        notify(f"no worker{f' {name}' if name else ''} is alive{others}; start it: `{worker_command()}`")
    sys.exit(EX_SOME_FAILED)
