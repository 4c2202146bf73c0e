"""The `prune` command: deletes the vectors of deleted posters, as `index --prune` does after its job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

import click

from producer.cli.main import as_json, example
from producer.client import Producer
from producer.collection.catalogue import Catalogue, open_catalogue
from producer.collection.paths import resolved_root, starts_of
from producer.indexing.index_job import notify_ambiguous, warn_of_wrong_catalogue
from producer.maintenance.prune import Prune, Survey
from producer.output import emit, emit_json, notify, printable
from producer.vectors import store_exists

yes_option = click.option(
    "--yes", is_flag=True, help="Prune even if more than a fifth would be deleted or a disk may be unmounted."
)


@example("python -m producer prune --dry-run")
@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option("--dry-run", is_flag=True, help="Only list the ids that would be pruned, one per line.")
@yes_option
@as_json
def prune(paths: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete the vectors of posters in PATH (default: all) whose files were deleted, from every space.

    Needs neither a worker nor Redis where the store is a file. `index --prune` does the same after
    indexing, so that a renamed poster can reuse the vector of its old name.
    """
    with closing(Producer()) as producer:
        catalogue = open_catalogue(producer.settings)
        warn_of_wrong_catalogue(producer.settings, catalogue)
        notify_ambiguous(producer.settings.root, paths)
        starts = starts_of(resolved_root(producer.settings.root), paths)
        if dry_run:
            preview_prune(producer, starts, catalogue, yes=yes, as_json=as_json)
            return
        survey, pruned = prune_and_notify(producer, starts, catalogue, yes=yes)
        if as_json:
            numbers = {"held": survey.held, "pruned": pruned, "empty": survey.empty, "hidden": survey.hidden}
            emit_json(numbers)


def preview_prune(
    producer: Producer, starts: Sequence[str], catalogue: Catalogue, *, yes: bool, as_json: bool, mark: str = ""
) -> None:
    """List on stdout what would be pruned, each after `mark`; print the numbers on stderr."""
    if not store_exists(producer.settings.store):
        notify("the store holds no vectors yet; nothing to prune")
        return
    with closing(producer.store()) as store:
        candidates = Prune(store, producer.settings.root, starts, catalogue, yes=yes)
        survey = Survey()
        for name in candidates.gone(survey):
            if as_json:
                emit_json({"would": "prune", "id": name})
            else:
                emit(mark + name)
        _notify_kept(survey)
        notify(f"{survey.gone} of {survey.held} poster(s) to prune; nothing was pruned")


def prune_and_notify(
    producer: Producer, starts: Sequence[str], catalogue: Catalogue, *, yes: bool
) -> tuple[Survey, int]:
    """Prune, and print on stderr what was deleted and what was kept.

    Raises:
        PruneRefused: it looks like an accident.
    """
    if not store_exists(producer.settings.store):
        notify("the store holds no vectors yet; nothing to prune")
        return Survey(), 0
    with closing(producer.store()) as store:
        candidates = Prune(store, producer.settings.root, starts, catalogue, yes=yes)
        survey = candidates.survey()
        _notify_kept(survey)
        pruned = candidates.remove(survey, confirm=_confirm) if survey.gone else 0
        notify(f"pruned {pruned} of {survey.held} poster(s)")
    return survey, pruned


def _confirm(doubt: str) -> bool:
    """Ask a person at a terminal; anybody else has to give --yes."""
    if not _is_terminal():
        return False
    try:
        return click.confirm(f"{printable(doubt)} Prune them?", err=True)
    except click.Abort:  # Ctrl-C, or the end of the input
        notify("")
        return False


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _notify_kept(survey: Survey) -> None:
    if survey.empty:
        folders = ", ".join(folder for folder, _ in survey.folders.most_common(3))
        more = f" and {len(survey.folders) - 3} more" if len(survey.folders) > 3 else ""
        notify(
            f"{survey.empty} poster(s) do not exist, and their folders ({folders}{more}) are empty and older than "
            "their vectors: is a disk not mounted? They are kept; --yes prunes them, too"
        )
    if survey.hidden:
        notify(f"{survey.hidden} poster(s) cannot be checked (a folder or an entry cannot be read); they are kept")
