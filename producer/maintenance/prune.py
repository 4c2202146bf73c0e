"""Vectors whose posters are gone: find them, show them, drop them, and refuse where that looks like an accident."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from producer.collection.catalogue import Catalogue
from producer.collection.file_status import FileStatus, FileStatusReader
from producer.collection.paths import is_below, poster_id, resolved_root, walk
from producer.errors import PruneRefused

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore


JUDGED_AT_ONCE: Final = 500  # ids; also how many are deleted in one transaction
COARSEST_TIME_S: Final = 2.0  # of the times that file systems keep: FAT's


@dataclass
class Survey:
    """What a look at the store and at the posters root has found; ids count once, in however many spaces they are.

    Attributes:
        held: ids that lie within the search.
        gone: of these, whose file is not there any more, or has another id by now.
        empty: whose folder is empty and was so when they were embedded; kept unless somebody says so.
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

    An id that the catalogue gives belongs where its file lies; any other id is taken for the path that
    it is. A vector goes from every space, because its poster is gone for all of them.
    """

    def __init__(
        self, store: VectorStore, root: Path, starts: Sequence[str], catalogue: Catalogue, *, yes: bool = False
    ) -> None:
        """Look at the root.

        Args:
            store: where to prune.
            root: the posters root.
            starts: relative to it, what to prune below; ``[""]``: everything.
            catalogue: gives ids their files.
            yes: prune more than half, and below folders that are empty.

        Raises:
            ConfigurationError: the posters root is no folder.
            PruneRefused: it holds no poster at all.
        """
        self._store, self._starts, self._catalogue, self._yes = store, list(starts), catalogue, yes
        self._keys = [poster_id(start) for start in starts]
        self._base = resolved_root(root)
        if not self._holds_posters():
            raise PruneRefused(f"{self._base} holds no poster at all: is its disk mounted? Nothing was changed")
        self._identity = self._look_at_root()
        self._sight = FileStatusReader(self._base)
        self._spaces = [info.space.id for info in store.spaces()]

    def survey(self) -> Survey:
        """Count, and change nothing."""
        survey = Survey()
        for _ in self._gone(survey):
            pass
        return survey

    def gone(self, survey: Survey) -> Iterator[str]:
        """The ids that would be pruned; counts in `survey` what is met on the way."""
        for page in self._gone(survey):
            yield from page

    def statuses(self, ids: Sequence[str]) -> dict[str, FileStatus]:
        """Of each of these ids that lie within the search, what has become of its file."""
        return self._judge(ids, Counter())

    def remove(self, survey: Survey, *, of: int | None = None) -> int:
        """Prune what is still gone when it is looked at again; how many ids.

        Args:
            survey: what was found, and perhaps shown, before.
            of: what `more than half` refers to; None: survey.held.

        Raises:
            PruneRefused: more than half would go and nobody said `yes`; or the posters root is another
                than it was. What went before that was gone.
        """
        held = survey.held if of is None else of
        limit = held if self._yes else held // 2
        if survey.gone > limit:
            raise PruneRefused(
                f"{survey.gone} of {held} posters in the store have no file any more, more than half: is "
                f"{self._base} the right folder, all of it mounted, and the catalogue the right one? Nothing was "
                "pruned. See which with --dry-run; say --yes if they are to go"
            )
        pruned = 0
        for page in self._gone(Survey()):
            pruned += len(page)
            if self._look_at_root() != self._identity or pruned > limit:
                raise PruneRefused(
                    f"the files below {self._base} went away while the store was pruned: was a disk taken out? "
                    f"{pruned - len(page)} posters were pruned, nothing else"
                )
            for space in self._spaces:
                self._store.delete(space, page)
        return pruned

    def _gone(self, survey: Survey) -> Iterator[list[str]]:
        """Pages of ids that are to go, counting all that is met."""
        ids = self._ids()
        while page := list(islice(ids, JUDGED_AT_ONCE)):
            judged = self._judge(page, survey.folders)
            survey.held += len(judged)
            statuses = Counter(judged.values())
            survey.gone += statuses[FileStatus.GONE] + (statuses[FileStatus.EMPTY] if self._yes else 0)
            survey.empty += 0 if self._yes else statuses[FileStatus.EMPTY]
            survey.hidden += statuses[FileStatus.HIDDEN]
            goes = (FileStatus.GONE, FileStatus.EMPTY) if self._yes else (FileStatus.GONE,)
            if chosen := [name for name, status in judged.items() if status in goes]:
                yield chosen

    def _ids(self) -> Iterator[str]:
        """Ids that may lie within the search, each once: by their own text, or by the catalogue's word."""
        for start, key in zip(self._starts, self._keys, strict=True):
            prefix = f"{key}/" if key else ""
            yield from (name for name, _ in groupby(merge(*(self._ids_in(space, prefix) for space in self._spaces))))
            if key:
                yield key
                # the others of the catalogue's ids are the paths themselves
                given = (place.id for place in self._catalogue.places(start) if place.id != poster_id(place.file))
                yield from (name for name in given if not is_below(name, key))

    def _ids_in(self, space: str, prefix: str) -> Iterator[str]:
        return chain.from_iterable(self._store.ids(space, prefix=prefix))

    def _judge(self, ids: Sequence[str], folders: Counter[str]) -> dict[str, FileStatus]:
        """The fate of those ids that are in the store and whose file lies within the search."""
        places = self._catalogue.of(ids)
        others = self._catalogue.at(name for name in ids if name not in places)
        claimed = self._catalogue.claimed(ids)
        files = {name: places[name].file if name in places else name for name in ids}
        if self._starts != [""]:
            within = {
                name: file for name, file in files.items() if any(is_below(poster_id(file), key) for key in self._keys)
            }
            held = {name for space in self._spaces for name in self._store.rows(space, list(within))}
            files = {name: file for name, file in within.items() if name in held}
        statuses: dict[str, FileStatus] = {}
        emptied: dict[str, tuple[str, float]] = {}
        for name, file in files.items():
            statuses[name] = FileStatus.HIDDEN if name in claimed else self._sight.look(file)
            if statuses[name] is FileStatus.EMPTY:
                emptied[name] = self._sight.empty, self._sight.emptied
        statuses |= dict.fromkeys(self._deleted(emptied), FileStatus.GONE)
        folders.update(emptied[name][0] for name, status in statuses.items() if status is FileStatus.EMPTY)
        renamed = {name: others[name].id for name in statuses if statuses[name] is FileStatus.HERE and name in others}
        return statuses | dict.fromkeys(self._replaced(renamed), FileStatus.GONE)

    def _deleted(self, emptied: dict[str, tuple[str, float]]) -> list[str]:
        """Of posters whose folder is empty, those that were deleted from it: that leaves its mark on the folder's time.

        A folder that did not change since a poster was embedded never held it. It is the mount point of the
        disk that did.
        """
        stored: dict[str, float] = {}
        for space in self._spaces if emptied else ():
            for name, when in self._store.stored(space, list(emptied)).items():
                stored[name] = max(when, stored.get(name, 0.0))
        return [name for name, when in stored.items() if emptied[name][1] + COARSEST_TIME_S >= when]

    def _replaced(self, renamed: dict[str, str]) -> list[str]:
        """Of ids whose file has another id now, those that have no space left where only the old one has a vector."""
        kept: set[str] = set()
        for space in self._spaces if renamed else ():
            rows = self._store.rows(space, [*renamed, *renamed.values()])
            kept |= {old for old, new in renamed.items() if old in rows and new not in rows}
        return [old for old in renamed if old not in kept]

    def _holds_posters(self) -> bool:
        found = next(walk(self._base, "", lambda folder, error: None), None)
        return found is not None or any(os.path.lexists(self._base / place.file) for place in self._catalogue.places())

    def _look_at_root(self) -> tuple[int, int] | None:
        """Which folder the root is on which disk; None when it is out of reach, or empty."""
        try:
            stat = os.stat(self._base)
            with os.scandir(self._base) as entries:
                return (stat.st_dev, stat.st_ino) if any(entries) else None
        except OSError:
            return None
