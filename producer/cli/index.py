"""The `index` command: sends new and changed posters to the queue, and waits for them."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from producer.cli.dry_run import preview
from producer.cli.main import (
    EX_INTERRUPTED,
    EX_OK,
    EX_SOME_FAILED,
    as_json,
    example,
    exit_interrupted,
    exit_status,
    log_until_end,
)
from producer.cli.prune import preview_prune, prune_and_notify, yes_option
from producer.client import Producer
from producer.collection.image_formats import EXTENSIONS
from producer.collection.paths import inside_root, resolved_root
from producer.errors import PosterError
from producer.host import program
from producer.indexing.index_job import scan, send_all
from producer.logs.setup import JSON, is_json
from producer.maintenance.spaces import unread_space_note
from producer.output import emit_json, emit_ledger, ledger_entry, notify, notify_failures
from producer.queue.progress import NOTHING, Progress
from producer.queue.workers import common_space
from producer.settings import load_settings
from producer.watch.sync import SyncPass, WatchOptions

SETTLE_S: Final = 2.0  # longer than the pauses of a copy over a slow network
SCAN_EVERY_S: Final = 600.0  # a change without an event is found this late at most
_EXCLUSIVE: Final = {
    "detach": "it does not wait for the job, which the other one needs",
    "watch": "it compares size and time, and sends what has changed",
}


@example("python -m producer index posters/")
@click.command("index")
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option("--batch", type=click.IntRange(1, 4096), help="Posters per message (default 256).")
@click.option("--force", is_flag=True, help="Embed unchanged posters, too.")
@click.option("--verify", is_flag=True, help="Compare contents (the worker reads every file), not modification times.")
@click.option("--prune", "prune_too", is_flag=True, help="Afterwards, delete vectors of posters deleted from PATH.")
@yes_option
@click.option("--watch", is_flag=True, help="Then index changes in PATH, until Ctrl-C.")
@click.option(
    "--settle",
    type=click.FloatRange(0.1, 3600),
    default=SETTLE_S,
    show_default=True,
    help="With --watch: seconds a file must stay unchanged before it is read.",
)
@click.option(
    "--rescan",
    type=click.FloatRange(1),
    default=SCAN_EVERY_S,
    show_default=True,
    help="With --watch: seconds between two full scans.",
)
@click.option("--detach", is_flag=True, help="Send everything and exit; follow with `status`.")
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
    """Embed the posters in PATH (files or folders; default: the whole posters root) that are new or changed.

    A relative PATH means the posters root first, then the current folder. Names that match POSTERS_EXCLUDE are skipped.
    """
    _refuse_both(ctx, "detach", "prune_too", "watch")
    _refuse_both(ctx, "watch", "force", "verify", "dry_run")
    producer = Producer(load_settings(posters_per_batch=batch))
    if watch or producer.settings.log == JSON:
        log_until_end(producer.settings)
    if not prune_too:  # which a deleted folder may be named for
        _require_existing(producer.settings.root, paths)
    if watch:
        run_watch(producer, paths, WatchOptions(prune_too, yes, settle, rescan), as_json=as_json)
    if dry_run:
        found = preview(producer, paths, force=force or verify, as_json=as_json)
        if prune_too:
            preview_prune(producer, found.starts, found.catalogue, yes=yes, as_json=as_json, mark="prune: ")
        return
    found = scan(producer, paths)
    try:
        job, progress = send_all(producer, found, force=force, verify=verify, detach=detach, quiet=as_json)
    except KeyboardInterrupt as interrupt:
        exit_interrupted(interrupt)
    if detach:
        notify(f"sent; follow it with `{program()} status {job.id}`")
    if not progress.submitted and not progress.cancelled:
        where = ", ".join(paths) or producer.settings.root
        notify(f"no posters were found in {where}; file names must end with {', '.join(sorted(EXTENSIONS))}")
    with suppress(PosterError):  # from here on, nothing may prevent the summary line
        notify_failures(producer, progress)
    status = EX_OK if progress.is_balanced and not progress.failed else EX_SOME_FAILED
    if progress.state == "cancelled":
        notify(f"job {job.id} was cancelled; {progress.cancelled} poster(s) were withdrawn")
    elif prune_too:
        try:
            prune_and_notify(producer, found.starts, found.catalogue, yes=yes)
        except PosterError as error:
            notify(f"error: {error}", logging.ERROR)
            status = exit_status(error)
    with suppress(PosterError):
        _notify_notes(producer, progress, waited=not detach)
    emit_ledger(progress, as_json=as_json)
    sys.exit(status)


def _require_existing(root: Path, paths: Sequence[str]) -> None:
    """Raise UsageError for a path that does not exist."""
    base = resolved_root(root)
    for path in paths:
        if not os.path.lexists(base / inside_root(base, path)):
            raise click.UsageError(f"{path} does not exist, neither in {base} nor in the current folder")


def _refuse_both(ctx: click.Context, one: str, *others: str) -> None:
    """Raise UsageError where an option is combined with one that it excludes."""
    for other in others:
        if ctx.params[one] and ctx.params[other]:
            names = {option.name: option.opts[0] for option in ctx.command.params}
            raise click.UsageError(f"{names[one]} and {names[other]} exclude each other: {_EXCLUSIVE[one]}")


def _notify_notes(producer: Producer, progress: Progress, *, waited: bool) -> None:
    """Print each worker's bottleneck, and whether the weights are untrained or readers use another space."""
    workers = producer.workers()
    for worker in workers if progress.embedded and waited else ():
        if worker.get("bottleneck"):
            notify(f"{worker.name}: {worker.get('images_per_second')} images/s, {worker.get('bottleneck')}")
    space = common_space(workers)
    if space is not None and space.weights.startswith("untrained"):
        notify("note: these vectors come from UNTRAINED weights; they are good for demonstrations and tests only")
    if note := unread_space_note(producer.settings, space):
        notify(note)


def run_watch(producer: Producer, paths: Sequence[str], options: WatchOptions, *, as_json: bool) -> NoReturn:
    """Watch, and print a line for each pass: text on stderr, or JSON on stdout."""
    from producer.watch.watcher import Watcher  # imports watchfiles, which no other command needs

    def on_pass(done: SyncPass) -> None:
        entry: dict[str, Any] = ledger_entry(done.progress or NOTHING)
        if options.prune:
            entry["pruned"] = done.pruned
        if as_json:
            emit_json(entry)
        else:
            numbers = " ".join(f"{name} {value}" for name, value in entry.items() if value != "")
            notify(numbers if is_json() else f"{time.strftime('%H:%M:%S')} {numbers}", **entry)

    try:
        Watcher(producer, paths, options, on_pass).run()
    except KeyboardInterrupt as interrupt:
        job = interrupt.args[0] if interrupt.args else None
        if job:
            notify(f"interrupted: batches already sent will still be processed: `{program()} status {job}`")
        notify("stopped watching")
    sys.exit(EX_INTERRUPTED)
