"""FileStatus: whether a file exists, was deleted, or cannot be seen at the moment."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Final

from producer.collection.paths import poster_id

MAX_CACHED_FOLDERS: Final = 4096  # ids come in order, so that the same few folders are needed again and again


class FileStatus(Enum):
    """What is known of a file. Only GONE may be acted upon without confirmation."""

    HERE = "here"
    GONE = "gone"
    EMPTY = "gone, and so is everything else in its folder"
    HIDDEN = "hidden: a parent folder cannot be read"


class FileStatusReader:
    """Reads the status of files under the posters root; caches the folders."""

    def __init__(self, base: Path) -> None:
        """`base` is the posters root, symbolic links resolved."""
        self._top = os.path.join(base, "")
        self._odd_names = lru_cache(MAX_CACHED_FOLDERS)(self._read_odd_names)
        self._status_below = lru_cache(MAX_CACHED_FOLDERS)(self._read_status_below)
        self.empty, self.emptied = "", 0.0

    def read(self, file: str) -> FileStatus:
        """The status of the file whose poster_id is that of `file`; a folder does not count as one.

        After EMPTY, `empty` is the folder, and `emptied` the time of the last change in it, in seconds since 1970.
        """
        key = poster_id(file)
        if not key or "\0" in key or key.startswith(("/", "../")) or key == ".." or posixpath.normpath(key) != key:
            return FileStatus.GONE  # an id that is not a path
        found = self._status(file)
        if found is not FileStatus.GONE:
            return found
        path = posixpath.dirname(key)
        if not key.isascii() or "%" in key:  # its name on disk may differ from its id
            resolved = self._resolve(key)
            if resolved is None:
                return FileStatus.HIDDEN
            path, is_whole = resolved
            if is_whole:
                return self._status(path)
        status, self.empty, self.emptied = self._status_below(path)
        return status

    def _status(self, file: str) -> FileStatus:
        try:
            mode = os.lstat(self._top + file).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return FileStatus.GONE
        except OSError as error:
            # no file can have a name that is too long, or that Windows forbids
            return FileStatus.GONE if error.errno in (errno.ENAMETOOLONG, errno.EINVAL) else FileStatus.HIDDEN
        return FileStatus.GONE if stat.S_ISDIR(mode) else FileStatus.HERE

    def _resolve(self, key: str) -> tuple[str, bool] | None:
        """The longest existing path whose poster_id begins `key`, and whether it is all of it; None: cannot be seen."""
        path = ""
        for part in key.split("/"):
            prefix = f"{path}/" if path else ""
            if not os.path.lexists(f"{self._top}{prefix}{part}"):
                odd = self._odd_names(path)
                if odd is None:
                    return None
                if part not in odd:
                    return path, False
                part = odd[part]
            path = prefix + part
        return path, True

    def _read_odd_names(self, folder: str) -> dict[str, str] | None:
        """Names in a folder that differ from their poster_id, by poster_id; None: it cannot be listed."""
        try:
            names = os.listdir(self._top + folder)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError:
            return None
        return {poster_id(name): name for name in names if poster_id(name) != name}

    def _read_status_below(self, folder: str) -> tuple[FileStatus, str, float]:
        """The status of a missing file, by the nearest existing folder above it; that folder and its mtime."""
        if not folder:
            return FileStatus.GONE, "", 0.0  # the caller checks the root itself
        try:
            with os.scandir(self._top + folder) as entries:
                holds = any(not entry.name.startswith(".") for entry in entries)
            changed = os.stat(self._top + folder).st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return self._status_below(posixpath.dirname(folder))
        except OSError:
            return FileStatus.HIDDEN, folder, 0.0
        return FileStatus.GONE if holds else FileStatus.EMPTY, folder, changed
