"""The files below the posters root: which folder is searched for what, in which order, under which id."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from producer.collection.spill import SpooledNames
from producer.errors import ConfigurationError

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


def poster_id(relative: str) -> str:
    """The id of a file without one of its own: its path, NFC; bytes that are no UTF-8 as ``%XX``."""
    if relative.isascii():
        return relative
    text = "".join(f"%{ord(letter) - 0xDC00:02X}" if "\udc80" <= letter <= "\udcff" else letter for letter in relative)
    return unicodedata.normalize("NFC", text)


def resolved_root(root: Path) -> Path:
    """The posters root, symbolic links resolved.

    Raises:
        ConfigurationError: it is no folder.
    """
    base = Path(os.path.realpath(root))
    if not base.is_dir():
        raise ConfigurationError(f"the posters root {root} is not a folder: set POSTERS_ROOT")
    return base


def starts_of(root: Path, paths: Sequence[str | Path]) -> list[str]:
    """Where a search of `paths` begins, relative to the root; no paths: the whole root.

    Raises:
        ConfigurationError: a path lies outside the root.
    """
    return outermost(inside_root(root, path) for path in paths) if paths else [""]


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


def outermost(starts: Iterable[str]) -> list[str]:
    """Drop what is named twice, or lies below another that is named."""
    chosen: list[str] = []
    for start in sorted(set(starts), key=lambda text: text.split("/")):
        # in this order, all that lies below a path follows it without a gap
        if not chosen or not is_below(start, chosen[-1]):
            chosen.append(start)
    return chosen


def is_below(file: str, folder: str) -> bool:
    """True for the folder itself and for all in it; ``""`` holds everything."""
    return not folder or file == folder or file.startswith(folder + "/")


def is_looked_for(name: str) -> bool:
    """True when a search takes a file of that name for a poster."""
    return name[:1] != "." and name[name.rfind(".") :].lower() in EXTENSIONS  # without a dot, its last letter


def walk(base: Path, start: str, trouble: Callable[[str, OSError], None]) -> Iterator[str]:
    """Relative paths of image files below a folder: a folder's files in order, then its folders in order.

    Hidden names and linked folders are passed over. Takes constant memory, however many files lie
    in one folder.

    Args:
        base: the posters root.
        start: the folder to begin with, relative to it.
        trouble: called with a folder that cannot be listed, or not to its end.
    """
    waiting: list[Iterator[str]] = [iter([start])]
    while waiting:
        folder = next(waiting[-1], None)
        if folder is None:
            waiting.pop()
            continue
        files, folders = _listed(base, folder, trouble)
        prefix = f"{folder}/" if folder else ""
        yield from map(prefix.__add__, files)
        waiting.append(map(prefix.__add__, folders))


def _listed(base: Path, folder: str, trouble: Callable[[str, OSError], None]) -> tuple[Iterator[str], Iterator[str]]:
    """Names of the files that a search looks for in one folder, and of its folders."""
    files, folders = SpooledNames(), SpooledNames()
    try:
        with os.scandir(base / folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        folders.add(entry.name)
                elif is_looked_for(entry.name):
                    files.add(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it went since its parent was listed
    except OSError as error:
        trouble(folder, error)
    return iter(files), iter(folders)
