"""Which posters there are: the files under the posters root, under the ids that the catalogue gives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Final

from producer.collection.catalogue import Catalogue
from producer.collection.entry import Place
from producer.collection.paths import poster_id, resolved_root, starts_of, walk
from producer.collection.readers import format_of
from producer.collection.spill import SpooledSet
from producer.files import modified_ns
from producer.queue.messages import Poster
from producer.queue.progress import Failure

LOOKED_UP_AT_ONCE: Final = 500  # files per question to the catalogue


class ScanNote(Enum):
    """What a search notices beside posters; counted, and told one by one to who asks."""

    NO_ENTRY = "in no entry of the catalogue"
    NOT_THERE = "in the catalogue, and not there"
    UNLISTED = "a folder that cannot be listed"


class PosterScan(Iterator[Poster | Failure]):
    """One pass over the posters root: yields posters lazily, in a stable order; what cannot be sent as a Failure.

    Attributes:
        starts: where it begins, relative to the root; ``[""]``: the whole root.
        counts: how often each Note was made so far.
        catalogue: whose ids the posters have.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str | Path],
        catalogue: Catalogue,
        tell: Callable[[ScanNote, str], None] = lambda note, path: None,
        *,
        with_problems: bool = True,
    ) -> None:
        """Look at nothing yet.

        Args:
            root: the posters root.
            paths: files and folders, relative to the current folder or to the root; none: the whole root.
                A path that is not there is yielded all the same, so that it fails by name.
            catalogue: gives ids, and names files that must be there.
            tell: hears every Note with the path that it is about.
            with_problems: yield what is wrong with the catalogue, too.

        Raises:
            ConfigurationError: a path lies outside the root, or the root is no folder.
        """
        self._base = resolved_root(root)
        self._top = os.path.join(self._base, "")
        self.starts = starts_of(self._base, paths)
        self.catalogue, self._tell = catalogue, tell
        self._with_problems = with_problems
        self.begin_again()

    def begin_again(self) -> None:
        """Forget what was found, and look from the beginning."""
        self.counts = dict.fromkeys(ScanNote, 0)
        self._entries, self._met = len(self.catalogue.entries), 0  # all there are, and those whose file was met
        self._unlisted: list[Failure] = []
        self._seen = bytearray()  # a bit per number of an entry
        self._spelled = SpooledSet()  # ids of files whose name on disk is not their id
        self._items = self._find()

    def __next__(self) -> Poster | Failure:
        return next(self._items)

    def files(self) -> Iterator[str]:
        """The same files by name only, once more: for who wants to know how many there will be."""
        for start in self.starts:
            yield from self._files(start, lambda folder, error: None)

    def _files(self, start: str, trouble: Callable[[str, OSError], None]) -> Iterator[str]:
        return walk(self._base, start, trouble) if os.path.isdir(self._top + start) else iter([start])

    def _find(self) -> Iterator[Poster | Failure]:
        for start in self.starts:
            files = self._files(start, self._note_folder)
            while block := list(islice(files, LOOKED_UP_AT_ONCE)):
                yield from self._identify(block)
            yield from self._unlisted
            self._unlisted.clear()
            for place in self.catalogue.places(start) if self._met < self._entries else ():
                if not self._is_seen(place):
                    yield self._look_for(place)
        if self._with_problems:
            yield from self.catalogue.problems

    def _identify(self, files: Sequence[str]) -> Iterator[Poster | Failure]:
        """Give each file its id; a file whose id is another's is a failure."""
        keys = [poster_id(file) for file in files]
        entries = self.catalogue.at(keys) if self._entries else {}
        others = [key for key in keys if key not in entries] if self._entries else []
        owners = self.catalogue.of(others) if others else {}
        for file, key in zip(files, keys, strict=True):
            entry = entries.get(key)
            other = other_file(self._top, file, entry, owners.get(key)) or self._earlier_file(file, key, entry)
            if entry is None:
                self._note(ScanNote.NO_ENTRY, file, when=self._entries > 0)
            identity = entry.id if entry is not None else key
            if other is None:
                yield self._look_at(identity, file)
            else:
                yield Failure(_id_of_its_own(identity, file), file, "unsupported", whose_id(identity, other))

    def _earlier_file(self, file: str, key: str, entry: Place | None) -> str | None:
        """What came before under the same id: another spelling of the entry's name, or of the same name."""
        if entry is None:
            return None if file == key or self._spelled.add(key) else key
        if self._is_seen(entry):
            return entry.file
        self._mark(entry)
        return None

    def _look_for(self, place: Place) -> Poster | Failure:
        """A file that no folder showed: passed over because of its name or place, or not there."""
        try:
            os.stat(self._top + place.file)
        except (FileNotFoundError, NotADirectoryError):
            self._note(ScanNote.NOT_THERE, place.file)
            path = self.catalogue.path
            unit = format_of(path).unit if path else "entry"
            reason = f"{unit} {place.number} of {path} names it, and there is no such file"
            return Failure(place.id, place.file, "missing", reason)
        except OSError:
            pass  # the worker looks again, and says what is wrong in its own words
        return self._look_at(place.id, place.file)

    def _look_at(self, identity: str, file: str) -> Poster:
        try:
            stat = os.stat(self._top + file)
        except OSError:  # the worker looks again, and says what is wrong in its own words
            return Poster(identity, file)
        return Poster(identity, file, stat.st_size, modified_ns(stat))

    def _note(self, note: ScanNote, path: str, *, when: bool = True) -> None:
        if when:
            self.counts[note] += 1
            self._tell(note, path)

    def _note_folder(self, folder: str, error: OSError) -> None:
        self._note(ScanNote.UNLISTED, folder)
        reason = f"the folder cannot be listed ({error.strerror or error}), and what lies in it was not looked at"
        self._unlisted.append(Failure(f"{poster_id(folder)}/", f"{folder}/", "unreadable", reason))

    def _is_seen(self, entry: Place) -> bool:
        place, bit = divmod(entry.number, 8)
        return place < len(self._seen) and bool(self._seen[place] & 1 << bit)

    def _mark(self, entry: Place) -> None:
        place, bit = divmod(entry.number, 8)
        if place >= len(self._seen):
            self._seen.extend(bytes(place + 1 - len(self._seen)))
        self._seen[place] |= 1 << bit
        self._met += 1


