"""What the catalogue (data/posters.json) says of posters: ids, titles, any further keys, and what is wrong with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, ValuesView
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from producer.collection.entry import Entry, Place, Problem, RawEntry, Row, checked
from producer.collection.paths import is_below, poster_id
from producer.collection.readers import format_of, read_entries
from producer.collection.spill import room_is_told, temporary_database
from producer.errors import ConfigurationError
from producer.files import file_stamp
from producer.queue.progress import Failure
from producer.settings import Settings

ASKED_AT_ONCE: Final = 500  # values per statement, below the limit of every SQLite built since 2008 (999)
TAKEN_AT_ONCE: Final = 1000  # entries written, or read back, in one go
LAST: Final = "\U0010ffff"  # no file's name sorts behind it
# `key` is how a file is recognized, whatever form its name has on disk; `file` is NULL where it is the same.
# The indexes hold all that a scan asks for, and are made when everything is in: sorting is faster than inserting.
_TABLES: Final = """
CREATE TABLE entries (number INTEGER PRIMARY KEY, key TEXT, file BLOB, id TEXT, about TEXT);
CREATE TABLE problems (number INTEGER PRIMARY KEY, id TEXT, word TEXT, reason TEXT);
"""
_INDEXES: Final = """
CREATE INDEX by_key ON entries (key, file, id);
CREATE INDEX by_id ON entries (id, key, file);
CREATE INDEX claims ON problems (id);
"""
# Numbers of the entries that share a file or an id with another; mostly none.
_DUPLICATES: Final = """
CREATE TABLE twins AS SELECT number FROM entries WHERE
    key IN (SELECT key FROM entries GROUP BY key HAVING count(*) > 1) OR
    id IN (SELECT id FROM entries GROUP BY id HAVING count(*) > 1)
