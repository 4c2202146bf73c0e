"""The commands `status`, `failures`, `cancel` and `retry`: jobs in the ledger."""

from __future__ import annotations

import math
import sys
import time
from typing import Final

import click
from tqdm import tqdm

from producer.cli.main import EX_OK, EX_SOME_FAILED, as_json, example, exit_interrupted
from producer.client import Producer
from producer.errors import FAILURE_WORDS
from producer.host import program, worker_command
from producer.indexing.dispatch import POLL_S, show_progress
from producer.indexing.retry import retry_failed
from producer.indexing.waiting import WaitStatus
from producer.output import (
    emit,
    emit_json,
    emit_json_list,
    emit_ledger,
    emit_table,
    job_entry,
    notify,
    notify_failures,
    notify_imbalance,
    worker_entry,
)
from producer.queue.progress import NOTHING, Progress
from producer.queue.workers import READY, Announcement, why_bulk_rests
from producer.redis_client import retry_until_available

FOLLOW_EVERY_S: Final = 2.0  # between two rows, where stdout is no terminal
JOB_COLUMNS: Final = ("job", "state", "done", "posters", "embedded", "reused", "unchanged", "failed", "speed", "left")
JOB_NUMBERS: Final = range(2, len(JOB_COLUMNS))  # columns aligned to the right
WORKER_COLUMNS: Final = ("worker", "state", "model", "device", "precision", "speed", "")


@example("python -m producer status last --follow")
@click.command()
@click.argument("job", required=False)
@click.option("--follow", "follow_it", is_flag=True, help="Show the progress of JOB (default: last) until its end.")
@as_json
def status(job: str | None, follow_it: bool, as_json: bool) -> None:
    """Show the workers and the newest jobs, or one JOB (an id, or `last`).

    A job is `sending` while its producer sends more, `sent` while batches are open, then `finished`; or it was
    `cancelled`, or `abandoned` by a producer that died.
    """
    producer = Producer()
    if follow_it:
        progress = _follow(producer, job or "last", as_json=as_json)
        notify_imbalance(progress)
        sys.exit(EX_OK if progress.is_balanced and not progress.failed else EX_SOME_FAILED)
    jobs = [producer.job(job)] if job else [producer.job(name) for name in producer.job_store.list_jobs()]
    progresses = [entry.progress() for entry in jobs]
    workers = producer.workers()
    for progress in progresses:
        notify_imbalance(progress)
    exit_code = EX_OK if all(progress.is_balanced for progress in progresses) else EX_SOME_FAILED
    paused = producer.claims.paused_since()
    rests = why_bulk_rests(paused, workers)
    if as_json:
        entries = {"jobs": list(map(job_entry, progresses)), "workers": list(map(worker_entry, workers))}
        emit_json(entries | {"paused_since": paused, "bulk_rests": rests or None})
        sys.exit(exit_code)
    if rests:
        emit(f"the bulk lane rests: {rests}" + ("" if paused is None else f"; `{program()} resume` ends it"))
        emit("")
    if workers:
        emit_table([WORKER_COLUMNS, *map(_worker_row, workers)])
    else:
        emit(f"no worker is alive: start one with `{worker_command()}`")
    emit("")
    if progresses:
        emit_table([JOB_COLUMNS, *map(_job_row, progresses)], right=JOB_NUMBERS)
    else:
        emit(f"no jobs yet: `{program()} index posters/`")
    sys.exit(exit_code)


def _follow(producer: Producer, name: str, *, as_json: bool) -> Progress:
    """Show a job's progress until its end: a bar on a terminal, else a row, or an object, for each change."""
    job, wait_status = producer.job(name), WaitStatus(producer)
    progress = retry_until_available(job.progress, wait_status.report)
    shown, shown_at = None, -FOLLOW_EVERY_S
    # where the bar begins, so that its speed is today's, not the average since the job began
    begin = {"initial": progress.done, "total": progress.total, "desc": progress.job, "unit": "poster"}
    with tqdm(**begin, file=sys.stdout, disable=True if as_json else None, leave=False) as bar:
        while True:
            bar.total = progress.total
            show_progress(bar, progress)
            is_due = time.monotonic() - shown_at >= FOLLOW_EVERY_S
            if (progress != shown and is_due and bar.disable) or progress.at_rest:
                if as_json:
                    emit_json(job_entry(progress))
                else:
                    emit_table([JOB_COLUMNS] * (shown is None) + [_job_row(progress)], right=JOB_NUMBERS)
                shown, shown_at = progress, time.monotonic()
            if progress.at_rest:
                return progress
            wait_status.refresh()
            time.sleep(POLL_S)
            progress = retry_until_available(job.progress, wait_status.report)


