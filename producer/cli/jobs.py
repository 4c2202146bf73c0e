"""The commands `status`, `failures`, `cancel` and `retry`: jobs in the ledger."""

from __future__ import annotations

import sys
from functools import partial
from itertools import chain
from pathlib import Path

import click

from producer.cli.main import EX_OK, EX_SOME_FAILED, as_json, example, exit_interrupted
from producer.client import Producer
from producer.collection.scan import was_sent
from producer.errors import FAILURE_WORDS
from producer.host import program, worker_command
from producer.indexing.dispatch import follow, progress_bar
from producer.indexing.waiting import WaitStatus
from producer.output import (
    emit,
    emit_json,
    emit_json_list,
    emit_ledger,
    ledger_entry,
    ledger_line,
    notify,
    notify_failures,
    notify_imbalance,
)
from producer.queue.messages import Poster
from producer.queue.progress import NOTHING, Failure, Progress
from producer.redis_client import retry_until_available


@example("python -m producer status last")
@click.command()
@click.argument("job", required=False)
@as_json
def status(job: str | None, as_json: bool) -> None:
    """Show the workers and the newest jobs, or one JOB (an id, or `last`)."""
    producer = Producer()
    jobs = [producer.job(job)] if job else [producer.job(name) for name in producer.job_store.list_jobs()]
    progresses = [entry.progress() for entry in jobs]
    workers = producer.workers()
    for progress in progresses:
        notify_imbalance(progress)
    exit_code = EX_OK if all(progress.is_balanced for progress in progresses) else EX_SOME_FAILED
    if as_json:
        entries = [
            ledger_entry(progress) | {"state": _state(progress), "open_batches": progress.open_batches}
            for progress in progresses
        ]
        worker_entries = [{"name": worker.name, "state": worker.state, **worker.fields} for worker in workers]
        emit_json({"jobs": entries, "workers": worker_entries})
        sys.exit(exit_code)
    for worker in workers:
        about = " ".join(filter(None, (worker.get("model"), worker.get("device"), worker.get("precision"))))
        notify(f"worker {worker.name}: {worker.state} {about}")
        if worker.get("bottleneck"):
            notify(f"  {worker.get('images_per_second')} images/s; {worker.get('bottleneck')}")
    if not workers:
        notify(f"no worker is alive: start one with `{worker_command()}`")
    for progress in progresses:
        emit(f"{_state(progress)} {ledger_line(progress)} open_batches {progress.open_batches}")
    if not progresses:
        notify(f"no jobs yet: `{program()} index posters/`")
    sys.exit(exit_code)


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


def _state(progress: Progress) -> str:
    if not progress.is_balanced:
        return "incomplete"  # Redis has lost some of it
    return "finished" if progress.at_rest and progress.state == "sent" else str(progress.state)


@example("python -m producer retry last --only crashed-worker")
@click.command()
@click.argument("job")
@click.option("--only", type=click.Choice(FAILURE_WORDS), help="Only failures with this word.")
@as_json
def retry(job: str, only: str | None, as_json: bool) -> None:
    """Send the failed posters of JOB again, as a new job that this command waits for."""
    producer = Producer()
    entry = producer.job(job)
    failed = entry.progress().failed
    call = partial(retry_until_available, on_wait=WaitStatus(producer).report)
    found = (failure for failure in producer.job_store.failures(entry.id, call) if only in (None, failure.word))
    first = next(found, None)  # the rest is read while it is sent: there may be a million
    progress = NOTHING
    if first is None:
        notify(f"job {entry.id} has no failures" + (f" with the word {only}" if only else ""))
    else:
        new = producer.begin()
        notify(f"sending the failed posters of job {entry.id} as job {new.id}")
        posters = (_retried(failure, producer.settings.catalogue) for failure in chain([first], found))
        try:
            with progress_bar(quiet=as_json, total=None if only else failed) as bar:
                feed = partial(producer.feed, new, posters)
                again = f"run `{program()} retry {entry.id}`"
                progress = follow(producer, new, lambda on_wait: feed(on_wait=on_wait), bar, again=again)
        except KeyboardInterrupt as interrupt:
            exit_interrupted(interrupt)
        notify_failures(producer, progress)
    if as_json or progress is not NOTHING:
        emit_ledger(progress, as_json=as_json)
    sys.exit(EX_OK if progress.is_balanced and not progress.failed else EX_SOME_FAILED)


def _retried(failure: Failure, catalogue: Path | None) -> Poster | Failure:
    """The poster to send again; a failure that was never sent stays one."""
    return Poster(failure.id, failure.path) if was_sent(failure, catalogue) else failure
