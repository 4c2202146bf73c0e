"""Which posters there are: the files under the posters root, and what data/posters.json says of them."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from worker.errors import ConfigurationError
from worker.messages import Poster
from worker.progress import Failure

# What a folder is searched for. The content decides how a file is read, not this; HEIC is among them
# so that its posters fail with a word instead of being passed over in silence.
EXTENSIONS: Final = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
    )
)


@dataclass(frozen=True)
class Entry:
    """One poster of the catalogue; `about` holds every key of it, title included."""

    number: int
    file: str
    id: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """The catalogue's entries by file, and what is wrong with the rest of it."""

    path: Path | None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    problems: Sequence[Failure] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Entry]:
        """The same entries by poster id."""
        return {entry.id: entry for entry in self.entries.values()}

    def belongs_to(self, root: Path) -> bool:
        """False when it names posters and not one of them lies under `root`: most likely another folder's."""
        return not self.entries or any(os.path.lexists(root / file) for file in self.entries)

    def title(self, poster: str) -> str:
        """The title of a poster by its id; empty where the catalogue has none."""
        entry = self.by_id.get(poster)
        return str(entry.about.get("title", "")) if entry else ""


def read_catalogue(path: Path | None) -> Catalogue:
    """Read a list of objects with ``file`` (relative to the posters root), optional ``id``, any more keys.

    A file that is not there is an empty catalogue. An entry that cannot be used becomes a failure
    that names its number, counted from 1, and spoils no other.

    Raises:
        ConfigurationError: the file is no JSON, or no list of posters.
    """
    if path is None or not path.is_file():
        return Catalogue(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the catalogue {path} is not readable JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("posters"), list):
        content = content["posters"]
    if not isinstance(content, list):
        raise ConfigurationError(f"the catalogue {path} must be a list of posters, or an object with `posters`")
    entries: dict[str, Entry] = {}
    ids: dict[str, int] = {}
    problems = []
    for number, about in enumerate(content, 1):
        problem, entry = None, None
        if not isinstance(about, dict) or not isinstance(about.get("file"), str) or not about["file"]:
            problem = "has no `file`"
        else:
            file = os.path.normpath(about["file"]).replace(os.sep, "/")
            identity = about.get("id", poster_id(file))
            entry = Entry(number, file, str(identity), about)
            if not isinstance(identity, str | int) or not entry.id:
                problem = f"has an `id` that is neither text nor number: {identity!r}"
            elif file in entries:
                problem = f"names the file {file}, which entry {entries[file].number} names already"
            elif entry.id in ids:
                problem = f"has the id {entry.id!r}, which entry {ids[entry.id]} has already"
        if problem or entry is None:
            reason = f"entry {number} of {path} {problem}; correct it and run `index` again"
            problems.append(Failure(f"{path.name}#{number}", f"{path}#{number}", "unsupported", reason))
        else:
            entries[entry.file], ids[entry.id] = entry, number
    return Catalogue(path, entries, problems)


def find_posters(root: Path, paths: Sequence[str | Path], catalogue: Catalogue) -> Iterator[Poster | Failure]:
    """Find posters lazily, in a stable order; what cannot be sent comes as a Failure.

    Args:
        root: the posters root.
        paths: files and folders, relative to the current folder or to the root; none: the whole root.
            A path that is not there is yielded all the same, so that it fails by name.
        catalogue: gives ids, and names files that must be there.

    Raises:
        ConfigurationError: a path lies outside the root, or the root is no folder.
    """
    base = Path(os.path.realpath(root))
    if not base.is_dir():
        raise ConfigurationError(f"the posters root {root} is not a folder: set POSTERS_ROOT")
    starts = _outermost(inside_root(base, path) for path in paths) if paths else [""]
    return _find(base, starts, catalogue)


def _find(base: Path, starts: Sequence[str], catalogue: Catalogue) -> Iterator[Poster | Failure]:
    given = {name: entry.file for name, entry in catalogue.by_id.items()}
    for start in starts:
        expected = {file for file in catalogue.entries if _is_below(file, start)}
        for relative in _walk(base, start) if (base / start).is_dir() else [start]:
            expected.discard(relative)
            entry = catalogue.entries.get(relative)
            identity = entry.id if entry else poster_id(relative)
            taken = given.get(identity, relative) != relative
            if taken or (not entry and identity != relative and os.path.lexists(base / identity)):
                owner = given.get(identity, identity)
                reason = f"its id {identity!r} belongs to {owner}; give it an id of its own in the catalogue"
                yield Failure(f"{identity} ({relative!a})", relative, "unsupported", reason)
            else:
                yield _look_at(base, identity, relative)
        for file in sorted(expected):
            yield _look_at(base, catalogue.entries[file].id, file)
    yield from catalogue.problems


def poster_id(relative: str) -> str:
    """The id of a file without one of its own: its path, NFC; bytes that are no UTF-8 as ``%XX``."""
    text = "".join(f"%{ord(letter) - 0xDC00:02X}" if "\udc80" <= letter <= "\udcff" else letter for letter in relative)
    return unicodedata.normalize("NFC", text)


def inside_root(root: Path, path: str | Path) -> str:
    """`path` relative to `root` with ``/`` between its parts; ``""`` for the root itself.

    A relative path is looked for in the current folder first, then under the root.

    Raises:
        ConfigurationError: it lies outside the root.
    """
    absolute = Path(os.path.abspath(path))
    if not Path(path).is_absolute() and not os.path.lexists(absolute):
        absolute = Path(os.path.abspath(root / path))
    by_name = Path(os.path.realpath(absolute.parent)) / absolute.name  # the file itself may be a link
    for candidate in (absolute, by_name, Path(os.path.realpath(absolute))):
        if candidate.is_relative_to(root):
            relative = candidate.relative_to(root).as_posix()
            return "" if relative == "." else relative
    raise ConfigurationError(
        f"{path} lies outside the posters root {root}: set POSTERS_ROOT, for the producer and for its workers"
    )


def _outermost(starts: Iterable[str]) -> list[str]:
    """Drop what is named twice, or lies below another that is named."""
    chosen: list[str] = []
    for start in sorted(set(starts), key=lambda text: text.split("/")):
        if not any(_is_below(start, other) for other in chosen):
            chosen.append(start)
    return chosen


def _is_below(file: str, folder: str) -> bool:
    return not folder or file == folder or file.startswith(folder + "/")


def _walk(base: Path, start: str) -> Iterator[str]:
    """Relative paths of image files below a folder; hidden names and linked folders are passed over."""
    folders = [start]
    while folders:
        folder = folders.pop()
        with os.scandir(base / folder) as found:
            # names only: a million os.DirEntry would take a quarter of a gigabyte
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
        inner = []
        for name, is_folder in names:
            relative = f"{folder}/{name}" if folder else name
            if name.startswith("."):
                continue
            if is_folder:
                inner.append(relative)
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield relative
        folders.extend(reversed(inner))


def _look_at(base: Path, identity: str, relative: str) -> Poster:
    try:
        stat = os.stat(base / relative)
    except OSError:  # the worker looks again, and says what is wrong in its own words
        return Poster(identity, relative)
    return Poster(identity, relative, stat.st_size, stat.st_mtime_ns)
