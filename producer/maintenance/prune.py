"""Pruning: find and delete the vectors of deleted posters, and refuse where that looks like an accident."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Final

from producer.collection.catalogue import Catalogue
from producer.collection.file_status import FileStatus, FileStatusReader
from producer.collection.paths import is_below, poster_id, resolved_root, walk
from producer.errors import PruneRefused
from producer.files import COARSEST_TIME_NS, folder_identity
from producer.vectors.base import VectorStore

PAGE_IDS: Final = 500  # checked, and deleted in one transaction
ASKED_SHARE: Final = 5  # a fifth: whoever cleans up deletes less, and a folder that is not mounted may be as small
ASKED_LEAST: Final = 10  # of a small store, up to half: a handful of deleted posters is no accident


@dataclass
class Survey:
    """Counts of what is in the store and below the posters root; an id counts once, whatever its number of spaces.

    Attributes:
        held: ids in the store whose files belong below the given paths.
        gone: of these, whose file was deleted, or has another id by now.
        empty: whose folder is empty and was so when they were embedded; kept without `yes`.
        hidden: whose folder cannot be read, or that an unusable entry of the catalogue claims; always kept.
        folders: these folders, and how many ids lie below each.
    """

    held: int = 0
    gone: int = 0
    empty: int = 0
    hidden: int = 0
    folders: Counter[str] = field(default_factory=Counter)


class Prune:
    """Compares all spaces of a store with the files below the posters root.

    An id of the catalogue belongs to the file of its entry; any other id is a path. A vector is deleted from
    every space, because its poster is gone for all of them.
    """

    def __init__(
        self, store: VectorStore, root: Path, starts: Sequence[str], catalogue: Catalogue, *, yes: bool = False
    ) -> None:
        """Check the root.

        Args:
            store: where to prune.
            root: the posters root.
            starts: relative to it, what to prune below; ``[""]``: everything.
            catalogue: gives ids their files.
            yes: prune any number, also below folders that are empty.

        Raises:
            ConfigurationError: the posters root is not a folder.
            PruneRefused: it holds no poster at all.
        """
        self._store, self._starts, self._catalogue, self._yes = store, list(starts), catalogue, yes
        self._keys = [poster_id(start) for start in starts]
        self._base = resolved_root(root)
        if not self._holds_posters():
            raise PruneRefused(f"{self._base} holds no poster at all: is its disk mounted? Nothing was changed")
        self._identity = folder_identity(self._base)
        self._files = FileStatusReader(self._base)
        self._spaces = [info.space.id for info in store.spaces()]

    def survey(self) -> Survey:
        """Count, and delete nothing."""
        survey = Survey()
        for _ in self._gone(survey):
            pass
        return survey

    def gone(self, survey: Survey) -> Iterator[str]:
        """The ids that would be pruned; counts in `survey` on the way."""
        for page in self._gone(survey):
            yield from page

    def statuses(self, ids: Sequence[str]) -> dict[str, FileStatus]:
        """The status of the file of each of these ids that is in the store and below the given paths."""
        return self._check(ids, Counter())

    def doubt(self, survey: Survey, *, of: int | None = None) -> str | None:
        """The question to ask before what was found is deleted; None where it needs none. `of`: as for `remove`."""
        held = survey.held if of is None else of
        if survey.gone <= self._limit(held):
            return None
        share = 100 * survey.gone // held
        return (
            f"{survey.gone:,} of {held:,} posters in the store no longer have a file ({share} %): is "
            f"{self._base} the right folder, all of it mounted, and the catalogue the right one?"
        )

    def remove(
        self, survey: Survey, *, of: int | None = None, confirm: Callable[[str], bool] = lambda question: False
    ) -> int:
        """Delete what is still gone when it is checked again; the number of ids.

        Args:
            survey: what was found, and perhaps shown, before.
            of: the number of posters whose fifth is the limit; None: survey.held.
            confirm: called with the question where more than a fifth would be deleted without `yes`.

        Raises:
            PruneRefused: more than a fifth would be deleted, and neither `yes` nor `confirm` allows it; or the posters
                root is another one than before. What was deleted until then was gone.
        """
        limit = self._limit(survey.held if of is None else of)
        if doubt := self.doubt(survey, of=of):
            if not confirm(doubt):
                raise PruneRefused(f"{doubt} Nothing was pruned. List them with --dry-run; add --yes to prune them")
            limit = survey.gone
        pruned = 0
        for page in self._gone(Survey()):
            pruned += len(page)
            if folder_identity(self._base) != self._identity or pruned > limit:
                raise PruneRefused(
                    f"the files below {self._base} disappeared while the store was pruned: was a disk removed? "
                    f"{pruned - len(page)} posters were pruned, nothing else"
                )
            for space in self._spaces:
                self._store.delete(space, page)
        return pruned

    def _limit(self, held: int) -> int:
        """How many of so many posters may go without a question."""
        return held if self._yes else max(held // ASKED_SHARE, min(held // 2, ASKED_LEAST))

    def _gone(self, survey: Survey) -> Iterator[list[str]]:
        """Pages of the ids to delete; counts in `survey`."""
        ids = self._ids()
        while page := list(islice(ids, PAGE_IDS)):
            checked = self._check(page, survey.folders)
            survey.held += len(checked)
            statuses = Counter(checked.values())
            survey.gone += statuses[FileStatus.GONE] + (statuses[FileStatus.EMPTY] if self._yes else 0)
            survey.empty += 0 if self._yes else statuses[FileStatus.EMPTY]
            survey.hidden += statuses[FileStatus.HIDDEN]
            deleted = (FileStatus.GONE, FileStatus.EMPTY) if self._yes else (FileStatus.GONE,)
            if chosen := [name for name, status in checked.items() if status in deleted]:
                yield chosen

    def _ids(self) -> Iterator[str]:
        """Ids whose files may lie below the given paths, each once: by their own text, or by the catalogue."""
        for start, key in zip(self._starts, self._keys, strict=True):
            prefix = f"{key}/" if key else ""
            ids = (chain.from_iterable(self._store.ids(space, prefix=prefix)) for space in self._spaces)
            yield from (name for name, _ in groupby(merge(*ids)))
            if key:
                yield key
                # an id below `key` came above; one that is not a path comes by its entry
                given = (entry.id for entry in self._catalogue.entries_below(start))
                yield from (name for name in given if not is_below(name, key))

    def _check(self, ids: Sequence[str], folders: Counter[str]) -> dict[str, FileStatus]:
        """The status of those ids that are in the store and whose files lie below the given paths."""
        entries = self._catalogue.by_id(ids)
        others = self._catalogue.by_file(name for name in ids if name not in entries)
        unusable = self._catalogue.ids_of_problems(ids)
        files = {name: entries[name].file if name in entries else name for name in ids}
        if self._starts != [""]:
            within = {
                name: file for name, file in files.items() if any(is_below(poster_id(file), key) for key in self._keys)
            }
            held = {name for space in self._spaces for name in self._store.rows(space, list(within))}
            files = {name: file for name, file in within.items() if name in held}
        statuses: dict[str, FileStatus] = {}
        emptied: dict[str, tuple[str, float]] = {}
        for name, file in files.items():
            statuses[name] = FileStatus.HIDDEN if name in unusable else self._files.read(file)
            if statuses[name] is FileStatus.EMPTY:
                emptied[name] = self._files.empty, self._files.emptied
        statuses |= dict.fromkeys(self._deleted(emptied), FileStatus.GONE)
        folders.update(emptied[name][0] for name, status in statuses.items() if status is FileStatus.EMPTY)
        renamed = {name: others[name].id for name in statuses if statuses[name] is FileStatus.HERE and name in others}
        return statuses | dict.fromkeys(self._replaced(renamed), FileStatus.GONE)

    def _deleted(self, emptied: dict[str, tuple[str, float]]) -> list[str]:
        """Of posters whose folder is empty, those that were deleted from it, which changes the folder's time.

        A folder that has not changed since a poster was embedded never held it. It is the mount point of the
        disk that did.
        """
        stored: dict[str, float] = {}
        for space in self._spaces if emptied else ():
            for name, when in self._store.stored(space, list(emptied)).items():
                stored[name] = max(when, stored.get(name, 0.0))
        return [name for name, when in stored.items() if emptied[name][1] + COARSEST_TIME_NS / 1e9 >= when]

    def _replaced(self, renamed: dict[str, str]) -> list[str]:
        """Of ids whose file has another id now, those without a space in which only the old id has a vector."""
        kept: set[str] = set()
        for space in self._spaces if renamed else ():
            rows = self._store.rows(space, [*renamed, *renamed.values()])
            kept |= {old for old, new in renamed.items() if old in rows and new not in rows}
        return [old for old in renamed if old not in kept]

    def _holds_posters(self) -> bool:
        found = next(walk(self._base, "", lambda folder, error: None), None)
        return found is not None or (len(self._catalogue) > 0 and self._catalogue.belongs_to(self._base))
