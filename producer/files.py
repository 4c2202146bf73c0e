"""Open a poster's file safely: inside the posters root, a regular file, of a bounded size, never blocking."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from producer.errors import UnreadablePoster

EARLIEST_NS: Final = -(2**63)  # 1677: file systems that count from 1601 give dates before 1970
READ_BYTES: Final = 1 << 20
# The coarsest resolution of modification times, that of FAT; ext3 and some network shares have 1 s. A file that is
# written again within it keeps its time.
COARSEST_TIME_NS: Final = 2_000_000_000
MAX_READS: Final = 3  # tries to read a file that is being written: half an old and half a new image is none
WINDOWS_DEVICE: Final = re.compile(r"(?i)^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$")
# Errors of a file itself. Every other OSError (EIO, ESTALE, EMFILE, a lost network path …) says nothing about the
# poster and reaches the caller, which tries the batch again.
_REASONS: Final = {
    errno.ENOENT: ("missing", "there is no such file"),
    errno.ENOTDIR: ("missing", "a part of its path is not a folder"),
    errno.ENAMETOOLONG: ("missing", "no file system here allows a name of that length"),
    errno.EACCES: ("unreadable", "this program may not read it: check its owner and mode"),
    errno.EPERM: ("unreadable", "this program may not read it: check its owner and mode"),
    errno.ELOOP: ("unreadable", "its symbolic links lead in a circle"),
    errno.EISDIR: ("unsupported", "it is a folder"),
    errno.ENXIO: ("unsupported", "it is not a regular file"),
    errno.EINVAL: ("missing", "its name cannot exist on this system"),
}
# Errors of one file's blocks on a disk, but also of a disk or a network that comes back.
DAMAGE: Final = frozenset(
    getattr(errno, name) for name in ("EIO", "EUCLEAN", "EBADMSG", "EREMOTEIO", "ENOKEY") if hasattr(errno, name)
)


@dataclass(frozen=True)
class FileContent:
    """A file as it was read through one descriptor.

    Attributes:
        data: all of its bytes.
        digest: SHA-256 of the bytes in hex; faster than BLAKE2b on processors with SHA instructions.
        size: bytes.
        mtime_ns: modification time, nanoseconds since 1970.
        is_racy: it was read so soon after that time that it may have been written again within the same time, or the
            time lies in the future: size and time do not prove that it is unchanged since. Git's rule.
    """

    data: bytes
    digest: str
    size: int
    mtime_ns: int
    is_racy: bool


def modified_ns(status: os.stat_result) -> int:
    """A file's modification time as messages and stores hold it: nanoseconds since 1970, in 64 bits with a sign."""
    return max(EARLIEST_NS, min(status.st_mtime_ns, -EARLIEST_NS - 1))


def file_stamp(path: Path | None) -> tuple[int, int, int, int] | None:
    """Device, inode, size and modification time of a regular file, to see whether it was changed or replaced.

    None where there is none.
    """
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def folder_identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None when it is unreachable, or empty, as a mount point without its disk is."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            return (status.st_dev, status.st_ino) if any(entries) else None
    except OSError:
        return None


class PostersRoot:
    """The posters root, and whether it is still the folder that it was: what lies on a lost disk is not missing."""

    def __init__(self, root: Path) -> None:
        """Remember the folder as it is now."""
        self._root = root.absolute()
        self._identity = folder_identity(self._root)

    def resolve(self) -> Path:
        """The root with symbolic links resolved, which may lead elsewhere than before."""
        return self._root.resolve()

    def check(self, *, was_seen: bool) -> None:
        """Check the root after a file in it was not found; looks at nothing else, so that it costs no other file.

        Args:
            was_seen: somebody else saw the file: the root is not empty there.

        Raises:
            OSError: the root has become empty, or another folder; that other one is taken for the root from now on.
        """
        now, before = folder_identity(self._root), self._identity
        if now is None:
            if was_seen or before is not None:
                raise OSError(errno.ENODEV, f"the posters root {self._root} is empty: is its disk mounted?")
            return
        self._identity = now
        if before not in (None, now):
            raise OSError(errno.ENODEV, f"the posters root {self._root} is another folder than before")


