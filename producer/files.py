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
READ_FLAGS: Final = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY")
)
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
        device: number of the device that it lies on.
    """

    data: bytes
    digest: str
    size: int
    mtime_ns: int
    is_racy: bool
    device: int


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


def _device(folder: Path) -> int | None:
    """Number of the device that a folder lies on; None where there is no such folder."""
    try:
        return os.stat(folder).st_dev
    except OSError:
        return None


class PostersRoot:
    """The posters root and the disks mounted below it, and whether they are still there.

    What lies on a lost disk is not missing. Decode threads share an instance.
    """

    def __init__(self, root: Path) -> None:
        """Remember the folder as it is now."""
        self._root = root.absolute()
        self._identity = folder_identity(self._root)
        self._mounts: dict[str, int] = {}  # mount point below the root → its device
        self._own_devices = {_device(self._root)}  # of files that lie on no disk mounted below

    def resolve(self) -> Path:
        """The root with symbolic links resolved, which may lead elsewhere than before."""
        return self._root.resolve()

    def note(self, path: str, device: int) -> None:
        """Remember where the disk is mounted that a file was read from."""
        if device in self._own_devices or any(device == self._mounts[point] for point in self._mounts_above(path)):
            return
        above, parts = _device(self._root), PurePosixPath(path).parent.parts
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            here = _device(self._root / folder)
            if above != here == device:
                self._mounts = {**self._mounts, folder: device}
                return
            above = here
        # The root is another one now, or is of a kind that gives files other numbers than folders, as overlayfs.
        self._own_devices.add(device)

    def check(self, path: str, *, was_seen: bool) -> None:
        """Check the root, and the disk mounted below it, after a file was not found; costs nothing until then.

        Args:
            path: of the file.
            was_seen: somebody else saw the file: the root is not empty there.

        Raises:
            OSError: the root has become empty, or another folder; or a disk is gone from its mount point, or is another
                one. That other folder or disk is what is expected from now on.
        """
        self._check_root(was_seen=was_seen)
        for folder in self._mounts_above(path):
            point = self._root / folder
            now = _device(point)
            if now == self._mounts[folder]:
                continue
            if now is not None and now != _device(point.parent):
                self._mounts = {**self._mounts, folder: now}
                raise OSError(errno.ENODEV, f"another disk than before is mounted at {point}")
            raise OSError(errno.ENODEV, f"no disk is mounted at {point} any more")

    def _mounts_above(self, path: str) -> list[str]:
        return [folder for folder in self._mounts if PurePosixPath(path).is_relative_to(folder)]

    def _check_root(self, *, was_seen: bool) -> None:
        now, before = folder_identity(self._root), self._identity
        if now is None:
            if was_seen or before is not None:
                raise OSError(errno.ENODEV, f"the posters root {self._root} is empty: is its disk mounted?")
            return
        self._identity = now
        if before not in (None, now):
            raise OSError(errno.ENODEV, f"the posters root {self._root} is another folder than before")


class OpenFolders:
    """Descriptors of the folders of a few files below a root, each checked once; for as long as a `with` block lasts.

    A file that is opened by its name in such a folder, and is no link, lies where the folder does.
    """

    def __init__(self, root: Path) -> None:
        """`root`: symbolic links resolved; files are opened one by one in systems without /proc."""
        self.root = root
        self._prefix = str(root).rstrip("/") + "/"
        self._descriptors: dict[str, int | None] = {}

    def __enter__(self) -> OpenFolders:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            if descriptor is not None:
                os.close(descriptor)
        self._descriptors.clear()

    def open(self, name: str) -> int | None:
        """A descriptor of a regular file; None for every other name, of which `read_file` finds out what is wrong."""
        folder, _, base = name.rpartition("/")
        if not base or base in (".", ".."):
            return None
        if folder not in self._descriptors:
            self._descriptors[folder] = self._checked(folder, name)
        descriptor = self._descriptors[folder]
        if descriptor is None:
            return None
        try:
            if not stat.S_ISREG(os.stat(base, dir_fd=descriptor, follow_symlinks=False).st_mode):
                return None  # before it is opened: a device must not be
            return os.open(base, READ_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
        except OSError:
            return None

    def _checked(self, folder: str, name: str) -> int | None:
        if sys.platform != "linux" or name.startswith("/") or ".." in name.split("/"):
            return None
        try:
            descriptor = os.open(self._prefix + folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if (os.readlink(f"/proc/self/fd/{descriptor}") + "/").startswith(self._prefix):
                return descriptor
        except OSError:
            pass  # no /proc
        os.close(descriptor)
        return None


def read_file(
    path: str | os.PathLike[str],
    *,
    root: Path | None = None,
    max_bytes: int = 100_000_000,
    folders: OpenFolders | None = None,
) -> FileContent:
    """Read a whole file.

    Args:
        path: with `root`, relative to it with ``/`` between its parts; without, any local path.
        root: the folder that the file must lie in, symbolic links resolved; already resolved itself.
        max_bytes: a larger file is refused before it is read.
        folders: of the same root, which spares the checks of folders that are open already.

    Raises:
        UnreadablePoster: missing, outside-root, unsupported (not a regular file), too-large, unreadable
            (also a file that is being written to while it is read).
        OSError: not the poster is at fault (the disk, the network, too many open files, a missing
            posters root): try again later.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise UnreadablePoster(name, "missing", "its name holds a NUL, which no file's does")
    descriptor = folders.open(name) if folders is not None else None
    if descriptor is None:
        descriptor = _open_checked(name, root)
    try:
        return _read(descriptor, name, max_bytes)
    finally:
        os.close(descriptor)


def _open_checked(name: str, root: Path | None) -> int:
    """Open a file by its whole path, with an error that says what is wrong with it."""
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
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


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
    """Open a regular file, checked here and before it is read: a FIFO must not block, a device must not be opened."""
    _require_regular(os.stat(target), name)
    return os.open(target, READ_FLAGS)


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
    for attempt in range(MAX_READS):
        began_ns, status = time.time_ns(), os.fstat(descriptor)
        _require_regular(status, name)  # it may have been replaced between the check and the opening
        if status.st_size > max_bytes:
            raise UnreadablePoster(name, "too-large", f"it has {status.st_size:,} bytes, the limit is {max_bytes:,}")
        if attempt:
            os.lseek(descriptor, 0, os.SEEK_SET)
        data = _read_all(descriptor, status.st_size, name, max_bytes)
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            digest = hashlib.sha256(data, usedforsecurity=False).hexdigest()
            is_racy = began_ns - status.st_mtime_ns <= COARSEST_TIME_NS
            return FileContent(data, digest, len(data), modified_ns(status), is_racy, status.st_dev)
    reason = f"it changed while it was read, {MAX_READS} times: somebody is writing it; index it again after that"
    raise UnreadablePoster(name, "unreadable", reason)


def _read_all(descriptor: int, size: int, name: str, max_bytes: int) -> bytes:
    part = os.read(descriptor, size + 1)
    if len(part) == size:
        return part  # to its end: a file that grows meanwhile has another size afterwards
    parts, left = [part], max_bytes + 1 - len(part)  # a file that grows while it is read stays within the limit
    while left and (part := os.read(descriptor, min(left, max(READ_BYTES, size)))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise UnreadablePoster(name, "too-large", f"it grew past the limit of {max_bytes:,} bytes")
    return b"".join(parts)


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
