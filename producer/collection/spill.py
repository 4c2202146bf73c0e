"""What a scan has to remember, however much it is: in memory while it is little, in files without a name after that."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import merge
from typing import IO, Final

from producer.errors import ConfigurationError

HELD_MOST: Final = 50_000  # names in memory: about five megabytes
READ_BYTES: Final = 1 << 16
CACHE_KIB: Final = 16384


class SpooledNames:
    """File names of one folder, to be read back in order, in constant memory."""

    def __init__(self, held_most: int = HELD_MOST) -> None:
        """`held_most` names are kept in memory; every further such lot is sorted and goes to disk."""
        self._held_most = held_most
        self._held: list[str] = []
        self._lots: list[IO[bytes]] = []

    def add(self, name: str) -> None:
        """Remember a name; it holds no NUL, as no file's does."""
        self._held.append(name)
        if len(self._held) >= self._held_most:
            self._held.sort()
            with room_is_told():
                # lives as long as its iterator; unbuffered, so that a full disk shows here and not at the end
                lot = tempfile.TemporaryFile(prefix="posters-names-", buffering=0)  # noqa: SIM115
                self._lots.append(lot)
                rest = memoryview(b"".join(os.fsencode(name) + b"\0" for name in self._held))
                while rest:
                    rest = rest[lot.write(rest) :]
            self._held.clear()

    def __iter__(self) -> Iterator[str]:
        """Every name, in order; may be asked for once."""
        self._held.sort()
        return merge(self._held, *map(_read_back, self._lots)) if self._lots else iter(self._held)


def _read_back(lot: IO[bytes]) -> Iterator[str]:
    rest = b""
    lot.seek(0)
    with lot:
        while block := lot.read(READ_BYTES):
            *names, rest = (rest + block).split(b"\0")
            yield from map(os.fsdecode, names)


class SpooledSet:
    """Texts of which only has to be known whether they were there before, in constant memory. For one thread."""

    def __init__(self) -> None:
        """An empty set."""
        self._database = temporary_database()
        self._database.execute("CREATE TABLE texts (text TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, text: str) -> bool:
        """Remember a text; False when it was there before."""
        with room_is_told():
            return bool(self._database.execute("INSERT OR IGNORE INTO texts VALUES (?)", (text,)).rowcount)


class _Temporary(sqlite3.Connection):
    """A connection that needs no `close`: nobody waits for what is in it."""

    def __del__(self) -> None:
        self.close()


@contextmanager
def room_is_told() -> Iterator[None]:
    """Turn what fails inside, for want of room in the temporary folder, into an error that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise ConfigurationError(
            f"there is no room for temporary files ({error}): make some in /var/tmp and {tempfile.gettempdir()}, "
            "or set TMPDIR to a folder that has it"
        ) from error


def temporary_database() -> sqlite3.Connection:
    """A database for the threads of this process; it stays within its cache, or grows in a file that goes with it."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False, factory=_Temporary)
    # nothing of it outlives the process, so nothing has to survive a crash
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{CACHE_KIB}"):
        database.execute(f"PRAGMA {pragma}").close()
    return database
