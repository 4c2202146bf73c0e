"""A folder or a file that appears under its name when it is whole, and not before."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from producer.errors import ConfigurationError

MANIFEST: Final = "export.json"  # every export holds one, and nothing is replaced that does not


@contextmanager
def staged_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a new folder beside `folder` to write into; it takes the name when the block ends without an error.

    An error or Ctrl-C removes it. What a kill leaves behind is hidden: ``.NAME.partial-…``; nothing reads it,
    and it may be removed.

    Raises:
        ConfigurationError: `folder` is there already, and is no export that may be replaced; or it cannot be
            written, because the disk is full for example. What was there before is there still.
    """
    folder = Path(os.path.abspath(folder))
    there = os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir()))
    if there and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} is there already and is no export: choose another name")
    if there and not replace:
        raise ConfigurationError(f"{folder} holds an export already: choose another name, or add --replace")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        partial.mkdir()
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error}") from error
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                _to_disk(path)
        if there:
            _exchange(folder, partial)
        else:
            if folder.is_dir():
                folder.rmdir()  # it is empty; Windows does not rename over it
            os.rename(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConfigurationError(f"{folder} cannot be written: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, and rename it.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        _to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error}") from error


def _exchange(folder: Path, partial: Path) -> None:
    """Give `partial` the name of an earlier folder, which is removed; or leave that as it was."""
    old = folder.with_name(f".{folder.name}.old-{secrets.token_hex(4)}")
    os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the new one is there, whatever keeps the old one


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