def read_file(path: str | os.PathLike[str], *, root: Path | None = None, max_bytes: int = 100_000_000) -> FileContent:
    """Read a whole file.

    Args:
        path: with `root`, relative to it with ``/`` between its parts; without, any local path.
        root: the folder that the file must lie in, symbolic links resolved; already resolved itself.
        max_bytes: a larger file is refused before it is read.

    Raises:
        UnreadablePoster: missing, outside-root, unsupported (not a regular file), too-large, unreadable
            (also a file that is being written to while it is read).
        OSError: not the poster is at fault (the disk, the network, too many open files, a missing
            posters root): try again later.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise UnreadablePoster(name, "missing", "its name holds a NUL, which no file's does")
    if root is None:
        target = Path(name)
    else:
        _check_parts(name)
        target = root / PurePosixPath(name)
    try:
        descriptor = _open(_long(target), name)
    except OSError as error:
        raise _explained(error, name, root) from error
    try:
        if root is not None:
            _check_place(descriptor, target, root, name)
        return _read(descriptor, name, max_bytes)
    finally:
        os.close(descriptor)


def _check_parts(name: str) -> None:
    """Refuse by its text what cannot be a path inside the root, before anything is opened."""
    if (
        name.startswith(("/", "\\") if sys.platform == "win32" else "/")
        or os.path.isabs(name)
        or ".." in PurePosixPath(name).parts
    ):
        raise UnreadablePoster(name, "outside-root", "its path must be relative to the posters root, without ..")
    if sys.platform == "win32":
        parts = re.split(r"[/\\]", name)
        if ":" in name or ".." in parts:
            raise UnreadablePoster(name, "outside-root", "drive letters, streams and .. are not allowed in its path")
        if any(WINDOWS_DEVICE.match(part.rstrip(" .")) for part in parts):
            raise UnreadablePoster(name, "unsupported", "its path names a device of Windows")


def _open(target: Path, name: str) -> int:
    """Open a regular file, checked before and after: a FIFO must not block, a device must not be opened."""
    _require_regular(os.stat(target), name)
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(target, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    try:
        _require_regular(os.fstat(descriptor), name)  # it may have been replaced between the two calls
    except UnreadablePoster:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
        raise UnreadablePoster(name, "unsupported", f"it is {kind}, not a file")


def _check_place(descriptor: int, target: Path, root: Path, name: str) -> None:
    """Check that the opened file lies below the root; its name may have changed since it was opened."""
    link = f"/proc/self/fd/{descriptor}"
    if sys.platform == "linux" and os.path.islink(link):
        real = Path(os.readlink(link))
    else:
        real = Path(os.path.realpath(target))
        if not os.path.samestat(os.stat(real), os.fstat(descriptor)):
            raise UnreadablePoster(name, "outside-root", "it was replaced while it was being opened")
    if not real.is_relative_to(root):
        raise UnreadablePoster(name, "outside-root", "a link leads out of the posters root")


def _read(descriptor: int, name: str, max_bytes: int) -> FileContent:
    for _ in range(MAX_READS):
        began_ns, status = time.time_ns(), os.fstat(descriptor)
        if status.st_size > max_bytes:
            raise UnreadablePoster(name, "too-large", f"it has {status.st_size:,} bytes, the limit is {max_bytes:,}")
        os.lseek(descriptor, 0, os.SEEK_SET)
        data = _read_all(descriptor, status.st_size, name, max_bytes)
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            digest = hashlib.sha256(data, usedforsecurity=False).hexdigest()
            is_racy = began_ns - status.st_mtime_ns <= COARSEST_TIME_NS
            return FileContent(data, digest, len(data), modified_ns(status), is_racy)
    reason = f"it changed while it was read, {MAX_READS} times: somebody is writing it; index it again after that"
    raise UnreadablePoster(name, "unreadable", reason)


def _read_all(descriptor: int, size: int, name: str, max_bytes: int) -> bytes:
    parts, left = [], max_bytes + 1  # a file that grows while it is read stays within the limit
    while left and (part := os.read(descriptor, min(left, max(READ_BYTES, size)))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise UnreadablePoster(name, "too-large", f"it grew past the limit of {max_bytes:,} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _explained(error: OSError, name: str, root: Path | None) -> OSError | UnreadablePoster:
    if root is not None and not root.is_dir():
        return OSError(errno.ENODEV, f"the posters root {root} is gone: is its disk mounted?")
    known = _REASONS.get(error.errno or 0)
    if known:
        return UnreadablePoster(name, *known)
    return OSError(error.errno, error.strerror, name) if error.errno else error  # a failed read names no file


def _long(path: Path) -> Path:
    r"""Windows opens paths past 260 characters only in their ``\\?\`` form."""
    if sys.platform == "win32":
        absolute = str(path.absolute())
        if absolute.startswith("\\\\?\\"):
            return path
        if absolute.startswith("\\\\"):
            return Path("\\\\?\\UNC\\" + absolute[2:])
        return Path("\\\\?\\" + absolute)
    return path