ORDER BY number;
"""


class Catalogue:
    """The entries of a catalogue, looked up on disk: a million of them take no more memory than a hundred.

    Made by read_catalogue; shows the file as it was then. Threads may share it.
    """

    def __init__(self, path: Path | None) -> None:
        """An empty catalogue; `path` is the file that it stands for."""
        self.path = path
        self.stamp = file_stamp(path)
        self.size = 0  # entries that can be used
        self._database = temporary_database()
        self._database.executescript(_TABLES)
        self._lock = threading.Lock()
        self.entries: Mapping[str, Entry] = _Entries(self, "key")
        self.by_id: Mapping[str, Entry] = _Entries(self, "id")
        self.problems: Collection[Failure] = _Problems(self)

    def title(self, poster: str) -> str:
        """The title of a poster by its id; empty where the catalogue has none."""
        entry = self.by_id.get(poster)
        return str(entry.about.get("title", "")) if entry else ""

    def belongs_to(self, root: Path) -> bool:
        """False when it names posters and not one of them lies under `root`: most likely another folder's."""
        return not self.entries or any(os.path.lexists(root / place.file) for place in self.places())

    def places(self, below: str = "") -> Iterator[Place]:
        """The entries whose file is `below` or lies below it (``""``: all), in the order of their files."""
        folder = poster_id(below)
        first, last = folder, f"{folder}0" if folder else LAST  # 0 follows / in Unicode
        query = "SELECT number, key, file, id, '' FROM entries WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        while page := [Row(*row) for row in self.select(query, (first, last, TAKEN_AT_ONCE))]:
            first = page[-1].key + "\0"
            yield from (row.place for row in page if is_below(row.key, folder))

    def at(self, keys: Iterable[str]) -> dict[str, Place]:
        """For each file, by its poster_id, the entry that names it."""
        return dict(self._places_by("key", keys))

    def of(self, ids: Iterable[str]) -> dict[str, Place]:
        """For each id, the entry that has it."""
        return dict(self._places_by("id", ids))

    def described(self, ids: Iterable[str]) -> dict[str, Entry]:
        """For each id, the whole entry that has it, with all its keys."""
        query = "SELECT number, key, file, id, about FROM entries WHERE id IN"
        rows = (Row(*found) for found in self._select_in(query, ids))
        return {row.id: row.entry for row in rows}

    def claimed(self, ids: Iterable[str]) -> set[str]:
        """Those ids that stand in entries which cannot be used: nobody knows which poster is meant."""
        return {name for (name,) in self._select_in("SELECT id FROM problems WHERE id IN", ids)}

    def is_outdated(self) -> bool:
        """True when the file is not the one any more that was read."""
        return file_stamp(self.path) != self.stamp

    def select(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        """Rows of the tables above; for this module's classes."""
        with self._lock, room_is_told():
            return self._database.execute(query, tuple(values)).fetchall()

    def close(self) -> None:
        """Let go of the memory, and of the file if there is one."""
        self._database.close()

    def fill(self, raws: Iterable[RawEntry], unit: str) -> None:
        """Take in the entries of a file; for read_catalogue. What cannot be used becomes a problem."""
        source = iter(raws)
        with self._lock, room_is_told():
            self._database.execute("BEGIN")
            while block := list(map(checked, islice(source, TAKEN_AT_ONCE))):
                rows = (row for row in block if isinstance(row, Row))
                problems = (row for row in block if isinstance(row, Problem))
                self._database.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
                self._database.executemany("INSERT INTO problems VALUES (?, ?, ?, ?)", problems)
            self._database.execute("COMMIT")
            self._database.executescript(_INDEXES)
            self._drop_duplicates(unit)
            self.size = int(self._database.execute("SELECT count(*) FROM entries").fetchone()[0])

    def _drop_duplicates(self, unit: str) -> None:
        """Of entries that name the same file or have the same id, keep the first."""
        self._database.executescript(_DUPLICATES)
        query = "SELECT number, key, id FROM entries JOIN twins USING (number) ORDER BY number"
        for number, key, identity in self._database.execute(query).fetchall():
            for column, value, said in (("key", key, "names the file"), ("id", identity, "has the id")):
                earlier = self._database.execute(
                    f"SELECT min(number) FROM entries WHERE {column} = ? AND number < ?", (value, number)
                ).fetchone()[0]
                if earlier is not None:
                    reason = f"{said} {value!r}, which {unit} {earlier} has already"
                    problem = Problem(number, identity, "unsupported", reason)
                    self._database.execute("INSERT INTO problems VALUES (?, ?, ?, ?)", problem)
                    self._database.execute("DELETE FROM entries WHERE number = ?", (number,))
                    break

    def _places_by(self, column: Literal["key", "id"], values: Iterable[str]) -> Iterator[tuple[str, Place]]:
        query = f"SELECT {column}, number, key, file, id FROM entries WHERE {column} IN"
        for value, number, key, file, identity in self._select_in(query, values):
            yield value, Place(number, key if file is None else os.fsdecode(file), identity)

    def _select_in(self, query: str, values: Iterable[str]) -> Iterator[Any]:
        source = iter(values)
        while part := list(islice(source, ASKED_AT_ONCE)):
            yield from self.select(f"{query} ({','.join('?' * len(part))})", part)


class _Entries(Mapping[str, Entry]):
    """The entries by file, or by id."""

    def __init__(self, catalogue: Catalogue, column: Literal["key", "id"]) -> None:
        self._catalogue, self._column = catalogue, column

    def __getitem__(self, name: str) -> Entry:
        query = f"SELECT number, key, file, id, about FROM entries WHERE {self._column} = ?"
        try:
            found = self._catalogue.select(query, (poster_id(name) if self._column == "key" else name,))
        except UnicodeEncodeError:
            found = []  # no id that is text
        if not found:
            raise KeyError(name)
        return Row(*found[0]).entry

    def __iter__(self) -> Iterator[str]:
        return (entry.file if self._column == "key" else entry.id for entry in self.all())

    def __len__(self) -> int:
        return self._catalogue.size

    def values(self) -> ValuesView[Entry]:
        return _Values(self)

    def all(self) -> Iterator[Entry]:
        number = 0
        query = "SELECT number, key, file, id, about FROM entries WHERE number > ? ORDER BY number LIMIT ?"
        while page := self._catalogue.select(query, (number, TAKEN_AT_ONCE)):
            number = page[-1][0]
            yield from (Row(*row).entry for row in page)


class _Values(ValuesView[Entry]):
    """The entries in the order of the file, without looking each of them up."""

    _mapping: _Entries

    def __iter__(self) -> Iterator[Entry]:
        return self._mapping.all()


class _Problems(Collection[Failure]):
    """What is wrong with the catalogue, a failure for each entry that cannot be used."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def __iter__(self) -> Iterator[Failure]:
        path, after = self._catalogue.path, 0
        query = "SELECT number, word, reason FROM problems WHERE number > ? ORDER BY number LIMIT ?"
        while path and (page := self._catalogue.select(query, (after, TAKEN_AT_ONCE))):
            for after, word, reason in page:
                told = f"{format_of(path).unit} {after} of {path} {reason}; correct it and run `index` again"
                yield Failure(f"{path.name}#{after}", f"{path}#{after}", word, told)

    def __len__(self) -> int:
        return int(self._catalogue.select("SELECT count(*) FROM problems")[0][0])

    def __contains__(self, problem: object) -> bool:
        return any(problem == one for one in self)


def read_catalogue(path: Path | None) -> Catalogue:
    """Read objects with ``file`` (relative to the posters root), optional ``id``, ``title`` and any more keys.

    The name tells the format: ``.json`` a list of objects, or an object with the list `posters`;
    ``.jsonl`` an object per line; ``.csv`` a header and lines. A file that is not there is an empty
    catalogue. An entry that cannot be used becomes a failure that names its number or line, and
    spoils no other.

    Raises:
        ConfigurationError: the file as a whole cannot be read as what its name says.
    """
    catalogue = Catalogue(path)
    if path is not None and catalogue.stamp is not None:  # a file that goes in this moment is an error, not empty
        catalogue.fill(read_entries(path), format_of(path).unit)
    return catalogue


def is_missed(settings: Settings, catalogue: Catalogue) -> bool:
    """True when somebody asked for the catalogue and it had no file when it was read, so that it is empty."""
    return catalogue.path is not None and catalogue.stamp is None and "catalogue" in settings.model_fields_set


def require_catalogue(settings: Settings, catalogue: Catalogue, before: Catalogue | None = None) -> None:
    """Refuse a catalogue that is empty because its file is away: its ids would look gone, its posters would get others.

    Args:
        settings: whether it was asked for.
        catalogue: as it was read now.
        before: as it was read earlier, if it was.

    Raises:
        ConfigurationError: there was no file, and it was asked for, or had entries before.
    """
    is_lost = catalogue.path is not None and catalogue.stamp is None and before is not None and before.size > 0
    if is_lost or is_missed(settings, catalogue):
        raise ConfigurationError(
            f"there is no catalogue {catalogue.path}, and without it nobody knows which posters its ids are: put it "
            "back, or set POSTERS_CATALOGUE to the right one, or to `none`"
        )
