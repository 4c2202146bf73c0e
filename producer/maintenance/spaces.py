"""Spaces of a store: find one by its name, measure its completeness, warn where readers use another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from producer.collection.catalogue import Catalogue, open_catalogue
from producer.collection.file_status import FileStatus
from producer.collection.paths import resolved_root
from producer.embedding import Space
from producer.errors import ConfigurationError, PosterError, SpaceMismatch
from producer.host import program
from producer.maintenance.prune import PAGE_IDS, Prune
from producer.settings import Settings
from producer.vectors import open_store, store_exists
from producer.vectors.base import SpaceInfo, VectorStore


@dataclass(frozen=True)
class Completeness:
    """How complete a space is, compared with the one that readers use.

    Attributes:
        missing: posters that the current space holds and this one does not.
        gone: of the missing, those whose files are known to be deleted.
        complete: the file of every missing poster was deleted, so that no model can embed it.
    """

    missing: int
    gone: int
    complete: bool


def store_for_reading(settings: Settings) -> VectorStore:
    """Open the store; a SQLite file that does not exist is not created.

    Raises:
        ConfigurationError: nothing is stored yet, or the setting names the wrong file.
    """
    if not store_exists(settings.store):
        path = settings.store.removeprefix("sqlite:")
        raise ConfigurationError(
            f"there is no store {path} yet: run `{program()} index`, or set POSTERS_STORE to the right one"
        )
    return open_store(settings.store, settings.store_mode)


def find_space(store: VectorStore, name: str | None = None) -> SpaceInfo:
    """The space with the id `name`, or with the only id that begins so; None: the current one.

    Raises:
        ConfigurationError: there is none, or more than one; the text lists them.
    """
    infos = store.spaces()
    if not infos:
        raise ConfigurationError(f"the store holds no vectors yet: run `{program()} index`")
    wanted = store.current() if name is None else name
    exact = [info for info in infos if info.space.id == wanted]
    near = exact or [info for info in infos if name and info.space.id.startswith(name)]
    if len(near) == 1:
        return near[0]
    listed = ", ".join(info.space.id for info in near or infos)
    if near:
        raise ConfigurationError(f"{name!r} is the beginning of {len(near)} spaces: {listed}")
    raise ConfigurationError(f"the store has no space {wanted!r}; it has: {listed}")


def completeness(store: VectorStore, space_id: str, root: Path, catalogue: Catalogue) -> Completeness:
    """Compare a space with the current one, id by id; constant memory, about a second for a million.

    A poster whose file was deleted cannot be embedded any more, and does not count against the space. The
    files of missing posters are checked until one exists, or may exist and is hidden.
    """
    current = store.current()
    count_deleted: Callable[[Sequence[str]], int] | None = None
    missing = gone = 0
    lacking = _only_in_first(store.ids(current), store.ids(space_id)) if current else iter(())
    while page := list(islice(lacking, PAGE_IDS)):
        if missing == gone:  # so far; without a missing poster, the root is not needed
            count_deleted = count_deleted or _deletion_counter(store, root, catalogue)
            gone += count_deleted(page)
        missing += len(page)
    return Completeness(missing, gone, missing == gone)


def gone_from(store: VectorStore, space_id: str, root: Path, catalogue: Catalogue) -> int:
    """How many posters of a space were deleted from the posters root; checks every file."""
    return sum(map(_deletion_counter(store, root, catalogue), store.ids(space_id, PAGE_IDS)))


def _deletion_counter(store: VectorStore, root: Path, catalogue: Catalogue) -> Callable[[Sequence[str]], int]:
    """Counts posters whose files were deleted, and are not only hidden; by the rules of `prune`.

    Where the root is not a folder, or holds no poster at all, nothing counts as deleted.
    """
    try:
        prune = Prune(store, root, [""], catalogue)
    except ConfigurationError:
        return lambda posters: 0
    return lambda posters: sum(status is FileStatus.GONE for status in prune.statuses(posters).values())


def require_same_space(made: str, read: str, who: str) -> None:
    """Raise SpaceMismatch, with the ways out, where vectors of `made` would be compared with those of `read`."""
    if made != read:
        raise SpaceMismatch(
            f"{who} makes vectors of the space {made}, and readers use {read}: they cannot be compared. "
            f"`{program()} spaces` shows both; when the new one is complete, `{program()} spaces use "
            f"{made}`; until then, use a worker with the old model"
        )


def objection(store: VectorStore, info: SpaceInfo, before: str, settings: Settings) -> str | None:
    """Why readers should not switch from the space `before`; None when nothing would be lost."""
    catalogue = open_catalogue(settings)
    state = completeness(store, info.space.id, settings.root, catalogue)
    if state.missing:  # only the right root shows whether these are deleted or hidden
        resolved_root(settings.root)
    if not state.complete:
        return (
            f"{info.space.id} is not complete: readers would no longer find {state.missing:,} poster(s) that "
            f"{before} holds. Finish `{program()} index` first, or add --yes"
        )
    if not state.gone:
        return None
    held, gone = store.count(before), gone_from(store, before, settings.root, catalogue)
    if 2 * gone <= held:
        return None
    return (  # a wrong folder, or a disk that is not mounted, looks the same
        f"{gone:,} of {held:,} posters of {before} no longer have a file, more than half: is {settings.root} the right "
        "folder, all of it mounted, and the catalogue the right one? If they were deleted, add --yes"
    )


def space_entry(info: SpaceInfo, state: Completeness, current: str | None) -> dict[str, Any]:
    """A space as an object; `current` is the id of the one that readers use."""
    space = asdict(info.space)
    return {
        "id": info.space.id,
        "model": space.pop("model"),
        "current": info.space.id == current,
        "count": info.count,
        "bytes": info.bytes,
        "complete": state.complete,
        "missing": state.missing,
        "created": info.created,
        "changed": info.changed,
        "space": space,
        "provenance": dict(info.provenance),
    }


def unread_space_note(settings: Settings, made: Space | None) -> str | None:
    """A note that readers do not use the space just filled; None when they do.

    Also None where that is unknown here: a producer may not reach the store.
    """
    if made is None:
        return None
    try:
        with closing(store_for_reading(settings)) as store:
            current = store.current()
            if current in (None, made.id):
                return None
            state = completeness(store, made.id, settings.root, open_catalogue(settings))
    except PosterError:
        return None
    if state.complete:
        return (
            f"note: the space {made.id} is complete, and readers still use {current}. "
            f"Switch them with `{program()} spaces use {made.id}`"
        )
    return (
        f"note: the worker fills the space {made.id}; readers keep {current}, of which {state.missing:,} poster(s) are "
        f"still missing there: see `{program()} spaces`"
    )


def _only_in_first(first: Iterator[list[str]], second: Iterator[list[str]]) -> Iterator[str]:
    """Merge two ascending sequences; yield what only the first one holds."""
    others = chain.from_iterable(second)
    other = next(others, None)
    for name in chain.from_iterable(first):
        while other is not None and other < name:
            other = next(others, None)
        if other != name:
            yield name
