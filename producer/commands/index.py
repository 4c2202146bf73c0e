"""``index`` and ``retry``: what puts posters on the queue."""

from __future__ import annotations

import json
import sys
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import Final

import click

from producer.client import Producer
from producer.commands.group import EX_INTERRUPTED, EX_OK, EX_SOME_FAILED, EX_USAGE, as_json, example
from producer.commands.preview import preview
from producer.commands.prune import prune_and_say, require_catalogue, show, yes_option
from producer.commands.watching import watch_and_tell
from producer.finding import was_sent
from producer.indexing import ledger_entry, ledger_line, say, search, send_all
from producer.spaces import last_words
from worker.errors import FAILURE_WORDS, ConfigurationError, PosterError
from worker.messages import Poster
from worker.progress import Failure, Progress
from worker.settings import load_settings

SHOWN: Final = 20  # failures that a person reads without asking for them
SETTLE_S: Final = 2.0  # a copy over a slow line pauses for less
SEARCH_EVERY_S: Final = 600.0  # what the system does not tell is late by so much at most
_EXCLUSIVE: Final = {
    "detach": "it does not wait for the job, and what comes after the job would have to",
    "watch": "it goes by size and time, and sends what has changed",
}


@example("python -m producer index posters/")
@click.command("index")
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option("--batch", type=click.IntRange(1, 4096), help="Posters per message (default 256).")
@click.option("--force", is_flag=True, help="Embed what the store already holds, too.")
@click.option("--verify", is_flag=True, help="Compare contents (the worker reads every file); trust no date.")
@click.option("--prune", "prune_too", is_flag=True, help="Afterwards, drop vectors whose posters are gone from PATH.")
@yes_option
@click.option("--watch", is_flag=True, help="Keep up with what changes in PATH, until Ctrl-C.")
@click.option(
    "--settle",
    type=click.FloatRange(0.1, 3600),
    default=SETTLE_S,
    show_default=True,
    help="With --watch: seconds that a file must rest before it is read.",
)
@click.option(
    "--rescan",
    type=click.FloatRange(1),
    default=SEARCH_EVERY_S,
    show_default=True,
    help="With --watch: seconds between two looks at everything.",
)
@click.option("--detach", is_flag=True, help="Send everything and leave; follow with `status`.")
@click.option("--dry-run", is_flag=True, help="Only list what would be sent, one path per line; sends nothing.")
@as_json
@click.pass_context
def index_command(
    ctx: click.Context,
    paths: tuple[str, ...],
    batch: int | None,
    force: bool,
    verify: bool,
    prune_too: bool,
    yes: bool,
    watch: bool,
    settle: float,
    rescan: float,
    detach: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Embed the posters in PATH (files or folders; default: the whole posters root) that are new or changed."""
    _refuse_together(ctx, "detach", "prune_too", "watch")
    _refuse_together(ctx, "watch", "force", "verify", "dry_run")
    producer = Producer(load_settings(posters_per_batch=batch))
    if watch:
        watch_and_tell(
            producer, paths, prune=prune_too, yes=yes, settle_s=settle, search_every_s=rescan, as_json=as_json
        )
    if dry_run:
        found = preview(producer, paths, force=force or verify, as_json=as_json)
        if prune_too:
            show(producer, found.starts, found.catalogue, yes=yes, as_json=as_json, mark="prune: ")
        return
    if prune_too:
        require_catalogue(producer)
    found = search(producer, paths)
    try:
        job, progress = send_all(producer, found, force=force, verify=verify, detach=detach, quiet=as_json)
    except KeyboardInterrupt as interrupt:
        job_id = interrupt.args[0] if interrupt.args else "last"
        say(f"interrupted; job {job_id} goes on. Follow it: `python -m producer status {job_id}`; ")
        say(f"stop it: `python -m producer cancel {job_id}`")
        sys.exit(EX_INTERRUPTED)
    if detach:
        say(f"sent; follow it with `python -m producer status {job.id}`")
    _say_failures(producer, progress)
    status = EX_SOME_FAILED if progress.failed else EX_OK
    if progress.state == "cancelled":
        say(f"job {job.id} was cancelled; {progress.cancelled} poster(s) were withdrawn")
    elif prune_too:
        try:
            prune_and_say(producer, found.starts, found.catalogue, yes=yes)
        except PosterError as error:  # the ledger is still to be told
            say(f"error: {error}")
            status = EX_USAGE if isinstance(error, ConfigurationError) else EX_SOME_FAILED
    _warn_if_untrained(producer)
    if progress.embedded and not detach:
        _say_what_held_it_up(producer)
    if words := last_words(producer.settings, producer.space()):
        say(words)
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(status)


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
    for seen in producer.feed(
        new, (_as_sent(failure, producer.settings.catalogue) for failure in chain([first], found))
    ):
        sent = seen
    say(f"sent {sent} poster(s) as job {new.id}")
    progress = new.wait()
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


def _refuse_together(ctx: click.Context, one: str, *others: str) -> None:
    """Say which of two options is in the way of the other."""
    for other in others:
        if ctx.params[one] and ctx.params[other]:
            names = {option.name: option.opts[0] for option in ctx.command.params}
            raise click.UsageError(f"{names[one]} and {names[other]} exclude each other: {_EXCLUSIVE[one]}")


def _say_failures(producer: Producer, progress: Progress) -> None:
    failures = nsmallest(SHOWN, producer.ledger.failures(progress.job)) if progress.failed else []
    for failure in failures:
        say(f"failed: {failure.path}: {failure.word}: {failure.reason}")
    if progress.failed > SHOWN:
        say(f"… and {progress.failed - SHOWN} more: `python -m producer failures {progress.job}`")
    root = producer.settings.root
    if any(failure.word == "missing" and (root / failure.path).is_file() for failure in failures):
        theirs = ", ".join(sorted({worker.get("root") for worker in producer.workers()} - {""})) or "another folder"
        say(f"files that are missing for the worker are here: it looks under {theirs}, this program under {root}")


def _as_sent(failure: Failure, catalogue: Path | None) -> Poster | Failure:
    """A failed poster as it is sent again; what never was a poster fails again as it did."""
    return Poster(failure.id, failure.path) if was_sent(failure, catalogue) else failure


def _say_what_held_it_up(producer: Producer) -> None:
    """Each worker's word on its last batches: bound by the device, by decoding or by the store."""
    for worker in producer.workers():
        if worker.get("bottleneck"):
            say(f"{worker.name}: {worker.get('images_per_second')} images/s, {worker.get('bottleneck')}")


def _warn_if_untrained(producer: Producer) -> None:
    space = producer.space()
    if space is not None and space.weights.startswith("untrained"):
        say("note: these vectors come from UNTRAINED weights; they are good for demonstrations and tests only")
