"""``status``, ``failures``, ``cancel``: what the ledger says of jobs, and how to end one."""

from __future__ import annotations

import json

import click

from producer.client import Producer
from producer.commands.group import as_json, example
from producer.voice import ledger_entry, ledger_line, say
from worker.progress import Progress


@example("python -m producer status last")
@click.command()
@click.argument("job", required=False)
@as_json
def status(job: str | None, as_json: bool) -> None:
    """Show the workers and the newest jobs, or one JOB (an id, or `last`)."""
    producer = Producer()
    jobs = [producer.job(job)] if job else [producer.job(name) for name in producer.ledger.jobs()]
    progresses = [entry.progress() for entry in jobs]
    workers = producer.workers()
    if as_json:
        entries = [
            ledger_entry(progress) | {"state": _state(progress), "open_batches": progress.open_batches}
            for progress in progresses
        ]
        people = [{"name": worker.name, "state": worker.state, **worker.fields} for worker in workers]
        click.echo(json.dumps({"jobs": entries, "workers": people}))
        return
    for worker in workers:
        about = " ".join(filter(None, (worker.get("model"), worker.get("device"), worker.get("precision"))))
        say(f"worker {worker.name}: {worker.state} {about}")
        if worker.get("bottleneck"):
            say(f"  {worker.get('images_per_second')} images/s; {worker.get('bottleneck')}")
    if not workers:
        say("no worker is alive: start one with `celery -A worker worker`")
    for progress in progresses:
        click.echo(f"{_state(progress)} {ledger_line(progress)} open_batches {progress.open_batches}")
    if not progresses:
        say("no jobs yet: `python -m producer index posters/`")


@example("python -m producer failures last --json")
@click.command()
@click.argument("job")
@as_json
def failures(job: str, as_json: bool) -> None:
    """List the posters of JOB that failed: path, word, reason.

    They come in no order, as the ledger gives them, so that a million take no memory; `sort` orders them.
    With --json they are one list, an element on each line.
    """
    producer = Producer()
    entry = producer.job(job)
    entry.progress()
    before = "["
    for failure in producer.ledger.failures(entry.id):
        if as_json:
            click.echo(before + json.dumps(failure._asdict()), nl=False)
            before = ",\n"
        else:
            click.echo(f"{failure.path}\t{failure.word}\t{failure.reason}")
    if as_json:
        click.echo("[]" if before == "[" else "]")


@example("python -m producer cancel last")
@click.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Withdraw what no worker has begun of JOB; a batch in work is finished and counted."""
    producer = Producer()
    entry = producer.job(job)
    say(f"{entry.cancel()} poster(s) withdrawn")
    click.echo(ledger_line(entry.progress()))


def _state(progress: Progress) -> str:
    return "finished" if progress.at_rest and progress.state == "sent" else str(progress.state)
