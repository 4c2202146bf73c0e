"""Atomic writes: a folder or a file gets its name only when it is complete."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from producer.errors import ConfigurationError

MANIFEST: Final = "export.json"  # every export holds one; a folder without it is never replaced


@contextmanager
def atomic_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it is renamed when the block ends without an error.

    An error or Ctrl-C removes it. A kill leaves a hidden ``.NAME.partial-…``, which nothing reads and which may be
    removed.

    Raises:
        ConfigurationError: `folder` exists and is not an export that may be replaced, or it cannot be written (a full
            disk, for example). What existed before is unchanged.
    """
    folder = Path(os.path.abspath(folder))
    exists = os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir()))
    if exists and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} exists and is not an export: choose another name")
    if exists and not replace:
        raise ConfigurationError(f"{folder} already holds an export: choose another name, or add --replace")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        partial.mkdir()
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be created: {error}") from error
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                _fsync(path)
        if exists:
            _replace_folder(folder, partial)
        else:
            if folder.is_dir():
                folder.rmdir()  # it is empty; Windows does not rename over it
            os.rename(partial, folder)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # where it has not been renamed


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, and rename it.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        _fsync(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error}") from error


def _replace_folder(folder: Path, partial: Path) -> None:
    """Rename `partial` to `folder` and remove the earlier one; on an error restore that."""
    old = folder.with_name(f".{folder.name}.old-{secrets.token_hex(4)}")
    os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the new one is in place, even if the old one cannot be removed


def _fsync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
