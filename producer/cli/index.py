"""``index``: puts what is new or changed on the queue, and waits for it."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Final

import click

from producer.cli.dry_run import preview
from producer.cli.main import EX_OK, EX_SOME_FAILED, as_json, example, leave_interrupted, status_of
from producer.cli.prune import prune_and_notify, show, yes_option
from producer.cli.watch import watch_and_tell
from producer.client import Producer
from producer.collection.catalogue import require_catalogue
from producer.collection.paths import EXTENSIONS
from producer.errors import PosterError
from producer.indexing.index_job import search, send_all
from producer.maintenance.spaces import last_words
from producer.output import ledger_entry, ledger_line, notify, notify_failures
from producer.queue.progress import Progress
from producer.queue.workers import common_space
from producer.settings import load_settings

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
    found = search(producer, paths)
    if prune_too:
        require_catalogue(producer.settings, found.catalogue)
    try:
        job, progress = send_all(producer, found, force=force, verify=verify, detach=detach, quiet=as_json)
    except KeyboardInterrupt as interrupt:
        leave_interrupted(interrupt)
    if detach:
        notify(f"sent; follow it with `python -m producer status {job.id}`")
    if not progress.submitted and not progress.cancelled:
        where = ", ".join(paths) or producer.settings.root
        notify(f"no posters were found in {where}; looked for are files that end with {', '.join(sorted(EXTENSIONS))}")
    with suppress(PosterError):  # from here on nothing may keep the ledger from being told
        notify_failures(producer, progress)
    status = EX_SOME_FAILED if progress.failed else EX_OK
    if progress.state == "cancelled":
        notify(f"job {job.id} was cancelled; {progress.cancelled} poster(s) were withdrawn")
    elif prune_too:
        try:
            prune_and_notify(producer, found.starts, found.catalogue, yes=yes)
        except PosterError as error:
            notify(f"error: {error}")
            status = status_of(error)
    with suppress(PosterError):
        _notify_notes(producer, progress, waited=not detach)
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(status)


def _refuse_together(ctx: click.Context, one: str, *others: str) -> None:
    """Say which of two options is in the way of the other."""
    for other in others:
        if ctx.params[one] and ctx.params[other]:
            names = {option.name: option.opts[0] for option in ctx.command.params}
            raise click.UsageError(f"{names[one]} and {names[other]} exclude each other: {_EXCLUSIVE[one]}")


def _notify_notes(producer: Producer, progress: Progress, *, waited: bool) -> None:
    """What held each worker up on its last batches, whether the weights are trained, whether readers use the space."""
    workers = producer.workers()
    for worker in workers if progress.embedded and waited else ():
        if worker.get("bottleneck"):
            notify(f"{worker.name}: {worker.get('images_per_second')} images/s, {worker.get('bottleneck')}")
    space = common_space(workers)
    if space is not None and space.weights.startswith("untrained"):
        notify("note: these vectors come from UNTRAINED weights; they are good for demonstrations and tests only")
    if words := last_words(producer.settings, space):
        notify(words)
