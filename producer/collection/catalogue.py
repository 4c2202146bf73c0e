"""The catalogue (data/posters.json): ids, titles and further keys of posters, and the entries that cannot be used."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from producer.collection.entry import Entry, Problem, is_encodable
from producer.collection.paths import is_below, poster_id
from producer.collection.readers import format_of, read_entries
from producer.errors import ConfigurationError
from producer.files import COARSEST_TIME_NS, file_stamp
from producer.host import renew_after_fork
from producer.queue.progress import Failure
from producer.settings import Settings

QUERY_VALUES: Final = 500  # per statement, below the limit of every SQLite built since 2008 (999)
PAGE_ROWS: Final = 1000
CACHE_KIB: Final = 16384
LAST: Final = "\U0010ffff"  # sorts after every file name


class Catalogue:
    """The entries of a catalogue file, in a temporary database: memory does not grow with their number.

    Made by read_catalogue; has the state of the file at that time. Its length is the number of usable entries.
    Threads may share it.

    Attributes:
        path: the file; None: there is none.
        stamp: its file_stamp when it was read.
        last_number: no usable entry has a higher one.
    """

    def __init__(self, path: Path | None) -> None:
        """An empty catalogue; `path` is the file that it stands for."""
        self.path, self._read_ns, self.stamp = path, time.time_ns(), file_stamp(path)
        self.last_number = self._length = 0
        self._database = _temporary_database()
        weakref.finalize(self, self._database.close)  # with the catalogue, however long it is kept
        self._database.executescript(_sql("tables"))
        self._lock = threading.Lock()
        self._is_forked = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: answer, and be read again for it as soon as somebody looks whether this is current."""
        self._lock, self._is_forked = threading.Lock(), True

    def __len__(self) -> int:
        return self._length

    def is_current(self) -> bool:
        """False when its file was changed or replaced since it was read, or may have been without a trace."""
        is_racy = self.stamp is not None and abs(self._read_ns - self.stamp[3]) <= COARSEST_TIME_NS
        return self.stamp == file_stamp(self.path) and not is_racy and not self._is_forked

    def entries(self) -> Iterator[Entry]:
        """All usable entries, in the order of the file."""
        return (_entry(*row) for row in self._rows("entries"))

    def entries_below(self, folder: str) -> Iterator[Entry]:
        """The entries whose file is `folder` or lies below it (``""``: all), ordered by poster_id of the file."""
        folder = poster_id(folder)
        first, last = folder, f"{folder}0" if folder else LAST  # 0 follows / in Unicode
        query = "SELECT * FROM entries WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        while page := self._select(query, (first, last, PAGE_ROWS)):
            first = page[-1][1] + "\0"
            yield from (_entry(*row) for row in page if is_below(row[1], folder))

    def by_file(self, files: Iterable[str]) -> dict[str, Entry]:
        """The entries that name these files; keys are the poster_ids of the files."""
        return {row[1]: _entry(*row) for row in self._select_in("key", map(poster_id, files))}

    def by_id(self, ids: Iterable[str]) -> dict[str, Entry]:
        """The entries that have these ids."""
        return {row[3]: _entry(*row) for row in self._select_in("id", ids)}

    def problems(self) -> Iterator[Failure]:
        """A failure for each entry that cannot be used, in the order of the file."""
        path = self.path or Path()  # an empty catalogue has none, and no problems
        for number, _, word, reason in self._rows("problems"):
            text = f"{format_of(path).unit} {number} of {path} {reason}; correct it and run `index` again"
            yield Failure(f"{path.name}#{number}", f"{path}#{number}", word, text)

    def count_problems(self) -> int:
        """How many entries cannot be used."""
        return int(self._select("SELECT count(*) FROM problems")[0][0])

    def ids_of_problems(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that unusable entries claim: which poster is meant is unknown."""
        return {row[1] for row in self._select_in("id", ids, "problems")}

    def belongs_to(self, root: Path) -> bool:
        """False when it names posters and none of them lies under `root`: most likely it is another folder's."""
        return not len(self) or any(os.path.lexists(root / entry.file) for entry in self.entries_below(""))

    def load(self, rows: Iterable[Entry | Problem], unit: str) -> None:
        """Store the entries of a file; for read_catalogue. `unit` is what they are counted in."""
        source = iter(rows)
        with self._lock, _report_lack_of_space():
            self._database.execute("BEGIN")
            while page := list(islice(source, PAGE_ROWS)):
                entries = (_columns(row) for row in page if isinstance(row, Entry))
                self._database.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", entries)
                problems = (row for row in page if isinstance(row, Problem))
                self._database.executemany("INSERT INTO problems VALUES (?, ?, ?, ?)", problems)
            self._database.execute("COMMIT")
            self._database.executescript(_sql("indexes"))
            self._drop_duplicates(unit)
            totals = self._database.execute("SELECT count(*), coalesce(max(number), 0) FROM entries")
            self._length, self.last_number = totals.fetchone()

    def _drop_duplicates(self, unit: str) -> None:
        """Of entries that name the same file or have the same id, keep the first."""
        execute = self._database.execute
        execute("BEGIN")
        for (number,) in execute("SELECT number FROM duplicates ORDER BY number"):
            _, key, identity, same_file, same_id = execute(
                "SELECT * FROM earlier WHERE number = ?", (number,)
            ).fetchone()
            if same_file is not None:
                reason = f"names the file {key!r}, which {unit} {same_file} already has"
            elif same_id is not None:
                reason = f"has the id {identity!r}, which {unit} {same_id} already has"
            else:
                continue
            execute("INSERT INTO problems VALUES (?, ?, ?, ?)", Problem(number, identity, "unsupported", reason))
            execute("DELETE FROM entries WHERE number = ?", (number,))
        execute("COMMIT")

    def _select(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock, _report_lack_of_space():
            return self._database.execute(query, tuple(values)).fetchall()

    def _rows(self, table: Literal["entries", "problems"]) -> Iterator[Any]:
        """All rows in the order of the file, a page at a time."""
        query, number = f"SELECT * FROM {table} WHERE number > ? ORDER BY number LIMIT ?", 0
        while page := self._select(query, (number, PAGE_ROWS)):
            number = page[-1][0]
            yield from page

    def _select_in(
        self, column: Literal["key", "id"], values: Iterable[str], table: Literal["entries", "problems"] = "entries"
    ) -> Iterator[Any]:
        source = filter(is_encodable, values)
        while page := list(islice(source, QUERY_VALUES)):
            yield from self._select(f"SELECT * FROM {table} WHERE {column} IN ({','.join('?' * len(page))})", page)


def read_catalogue(path: Path | None) -> Catalogue:
    """Read objects with ``file`` (relative to the posters root), optional ``id``, ``title`` and any more keys.

    The suffix selects the format: ``.json`` a list of objects, or an object with the list `posters`;
    ``.jsonl`` an object per line; ``.csv`` a header and lines. A file that does not exist is an empty
    catalogue. An entry that cannot be used becomes a failure with its number or line, and does not
    affect the others.

    Raises:
        ConfigurationError: the file as a whole cannot be read in its format.
    """
    catalogue = Catalogue(path)
    if path is not None and catalogue.stamp is not None:  # a file deleted after this check is an error, not empty
        catalogue.load(read_entries(path), format_of(path).unit)
    return catalogue


def open_catalogue(settings: Settings, before: Catalogue | None = None) -> Catalogue:
    """The catalogue that the settings name, as it is now.

    Args:
        settings: which file, and whether somebody named it or it is the default, which may be missing.
        before: as read earlier, if it was.

    Raises:
        ConfigurationError: there is no file, and it was named, or had entries before: its ids would seem deleted, and
            its posters would get other ids. Or the file cannot be read.
    """
    catalogue = read_catalogue(settings.catalogue)
    was_there = "catalogue" in settings.model_fields_set or bool(before)
    if catalogue.path is not None and catalogue.stamp is None and was_there:
        raise ConfigurationError(
            f"there is no catalogue {catalogue.path}, and without it the posters of its ids are unknown: put it "
            "back, or set POSTERS_CATALOGUE to the right one, or to `none`"
        )
    return catalogue


def _columns(entry: Entry) -> tuple[int, str, bytes | None, str, str]:
    key = poster_id(entry.file)
    return entry.number, key, None if entry.file == key else os.fsencode(entry.file), entry.id, entry.json


def _entry(number: int, key: str, file: bytes | None, identity: str, text: str) -> Entry:
    return Entry(number, key if file is None else os.fsdecode(file), identity, text)


def _sql(name: str) -> str:
    return (resources.files("producer.collection") / f"catalogue_{name}.sql").read_text("utf-8")


class _TemporaryDatabase(sqlite3.Connection):
    """Closed by the garbage collector, so that a catalogue needs no `close`."""

    def __del__(self) -> None:
        self.close()


def _temporary_database() -> sqlite3.Connection:
    """A database for the threads of this process; it stays within its cache, or grows in an unnamed temporary file."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False, factory=_TemporaryDatabase)
    # it ends with the process, and need not survive a crash
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{CACHE_KIB}"):
        database.execute(f"PRAGMA {pragma}").close()
    return database


@contextmanager
def _report_lack_of_space() -> Iterator[None]:
    """Turn a full temporary folder into an error with a way out."""
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"not enough space for temporary files ({error}): free some in /var/tmp and {tempfile.gettempdir()}, "
            "or set TMPDIR to a folder that has some"
        ) from error
