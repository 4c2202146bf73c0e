"""A scan of the posters root: its files, with the ids that the catalogue gives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Final

from producer.collection.catalogue import Catalogue
from producer.collection.entry import Entry
from producer.collection.paths import poster_id, resolved_root, starts_of, walk
from producer.collection.readers import format_of
from producer.errors import ConfigurationError, UnreadablePoster
from producer.files import folder_identity, modified_ns
from producer.queue.messages import Poster
from producer.queue.progress import Failure
from producer.settings import EXCLUDED

LOOKUP_FILES: Final = 500  # per query to the catalogue


class ScanNote(Enum):
    """What a scan finds beside posters; counted, and reported one by one to `on_note`."""

    NO_ENTRY = "in no entry of the catalogue"
    NOT_THERE = "in the catalogue, and not there"
    UNLISTED = "a folder that cannot be listed"


class PosterScan(Iterator[Poster | Failure]):
    """One pass over the posters root: yields posters lazily, in a stable order; a Failure for what cannot be sent.

    Attributes:
        starts: where it begins, relative to the root; ``[""]``: the whole root.
        counts: how often each ScanNote was made so far.
        catalogue: the source of the ids.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str | Path],
        catalogue: Catalogue,
        on_note: Callable[[ScanNote, str], None] = lambda note, path: None,
        *,
        with_problems: bool = True,
        exclude: Sequence[str] = EXCLUDED,
    ) -> None:
        """Prepare the scan, which starts with the first `next`.

        Args:
            root: the posters root.
            paths: files and folders, relative to the root or else to the current folder; none: the whole root.
                A path that does not exist is yielded all the same, so that it fails by name.
            catalogue: gives ids, and names files that must exist.
            on_note: called with each ScanNote and the path that it is about.
            with_problems: yield the problems of the catalogue, too.
            exclude: globs of names that are skipped below a folder (settings.exclude).

        Raises:
            ConfigurationError: a path lies outside the root; the root is not a folder, or is empty although the
                catalogue has entries. Iterating raises it when the root has become empty, or another folder.
        """
        self._base = resolved_root(root)
        self._top = os.path.join(self._base, "")
        self.starts = starts_of(self._base, paths)
        self.catalogue, self._on_note = catalogue, on_note
        self._identity = folder_identity(self._base)
        if self._identity is None and catalogue:
            names = f"{catalogue.path} names {len(catalogue)} posters in it"
            raise ConfigurationError(f"the posters root {self._base} is empty, and {names}: is its disk mounted?")
        self._with_problems, self._exclude = with_problems, exclude
        self.restart()

    def restart(self) -> None:
        """Start again from the beginning, with counts of zero."""
        self.counts = dict.fromkeys(ScanNote, 0)
        self._unlisted: list[Failure] = []
        self._found = bytearray(self.catalogue.last_number + 1)  # by number of the entry: 1 if its file was found
        self._odd_ids: set[str] = set()  # of files whose name on disk is not their id
        self._items = self._scan()

    def __next__(self) -> Poster | Failure:
        return next(self._items)

    def files(self) -> Iterator[str]:
        """The names of the same files, in another pass: for counting them."""
        for start in self.starts:
            yield from self._files(start, lambda folder, error: None)

    def _files(self, start: str, on_error: Callable[[str, OSError], None]) -> Iterator[str]:
        return walk(self._base, start, on_error, self._exclude) if os.path.isdir(self._top + start) else iter([start])

    def _scan(self) -> Iterator[Poster | Failure]:
        for start in self.starts:
            files = self._files(start, self._note_folder)
            while block := list(islice(files, LOOKUP_FILES)):
                yield from self._identify(block)
            yield from self._unlisted
            self._unlisted.clear()
            for entry in self.catalogue.entries_below(start) if self._found.count(1) < len(self.catalogue) else ():
                if not self._found[entry.number]:
                    yield self._unfound(entry)
            self._check_root()
        if self._with_problems:
            yield from self.catalogue.problems()

    def _identify(self, files: Sequence[str]) -> Iterator[Poster | Failure]:
        """Give each file its id; a file whose id is another's is a failure."""
        keys = [poster_id(file) for file in files]
        entries = self.catalogue.by_file(keys) if self.catalogue else {}
        owners = self.catalogue.by_id(key for key in keys if key not in entries) if self.catalogue else {}
        for file, key in zip(files, keys, strict=True):
            entry = entries.get(key)
            other = other_file(self._top, file, entry, owners.get(key)) or self._earlier_file(file, key, entry)
            if entry is None and self.catalogue:
                self._note(ScanNote.NO_ENTRY, file)
            identity = entry.id if entry is not None else key
            if other is None:
                yield poster_of(self._top, file, identity)
            else:
                yield Failure(_id_in_failure(identity, file), file, "unsupported", id_conflict(identity, other))

    def _earlier_file(self, file: str, key: str, entry: Entry | None) -> str | None:
        """An earlier file with the same id: another spelling of the entry's name, or of the same name."""
        if entry is None:
            if file != key and key in self._odd_ids:
                return key
            if file != key:
                self._odd_ids.add(key)
            return None
        if self._found[entry.number]:
            return entry.file
        self._found[entry.number] = 1
        return None

    def _unfound(self, entry: Entry) -> Poster | Failure:
        """An entry whose file the walk did not yield: skipped because of its name or folder, or it does not exist."""
        try:
            os.stat(self._top + entry.file)
        except (FileNotFoundError, NotADirectoryError):
            self._check_root()
            self._note(ScanNote.NOT_THERE, entry.file)
            path = self.catalogue.path
            unit = format_of(path).unit if path else "entry"
            reason = f"{unit} {entry.number} of {path} names it, and there is no such file"
            return Failure(entry.id, entry.file, "missing", reason)
        except OSError:
            pass  # the worker tries again, and reports what is wrong
        return poster_of(self._top, entry.file, entry.id)

    def _check_root(self) -> None:
        """What is not found in a root that is not the same any more was not deleted."""
        if self._identity is not None and self._identity != folder_identity(self._base):
            raise ConfigurationError(
                f"the posters root {self._base} has become empty, or another folder, while it was scanned: is its disk "
                "mounted? Run the same command again"
            )

    def _note(self, note: ScanNote, path: str) -> None:
        self.counts[note] += 1
        self._on_note(note, path)

    def _note_folder(self, folder: str, error: OSError) -> None:
        self._note(ScanNote.UNLISTED, folder)
        reason = f"the folder cannot be listed ({error.strerror or error}), and what lies in it was not scanned"
        self._unlisted.append(Failure(f"{poster_id(folder)}/", f"{folder}/", "unreadable", reason))


