"""Atomic writes: a folder or a file gets its name only when it is complete."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from producer.errors import ConfigurationError

MANIFEST: Final = "export.json"  # every export holds one; a folder without it is never replaced


@contextmanager
def atomic_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder; what it holds when the block ends without an error becomes `folder`.

    It lies beside `folder`, and is renamed to it. Where that is impossible (`folder` is a mount point, such as the
    volume of a container, or the folder above it cannot be written), it lies inside `folder`, and its files are moved
    up, MANIFEST last: without that file, a folder is no complete export. A symbolic link stays: its target is written.

    An error or Ctrl-C removes the temporary folder. A kill leaves a hidden ``.NAME.partial-…``, which nothing reads and
    which may be removed.

    Raises:
        ConfigurationError: `folder` exists and is not an export that may be replaced, or it cannot be written (a full
            disk, for example). What existed before is unchanged.
    """
    named, folder = folder, Path(os.path.realpath(folder))
    contents = _contents(folder)
    held = [path for path in contents if not _is_leftover(folder, path)]
    exists = bool(held) or (folder.exists() and not folder.is_dir())
    if exists and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{named} exists and is not an export: choose another name")
    if exists and not replace:
        raise ConfigurationError(f"{named} already holds an export: choose another name, or add --replace")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        is_fixed = folder.is_dir() and (
            _is_mount_point(folder) or not os.access(folder.parent, os.W_OK) or contents != held
        )
        partial = _hidden(folder, "partial", inside=is_fixed)
        partial.mkdir()
    except OSError as error:
        raise ConfigurationError(f"{named} cannot be created: {error}") from error
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                _fsync(path)
        if is_fixed:
            _replace_contents(folder, held, partial)
        elif exists:
            _replace_folder(folder, partial)
        else:
            if folder.is_dir():
                folder.rmdir()  # it is empty; Windows does not rename over it
            os.rename(partial, folder)
    except OSError as error:
        raise ConfigurationError(f"{named} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # where it has not been renamed


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, and rename it.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays
    partial = _hidden(target, "partial")
    try:
        partial.write_bytes(data)
        _fsync(partial)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error}") from error


def _hidden(path: Path, kind: str, *, inside: bool = False) -> Path:
    """A new hidden name beside `path`, or in it."""
    name = f".{path.name}.{kind}-{secrets.token_hex(4)}"
    return path / name if inside else path.with_name(name)


def _is_mount_point(folder: Path) -> bool:
    """True also for a folder of the same file system that is mounted a second time: os.path.ismount misses that."""
    if os.path.ismount(folder):
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not on Linux
        return False
    escaped = str(folder).translate({ord(letter): f"\\{ord(letter):03o}" for letter in " \t\n\\"})
    return any(line.split(" ")[4] == escaped for line in mounts.splitlines())


def _contents(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_leftover(folder: Path, path: Path) -> bool:
    """True for a temporary folder that a killed export left in a mount point, and for what a new file system holds."""
    return path.name.startswith((f".{folder.name}.partial-", f".{folder.name}.old-")) or path.name == "lost+found"


def _replace_folder(folder: Path, partial: Path) -> None:
    """Rename `partial` to `folder` and remove the earlier one; on an error restore that."""
    old = _hidden(folder, "old")
    os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the new one is in place, even if the old one cannot be removed


def _replace_contents(folder: Path, held: Sequence[Path], partial: Path) -> None:
    """Move what `partial` holds up into `folder`, in place of what that held; on an error restore that."""
    old = _hidden(folder, "old", inside=True)
    old.mkdir()
    moved: list[tuple[Path, Path]] = []

    def move(paths: Iterable[Path], target: Path) -> None:
        for path in paths:
            os.rename(path, target / path.name)
            moved.append((path, target / path.name))

    def is_manifest(path: Path) -> bool:
        return path.name == MANIFEST

    try:
        move(sorted(held, key=is_manifest, reverse=True), old)  # the manifest first: from here on, no complete export
        move(sorted(_contents(partial), key=is_manifest), folder)  # and last
    except BaseException:
        for before, after in reversed(moved):
            os.rename(after, before)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
