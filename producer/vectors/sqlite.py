"""The vector store in a SQLite file: the default on one machine. Not for network shares. Format: docs/store.md."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from producer.embedding import Space, Vectors
from producer.errors import StoreError, StoreUnavailable
from producer.vectors.base import Row, SpaceInfo
from producer.vectors.codec import checked, first_version, pack, unpack, unpack_many

SCHEMA_VERSION: Final = 2
PAGE_BYTES: Final = 32768  # 1.08 times the raw vectors on disk; the default of 4 KiB takes twice the raw size
BUSY_TIMEOUT_S: Final = 10  # a put of a chunk takes milliseconds; another writer's is over long before
IDS_PAGE: Final = 500  # ids per statement, below the limit of every SQLite built since 2008 (999)
LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # sqlite3 cannot encode it, and no stored id holds one
_UPSERT: Final = """
INSERT INTO vectors (space, id, digest, size, mtime_ns, stored, vector) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (space, id) DO UPDATE SET digest = excluded.digest, size = excluded.size,
    mtime_ns = excluded.mtime_ns, stored = excluded.stored, vector = excluded.vector
"""


class SQLiteStore:
    """Keeps the contract of VectorStore in a file. Several processes and threads may use it at once.

    A chunk that was stored survives the death of the process; of a power cut it survives all but
    the last moments, and the file stays whole (WAL with synchronous=NORMAL). What is lost that way
    is embedded again by the next `index`, which reads this file.
    """

    def __init__(self, path: str) -> None:
        """Open or create the file, and its folder."""
        self._path = Path(path)
        self._local = threading.local()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of the store {self._path} cannot be made: {error}") from error
        try:
            with self._translated():
                self._prepare(self._connection)
        except StoreError:
            self.close()
            raise

    def put(
        self, space: Space, rows: Sequence[Row], vectors: Vectors, provenance: Mapping[str, str] | None = None
    ) -> None:
        rows, vectors = checked(space, rows, vectors)
        now = time.time()
        with self._writing() as db:
            key = self._make_known(db, space, provenance, now)
            db.executemany(_UPSERT, [(key, *row, now, raw) for row, raw in zip(rows, pack(vectors), strict=True)])

    def get(self, space_id: str, ids: Sequence[str]) -> dict[str, Vectors]:
        return self._vectors("v.id", space_id, ids)

    def rows(self, space_id: str, ids: Sequence[str]) -> dict[str, Row]:
        found = self._select("v.id, v.digest, v.size, v.mtime_ns", "v.id", space_id, ids)
        return {values[0]: Row(*values) for values in found}

    def stored(self, space_id: str, ids: Sequence[str]) -> dict[str, float]:
        return dict(self._select("v.id, v.stored", "v.id", space_id, ids))

    def by_content(self, space_id: str, digests: Sequence[str]) -> dict[str, Vectors]:
        return self._vectors("v.digest", space_id, digests)

    def read(self, space_id: str, chunk: int = 8192) -> Iterator[tuple[list[Row], Vectors]]:
        # A connection of its own: one statement sees one moment, however long it takes.
        with self._translated(), closing(self._connect()) as db:
            space = db.execute("SELECT key, space FROM spaces WHERE id = ?", (space_id,)).fetchone()
            if space is None:
                return
            # the plus keeps SQLite from going by an index over the space, in whose order the rows do not lie
            query = "SELECT vector, id, digest, size, mtime_ns FROM vectors WHERE +space = ? ORDER BY number"
            cursor, dimension = db.execute(query, (space[0],)), Space.from_json(space[1]).dimension
            while found := cursor.fetchmany(chunk):
                rows = [Row._make(values[1:]) for values in found]
                yield rows, unpack_many([values[0] for values in found], dimension)

    def ids(self, space_id: str, chunk: int = 65536, prefix: str = "") -> Iterator[list[str]]:
        query = (
            "SELECT v.id FROM vectors v WHERE v.space = (SELECT key FROM spaces WHERE id = ?) "
            "AND v.id >= ? ORDER BY v.id LIMIT ?"
        )
        first = prefix
        while True:
            with self._translated():
                page = [name for (name,) in self._connection.execute(query, (space_id, first, chunk))]
            within = [name for name in page if name.startswith(prefix)]
            if within:
                yield within
            if len(within) < len(page) or not page:
                return
            first = page[-1] + "\0"  # the next text there can be

    def count(self, space_id: str) -> int:
        return int(self._value("SELECT rows FROM spaces WHERE id = ?", space_id) or 0)

    def version(self, space_id: str) -> str:
        version = self._value("SELECT version FROM spaces WHERE id = ?", space_id)
        return "" if version is None else str(version)

    def delete(self, space_id: str, ids: Sequence[str]) -> int:
        gone = 0
        with self._writing() as db:
            for start in range(0, len(ids), IDS_PAGE):
                part = ids[start : start + IDS_PAGE]
                gone += db.execute(
                    "DELETE FROM vectors WHERE space = (SELECT key FROM spaces WHERE id = ?) "
                    f"AND id IN ({_marks(part)})",
                    (space_id, *part),
                ).rowcount
        return gone

    def spaces(self) -> list[SpaceInfo]:
        with self._translated():
            found = self._connection.execute(
                "SELECT space, rows, created, changed, provenance FROM spaces ORDER BY key"
            ).fetchall()
        infos = []
        for text, rows, created, changed, provenance in found:
            space = Space.from_json(text)
            infos.append(SpaceInfo(space, rows, rows * space.dimension * 4, created, changed, json.loads(provenance)))
        return infos

    def current(self) -> str | None:
        return self._value("SELECT value FROM facts WHERE name = 'current'")

    def use(self, space_id: str) -> None:
        with self._writing() as db:
            known = [name for (name,) in db.execute("SELECT id FROM spaces ORDER BY key")]
            if space_id not in known:
                raise StoreError(f"{self._path} has no space {space_id!r}; it has: {', '.join(known) or 'none'}")
            db.execute("INSERT OR REPLACE INTO facts VALUES ('current', ?)", (space_id,))

    def drop(self, space_id: str) -> int:
        with self._writing() as db:
            gone = db.execute(
                "DELETE FROM vectors WHERE space = (SELECT key FROM spaces WHERE id = ?)", (space_id,)
            ).rowcount
            db.execute("DELETE FROM spaces WHERE id = ?", (space_id,))
            db.execute("DELETE FROM facts WHERE name = 'current' AND value = ?", (space_id,))
            db.execute("INSERT OR IGNORE INTO facts SELECT 'current', id FROM spaces ORDER BY key LIMIT 1")
        return gone

    def check(self) -> None:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('probe', ?)", (str(time.time()),))
            db.execute("DELETE FROM facts WHERE name = 'probe'")

    def close(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's connection; SQLite's own locks then order the threads as they order processes."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            with self._lock:
                for thread in [thread for thread in self._connections if not thread.is_alive()]:
                    self._connections.pop(thread).close()  # a backend's threads come and go
                self._connections[threading.current_thread()] = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} was written by a newer version of this program (schema {version}): update it"
            )
        if version == SCHEMA_VERSION:
            return
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if tables and "spaces" not in tables:
            raise StoreError(f"{self._path} is a SQLite file of another program (tables {', '.join(tables)})")
        db.execute("PRAGMA journal_mode = WAL")
        with self._writing():
            version = db.execute("PRAGMA user_version").fetchone()[0]  # another process may have been here first
            if version < SCHEMA_VERSION:
                for script in ("from_version_1" if version else "tables", "triggers"):
                    text = (files("producer.vectors") / "sql" / f"{script}.sql").read_text("utf-8")
                    for statement in text.split("\n\n"):  # not executescript: it commits first
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _value(self, query: str, *parameters: str) -> Any:
        """The first column of a query's row; None without one."""
        with self._translated():
            found = self._connection.execute(query, parameters).fetchone()
        return found[0] if found else None

    def _make_known(
        self, db: sqlite3.Connection, space: Space, provenance: Mapping[str, str] | None, now: float
    ) -> int:
        found = db.execute("SELECT key, provenance FROM spaces WHERE id = ?", (space.id,)).fetchone()
        described = json.dumps(dict(provenance), sort_keys=True) if provenance is not None else None
        if found is None:
            key = db.execute(
                "INSERT INTO spaces (id, space, created, changed, version, provenance) VALUES (?, ?, ?, ?, ?, ?)",
                (space.id, space.to_json(), now, now, first_version(), described or "{}"),
            ).lastrowid
            db.execute("INSERT OR IGNORE INTO facts VALUES ('current', ?)", (space.id,))
            assert key is not None
            return key
        if described is not None and described != found[1]:
            db.execute("UPDATE spaces SET provenance = ? WHERE key = ?", (described, found[0]))
        return int(found[0])

    def _vectors(self, by: str, space_id: str, values: Sequence[str]) -> dict[str, Vectors]:
        found = self._select(f"{by}, v.vector, s.space", by, space_id, values)
        return {value: unpack(raw, int(json.loads(space)["dimension"])) for value, raw, space in found}

    def _select(self, columns: str, by: str, space_id: str, values: Sequence[str]) -> Iterator[tuple]:  # type: ignore[type-arg]
        values = [value for value in values if value.isascii() or not LONE_SURROGATE.search(value)]
        for start in range(0, len(values), IDS_PAGE):
            part = values[start : start + IDS_PAGE]
            with self._translated():
                yield from self._connection.execute(
                    f"SELECT {columns} FROM vectors v JOIN spaces s ON s.key = v.space "
                    f"WHERE s.id = ? AND {by} IN ({_marks(part)})",
                    (space_id, *part),
                ).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all or nothing, also when the process dies in the middle."""
        with self._translated():
            db = self._connection
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate SQLite's errors: StoreUnavailable for what may pass, StoreError for what a person must repair."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if any(word in text for word in ("locked", "busy", "disk is full", "full", "disk I/O")):
                raise StoreUnavailable(f"the store {self._path} cannot be written for now: {text}") from error
            raise StoreError(f"the store {self._path} cannot be used: {text}; check path, owner and mode") from error
        except sqlite3.DatabaseError as error:
            way_out = "restore it from a copy, or move it elsewhere and index again"
            raise StoreError(f"{self._path} is damaged or is no SQLite file ({error}): {way_out}") from error


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))
