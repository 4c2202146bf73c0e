"""Paths below the posters root: which files count as posters, in which order they come, and their default ids."""

from __future__ import annotations

import fnmatch
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from producer.collection.image_formats import EXTENSIONS
from producer.errors import ConfigurationError
from producer.settings import EXCLUDED


def poster_id(relative: str) -> str:
    """The default id of a file: its path in NFC, with bytes that are not UTF-8 as ``%XX``."""
    if relative.isascii():
        return relative
    text = "".join(f"%{ord(letter) - 0xDC00:02X}" if "\udc80" <= letter <= "\udcff" else letter for letter in relative)
    return unicodedata.normalize("NFC", text)


def resolved_root(root: Path) -> Path:
    """The posters root, symbolic links resolved.

    Raises:
        ConfigurationError: it is not a folder.
    """
    base = Path(os.path.realpath(root))
    if not base.is_dir():
        raise ConfigurationError(f"the posters root {root} is not a folder: set POSTERS_ROOT")
    return base


def starts_of(root: Path, paths: Sequence[str | Path]) -> list[str]:
    """The outermost of `paths`, relative to the root; no paths: the whole root.

    Raises:
        ConfigurationError: a path lies outside the root.
    """
    return outermost(inside_root(root, path) for path in paths) if paths else [""]


def inside_root(root: Path, path: str | Path) -> str:
    """`path` relative to `root` with ``/`` between its parts; ``""`` for the root itself.

    A relative path is looked for under the root first, then in the current folder; if it is in neither, it means the
    root.

    Raises:
        ConfigurationError: it lies outside the root.
    """
    absolute = Path(os.path.abspath(root / path))
    if not os.path.lexists(absolute) and os.path.lexists(path):
        absolute = Path(os.path.abspath(path))
    by_name = Path(os.path.realpath(absolute.parent)) / absolute.name  # the file itself may be a link
    for candidate in (absolute, by_name, Path(os.path.realpath(absolute))):
        if candidate.is_relative_to(root):
            relative = candidate.relative_to(root).as_posix()
            return "" if relative == "." else relative
    raise ConfigurationError(
        f"{path} lies outside the posters root {root}"
        + ("" if Path(path).is_absolute() else f" (it was found as {absolute})")
        + ": set POSTERS_ROOT, for the producer and for its workers"
    )


def outermost(starts: Iterable[str]) -> list[str]:
    """Drop duplicates, and paths that lie below another one."""
    chosen: list[str] = []
    for start in sorted(set(starts), key=lambda text: text.split("/")):
        # in this order, all that lies below a path follows it without a gap
        if not chosen or not is_below(start, chosen[-1]):
            chosen.append(start)
    return chosen


def is_below(file: str, folder: str) -> bool:
    """True for the folder itself and for all in it; ``""`` holds everything."""
    return not folder or file == folder or file.startswith(folder + "/")


def is_poster_name(name: str) -> bool:
    """True when a search takes a file of that name for a poster, unless the name is excluded."""
    return name[name.rfind(".") :].lower() in EXTENSIONS  # without a dot, its last letter


def excluded_names(globs: Sequence[str]) -> Callable[[str], bool]:
    """A function that is True for a name that matches one of these globs (settings.exclude)."""
    pattern = re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")
    return lambda name: pattern.match(name) is not None


def walk(
    base: Path, start: str, on_error: Callable[[str, OSError], None], exclude: Sequence[str] = EXCLUDED
) -> Iterator[str]:
    """Relative paths of image files below a folder: a folder's files in order, then its folders in order.

    Excluded names and linked folders are skipped. The names of one folder are in memory: 75 MB for a million.

    Args:
        base: the posters root.
        start: the folder to begin with, relative to it.
        on_error: called with a folder that cannot be listed, or only in part.
        exclude: globs of names.
    """
    is_excluded = excluded_names(exclude)
    pending: list[Iterator[str]] = [iter([start])]
    while pending:
        folder = next(pending[-1], None)
        if folder is None:
            pending.pop()
            continue
        files, folders = _list_folder(base, folder, on_error, is_excluded)
        prefix = f"{folder}/" if folder else ""
        yield from map(prefix.__add__, files)
        pending.append(map(prefix.__add__, folders))


def _list_folder(
    base: Path, folder: str, on_error: Callable[[str, OSError], None], is_excluded: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Sorted names of the poster files in one folder, and of its folders."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(base / folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if not is_excluded(entry.name):
                        folders.append(entry.name)
                elif is_poster_name(entry.name) and not is_excluded(entry.name):
                    files.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass  # deleted since its parent was listed
    except OSError as error:
        on_error(folder, error)
    files.sort()
    folders.sort()
    return files, folders
