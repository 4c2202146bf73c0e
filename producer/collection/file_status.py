"""Is a file there? And if not: is it gone, or is it out of sight?"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from enum import Enum
from pathlib import Path
from typing import Any, Final

from producer.collection.paths import poster_id

REMEMBERED: Final = 4096  # folders; ids come in order, so that the same few are asked for again and again


class FileStatus(Enum):
    """What is known of a file. Only GONE may be acted upon without asking."""

    HERE = "here"
    GONE = "gone"
    EMPTY = "gone, and so is all that lay beside it"
    HIDDEN = "out of sight: a folder on its way cannot be read"


class FileStatusReader:
    """Looks for files under the posters root, one after the other; remembers the folders that it met."""

    def __init__(self, base: Path) -> None:
        """`base` is the posters root, symbolic links resolved."""
        self._top = os.path.join(base, "")
        self._odd: dict[str, dict[str, str] | None] = {}
        self._fates: dict[str, tuple[FileStatus, str, float]] = {}
        self.empty, self.emptied = "", 0.0

    def look(self, file: str) -> FileStatus:
        """Whether there is a file whose poster_id is that of `file`; a folder is none.

        After EMPTY, `empty` is the folder, and `emptied` when something in it last came or went.
        """
        key = poster_id(file)
        if not key or "\0" in key or key.startswith(("/", "../")) or key == ".." or posixpath.normpath(key) != key:
            return FileStatus.GONE  # the id of something else, and no path that a file can have
        found = self._status(file)
        if found is not FileStatus.GONE:
            return found
        path = posixpath.dirname(key)
        if not key.isascii() or "%" in key:  # the disk may spell it in another way than its id does
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
            # a name that is too long, or that Windows forbids, is nobody's
            return FileStatus.GONE if error.errno in (errno.ENAMETOOLONG, errno.EINVAL) else FileStatus.HIDDEN
        return FileStatus.GONE if stat.S_ISDIR(mode) else FileStatus.HERE

    def _resolve(self, key: str) -> tuple[str, bool] | None:
        """The path on disk of which `key` is the poster_id, as far as it is there, and whether that is all of it."""
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

    def _odd_names(self, folder: str) -> dict[str, str] | None:
        """Of the names in a folder those that are not their own poster_id, by it; None: it cannot be listed."""
        if folder not in self._odd:
            _make_room(self._odd)
            try:
                with os.scandir(self._top + folder) as entries:
                    self._odd[folder] = {
                        poster_id(entry.name): entry.name for entry in entries if poster_id(entry.name) != entry.name
                    }
            except (FileNotFoundError, NotADirectoryError):
                self._odd[folder] = {}
            except OSError:
                self._odd[folder] = None
        return self._odd[folder]

    def _status_below(self, folder: str) -> tuple[FileStatus, str, float]:
        """What the absence of a file means, by the nearest folder above it that is there; that folder, and its time."""
        if not folder:
            return FileStatus.GONE, "", 0.0  # the root itself is looked at by who asks
        if folder not in self._fates:
            _make_room(self._fates)
            try:
                with os.scandir(self._top + folder) as entries:
                    holds = any(not entry.name.startswith(".") for entry in entries)
                changed = os.stat(self._top + folder).st_mtime
                self._fates[folder] = FileStatus.GONE if holds else FileStatus.EMPTY, folder, changed
            except (FileNotFoundError, NotADirectoryError):
                self._fates[folder] = self._status_below(posixpath.dirname(folder))
            except OSError:
                self._fates[folder] = FileStatus.HIDDEN, folder, 0.0
        return self._fates[folder]


def _make_room(remembered: dict[str, Any]) -> None:
    if len(remembered) >= REMEMBERED:
        remembered.clear()