def poster_of(top: str, file: str, identity: str) -> Poster:
    """The Poster for a file below `top`, with its size and time as they are now, if they can be seen from here."""
    try:
        stat = os.stat(top + file)
    except OSError:  # the worker tries again, and reports what is wrong
        return Poster(identity, file)
    return Poster(identity, file, stat.st_size, modified_ns(stat))


def other_file(top: str, file: str, entry: Entry | None, owner: Entry | None) -> str | None:
    """The file that owns the id of `file`, if it is another: a vector of `file` must not be stored under that id.

    Args:
        top: the posters root, with a separator at its end.
        file: relative to it.
        entry: the catalogue's for this file, if any.
        owner: the catalogue's entry whose id is the path of `file`, if any.
    """
    if entry is not None:
        return entry.file if file != entry.file and os.path.lexists(top + entry.file) else None
    if owner is not None:
        return owner.file
    key = poster_id(file)
    return key if file != key and os.path.lexists(top + key) else None


def id_conflict(identity: str, other: str) -> str:
    """Why a file cannot have its id, and what to do."""
    return f"its id {identity!r} belongs to {other}; give it an id of its own in the catalogue"


def unsent(error: UnreadablePoster, number: int) -> Failure:
    """The Failure of a path, the `number`-th that was named, that cannot be sent: none of two hides the other."""
    return Failure(_id_in_failure(f"#{number}", error.path), error.path, error.word, error.reason)


def was_sent(failure: Failure, catalogue: Path | None) -> bool:
    """False for what was never sent: an entry, a folder, a file whose id is another's, a path that is `unsent`."""
    is_entry = catalogue is not None and failure.path.startswith(f"{catalogue}#")
    is_double = failure.id == _id_in_failure(failure.id.removesuffix(f" ({failure.path!a})"), failure.path)
    return not (is_entry or is_double or failure.path.endswith("/"))


def _id_in_failure(identity: str, file: str) -> str:
    """The id in the Failure of a file that cannot have its own id, such as one that belongs to another file."""
    return f"{identity} ({file!a})"