def _job_row(progress: Progress) -> tuple[str, ...]:
    entry = job_entry(progress)
    counts = (f"{entry[name]:,}" for name in ("embedded", "reused", "unchanged", "failed"))
    total, percent, left = entry["total"], entry["percent"], entry["seconds_left"]
    return (
        *(progress.job, entry["state"]),
        "" if percent is None else f"{math.floor(percent)} %",
        f"{progress.done:,} of {progress.submitted:,}+" if total is None else f"{progress.done:,} of {total:,}",
        *counts,
        f"{progress.per_second:.1f}/s",
        "" if progress.at_rest or left is None else tqdm.format_interval(left),
    )


def _worker_row(worker: Announcement) -> tuple[str, ...]:
    about = (worker.get(field) for field in ("model", "device", "precision"))
    speed = worker.get("images_per_second")
    note = worker.get("bottleneck") if worker.state == READY else worker.get("reason") or worker.get("stage")
    lost = f"THE CPU in place of {worker.get('lost_device')}" if worker.get("lost_device") else ""
    notes = "; ".join(filter(None, (worker.quiet, worker.unloading, lost, worker.get("fault") or note)))
    return (worker.name, worker.state, *about, f"{speed} images/s" if speed else "", notes)


@example("python -m producer failures last --json")
@click.command()
@click.argument("job")
@as_json
def failures(job: str, as_json: bool) -> None:
    """List the posters of JOB that failed: path, word, reason.

    They come unordered, so that a million need no memory; `sort` orders them.
    With --json they are one list, an element on each line.
    """
    producer = Producer()
    entry = producer.job(job)
    entry.progress()
    found = producer.job_store.failures(entry.id)
    if as_json:
        emit_json_list(failure._asdict() for failure in found)
        return
    for failure in found:
        emit(failure.path, failure.word, failure.reason)


@example("python -m producer cancel last")
@click.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Withdraw the batches of JOB that no worker has begun; the others are finished and counted."""
    producer = Producer()
    entry = producer.job(job)
    notify(f"{entry.cancel()} poster(s) withdrawn")
    emit_ledger(entry.progress())


@example("python -m producer pause")
@click.command()
def pause() -> None:
    """Let bulk work rest: workers finish the batch in work and begin no other, and still answer requests.

    It lasts until `resume`, whatever is restarted meanwhile. No batch is lost, and no attempt is counted.
    """
    emit(f"the bulk lane is paused since {_at(Producer().claims.pause())}")


@example("python -m producer resume")
@click.command()
def resume() -> None:
    """End what `pause` began: workers go on with bulk work."""
    claims = Producer().claims
    if claims.paused_since() is None:
        notify("the bulk lane is not paused")
    emit(f"the bulk lane goes on; {claims.resume()} batch(es) rested")


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


@example("python -m producer retry last --only crashed-worker")
@click.command()
@click.argument("job")
@click.option("--only", type=click.Choice(FAILURE_WORDS), help="Only failures with this word.")
@as_json
def retry(job: str, only: str | None, as_json: bool) -> None:
    """Send the failed posters of JOB again, as a new job that this command waits for."""
    producer = Producer()
    entry = producer.job(job)
    progress = NOTHING
    try:
        retried = retry_failed(producer, entry, only, quiet=as_json)
    except KeyboardInterrupt as interrupt:
        exit_interrupted(interrupt)
    if retried is None:
        notify(f"job {entry.id} has no failures" + (f" with the word {only}" if only else ""))
    else:
        progress = retried
        notify_failures(producer, progress)
    if as_json or progress is not NOTHING:
        emit_ledger(progress, as_json=as_json)
    sys.exit(EX_OK if progress.is_balanced and not progress.failed else EX_SOME_FAILED)