def other_file(top: str, file: str, entry: Place | None, owner: Place | None) -> str | None:
    """The file that has more right to the id of `file`, so that a vector of `file` must not be stored under it.

    Args:
        top: the posters root, with a separator at its end.
        file: relative to it.
        entry: the catalogue's for this file, if it has one.
        owner: the catalogue's entry that has the path of `file` as its id, if there is one.
    """
    if entry is not None:
        return entry.file if file != entry.file and os.path.lexists(top + entry.file) else None
    if owner is not None:
        return owner.file
    key = poster_id(file)
    return key if file != key and os.path.lexists(top + key) else None


def whose_id(identity: str, other: str) -> str:
    """Why a file cannot have the id that it would get, and what to do."""
    return f"its id {identity!r} belongs to {other}; give it an id of its own in the catalogue"


def was_sent(failure: Failure, catalogue: Path | None) -> bool:
    """False for what a Search yielded as a Failure: an entry, a folder, a file whose id is another's."""
    is_entry = catalogue is not None and failure.path.startswith(f"{catalogue}#")
    is_double = failure.id == _id_of_its_own(failure.id.removesuffix(f" ({failure.path!a})"), failure.path)
    return not (is_entry or is_double or failure.path.endswith("/"))


def _id_of_its_own(identity: str, file: str) -> str:
    """Under which a file is reported that may not be stored under its id."""
    return f"{identity} ({file!a})"
