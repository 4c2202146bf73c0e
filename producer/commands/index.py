"""``index`` and ``retry``: what puts posters on the queue."""

from __future__ import annotations

import heapq
import json
import sys
from itertools import chain, islice
from typing import Final

import click

from producer.client import Producer
from producer.commands.group import EX_INTERRUPTED, EX_OK, EX_SOME_FAILED, as_json, example
from producer.indexing import currency, find, index, ledger_entry, ledger_line, look_at_catalogue, say
from producer.spaces import last_words
from worker.errors import FAILURE_WORDS
from worker.messages import Poster
from worker.progress import Failure
from worker.settings import load_settings

FAILURES_SHOWN: Final = 20


@example("python -m producer index posters/")
@click.command("index")
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option("--batch", type=click.IntRange(1, 4096), help="Posters per message (default 256).")
@click.option("--force", is_flag=True, help="Embed what the store already holds, too.")
@click.option("--detach", is_flag=True, help="Send everything and leave; follow with `status`.")
@click.option("--dry-run", is_flag=True, help="Only list what would be sent, one path per line; sends nothing.")
@as_json
def index_command(
    paths: tuple[str, ...], batch: int | None, force: bool, detach: bool, dry_run: bool, as_json: bool
) -> None:
    """Embed the posters in PATH (files or folders; default: the whole posters root) that are new or changed."""
    producer = Producer(load_settings(posters_per_batch=batch))
    if dry_run:
        _dry_run(producer, paths, force=force)
        return
    try:
        job, progress = index(producer, paths, force=force, detach=detach, quiet=as_json)
    except KeyboardInterrupt as interrupt:
        job_id = interrupt.args[0] if interrupt.args else "last"
        say(f"interrupted; job {job_id} goes on. Follow it: `python -m producer status {job_id}`; ")
        say(f"stop it: `python -m producer cancel {job_id}`")
        sys.exit(EX_INTERRUPTED)
    if detach:
        say(f"sent; follow it with `python -m producer status {job.id}`")
    failures = heapq.nsmallest(FAILURES_SHOWN, producer.ledger.failures(job.id)) if progress.failed else []
    for failure in failures:
        say(f"failed: {failure.path}: {failure.word}: {failure.reason}")
    if progress.failed > len(failures):
        say(f"… and {progress.failed - len(failures)} more: `python -m producer failures {job.id}`")
    if progress.state == "cancelled":
        say(f"job {job.id} was cancelled; {progress.cancelled} poster(s) were withdrawn")
    _warn_if_untrained(producer)
    if progress.embedded and not detach:
        _say_what_held_it_up(producer)
    if words := last_words(producer.settings, producer.space()):
        say(words)
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


@example("python -m producer retry last --only crashed-worker")
@click.command()
@click.argument("job")
@click.option("--only", type=click.Choice(FAILURE_WORDS), help="Only failures of this word.")
@as_json
def retry(job: str, only: str | None, as_json: bool) -> None:
    """Send the failed posters of JOB again, as a new job that this command waits for."""
    producer = Producer()
    entry = producer.job(job)
    entry.progress()
    found = (failure for failure in producer.ledger.failures(entry.id) if only in (None, failure.word))
    first = next(found, None)  # the rest is read while it is sent: a job may have a million
    if first is None:
        say(f"job {entry.id} has no failures" + (f" of the word {only}" if only else ""))
        return
    new, sent = producer.begin(), 0
    for seen in producer.feed(new, map(_as_poster, chain([first], found))):
        sent = seen
    say(f"sent {sent} poster(s) as job {new.id}")
    progress = new.wait()
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


def _dry_run(producer: Producer, paths: tuple[str, ...], *, force: bool) -> None:
    found = find(producer, paths)
    look_at_catalogue(producer.settings)
    is_current = currency(producer)
    todo = unchanged = broken = 0
    while block := list(islice(found, producer.settings.posters_per_batch)):
        posters = [item for item in block if isinstance(item, Poster)]
        current = is_current(posters) if posters and not force else set()
        unchanged += len(current)
        for item in block:
            if isinstance(item, Failure):
                broken += 1
                say(f"cannot be sent: {item.path}: {item.word}: {item.reason}")
            elif item.id not in current:
                todo += 1
                click.echo(item.path)
    say(f"{todo} poster(s) to send, {unchanged} unchanged, {broken} that cannot be sent; nothing was sent")


def _as_poster(failure: Failure) -> Poster | Failure:
    """A failed poster as it is sent again; one that never was a file fails again as it did."""
    return Poster(failure.id, failure.path) if failure.word != "unsupported" or "#" not in failure.id else failure


def _say_what_held_it_up(producer: Producer) -> None:
    """Each worker's word on its last batches: bound by the device, by decoding or by the store."""
    for worker in producer.workers():
        if worker.get("bottleneck"):
            say(f"{worker.name}: {worker.get('images_per_second')} images/s, {worker.get('bottleneck')}")


def _warn_if_untrained(producer: Producer) -> None:
    space = producer.space()
    if space is not None and space.weights.startswith("untrained"):
        say("note: these vectors come from UNTRAINED weights; they are good for demonstrations and tests only")
