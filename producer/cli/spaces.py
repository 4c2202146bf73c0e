"""The `spaces` commands: list the spaces of the store, choose the one that readers use, drop one."""

from __future__ import annotations

import sys
import time
from contextlib import closing

import click

from producer.cli.main import EX_USAGE, as_json, example
from producer.collection.catalogue import open_catalogue
from producer.host import program
from producer.maintenance.spaces import (
    Completeness,
    completeness,
    find_space,
    objection,
    space_entry,
    store_for_reading,
)
from producer.output import emit, emit_json, notify
from producer.settings import load_settings
from producer.vectors.base import SpaceInfo


@example("python -m producer spaces")
@click.group("spaces", invoke_without_command=True)
@as_json
@click.pass_context
def spaces(context: click.Context, as_json: bool) -> None:
    """List the spaces of the store: a space is a model, its weights and its preprocessing.

    A worker with another model fills another space; readers keep the current one, marked with *,
    until `spaces use` changes it. A space is complete when it holds every poster of the current
    one whose file still exists.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    catalogue = open_catalogue(settings)
    with closing(store_for_reading(settings)) as store:
        current = store.current()
        found = [(info, completeness(store, info.space.id, settings.root, catalogue)) for info in store.spaces()]
    if as_json:
        emit_json([space_entry(info, state, current) for info, state in found])
        return
    if not found:
        notify(f"the store holds no vectors yet: run `{program()} index`")
    for info, state in found:
        mark = "*" if info.space.id == current else " "
        held = f"{info.count:,} vectors  {_size(info.bytes)}"
        emit(f"{mark} {info.space.id}  {info.space.model}  {held}  {_how_far(state)}")
        for line in _provenance(info):
            emit(f"    {line}")


@example("python -m producer spaces use vit-l-14")
@spaces.command("use")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Even if the space is not complete, or most posters were deleted.")
def use(name: str, yes: bool) -> None:
    """Let readers use the space NAME: its id, or the beginning of it."""
    settings = load_settings()
    with closing(store_for_reading(settings)) as store:
        info, before = find_space(store, name), store.current()
        if info.space.id == before:
            notify(f"readers already use {before}")
            return
        doubt = None if yes or before is None else objection(store, info, before, settings)
        if doubt:
            notify(doubt)
            sys.exit(EX_USAGE)
        store.use(info.space.id)
        emit(f"readers now use {info.space.id}, with {info.count:,} vectors; {before} stays until it is dropped")


@example("python -m producer spaces drop vit-b-32")
@spaces.command("drop")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Even if readers use the space.")
def drop(name: str, yes: bool) -> None:
    """Delete the space NAME with all its vectors; posters and other spaces stay."""
    with closing(store_for_reading(load_settings())) as store:
        info, current = find_space(store, name), store.current()
        if info.space.id == current and not yes:
            others = [other.space.id for other in store.spaces() if other.space.id != current]
            after = f"they would switch to {others[0]}" if others else "and there is no other"
            notify(
                f"readers use {current}, {after}: {info.count:,} vectors, {_size(info.bytes)}. "
                f"Choose another one first with `{program()} spaces use`, or add --yes"
            )
            sys.exit(EX_USAGE)
        notify(f"dropping {info.space.id}: {info.count:,} vectors, {_size(info.bytes)}")
        gone, current = store.drop(info.space.id), store.current()
        after = f"readers use {current}" if current else "the store is empty now"
        emit(f"dropped {info.space.id} with {gone:,} vectors; {after}")


def _how_far(state: Completeness) -> str:
    if not state.missing:
        return "complete"
    if state.complete:
        return f"complete (of {state.missing:,} more that the current space holds, the files are gone)"
    return f"not complete: {state.missing:,} missing"


def _provenance(info: SpaceInfo) -> list[str]:
    made = dict(info.provenance)
    how = " ".join(filter(None, (made.pop(name, "") for name in ("pretrained", "device", "precision"))))
    versions = " ".join(f"{name} {version}" for name, version in made.items())
    lines = [
        f"{info.space.dimension} numbers, {info.space.activation}, weights {info.space.weights[:22]}, "
        f"{info.space.preprocessing.split(' mean')[0]}",
        f"made {_when(info.created)}, last changed {_when(info.changed)}",
    ]
    return [*lines, f"last written by {how or 'an unknown worker'}; {versions}"] if info.provenance else lines


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
