"""The vector store in a SQLite file: the default on one machine. Not for network shares. Format: docs/store.md."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from producer.embedding import Space, Vectors
from producer.errors import StoreError, StoreUnavailable
from producer.settings import PRIVATE
from producer.vectors.base import Calibration, Row, SpaceInfo
from producer.vectors.codec import checked, first_version, pack, unpack, unpack_many

SCHEMA_VERSION: Final = 3
PAGE_BYTES: Final = 32768  # 1.08 times the raw vectors on disk; the default of 4 KiB takes twice the raw size
BUSY_TIMEOUT_S: Final = 10  # a put of a chunk takes milliseconds; another writer's is over long before
IDS_PAGE: Final = 500  # ids per statement, below the limit of every SQLite built since 2008 (999)
LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # sqlite3 cannot encode it, and no stored id holds one
MAX_OPENINGS: Final = 3  # tries to open a file that is replaced at that very moment
PASSING: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE))
_Identity = tuple[int, int] | None  # device and inode of a file; None: there is none
_INSERT: Final = """
INSERT INTO vectors (space, id, digest, size, mtime_ns, stored, vector) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (space, id)
"""
_UPSERT: Final = f"""{_INSERT} DO UPDATE SET digest = excluded.digest, size = excluded.size,
    mtime_ns = excluded.mtime_ns, stored = excluded.stored, vector = excluded.vector
"""
_INSERT_IF_ABSENT: Final = f"{_INSERT} DO NOTHING"
_UPDATE_IF_SEEN: Final = """
UPDATE vectors SET digest = ?, size = ?, mtime_ns = ?, stored = ?, vector = ?
WHERE space = ? AND id = ? AND digest = ? AND size = ? AND mtime_ns = ?
"""


class _Opened(NamedTuple):
    """A connection, and the files that it has open.

    Attributes:
        db: the connection; of an empty database in memory where there is no file.
        path: of the file, symbolic links resolved; SQLite's two other files lie beside it.
        identities: of the file, its -wal and its -shm.
    """

    db: sqlite3.Connection
    path: str
    identities: tuple[_Identity, _Identity, _Identity]


class SQLiteStore:
    """Keeps the contract of VectorStore in a file. Several processes and threads may use it at once.

    A chunk that was stored survives the death of the process; of a power cut it survives all but
    the last moments, and the file stays whole (WAL with synchronous=NORMAL). What is lost that way
    is embedded again by the next `index`, which reads this file.

    Every operation works on the file that the path means at that moment. A file that was replaced is opened anew. One
    that was deleted reads as empty, and the next write creates it. If its folder is gone, or lies on another device
    than before, its disk is not mounted: that is StoreUnavailable, and no new file is made there.
    """

    def __init__(self, path: str, mode: str = PRIVATE) -> None:
        """Open or create the file, and its folder; `mode` are the permissions of a new file, in octal digits."""
        self._path, self._mode = Path(path), int(mode, 8)
        self._opened: dict[threading.Thread, _Opened] = {}
        self._lock = threading.Lock()
        self._busy = 0  # operations in progress
        self._device: int | None = None  # of the folder, when the file was last seen
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of the store {self._path} cannot be made: {error}") from error
        with self._use(create=True):
            pass

    def put(
        self,
        space: Space,
        rows: Sequence[Row],
        vectors: Vectors,
        provenance: Mapping[str, str] | None = None,
        *,
        seen: Mapping[str, Row] | None = None,
    ) -> None:
        rows, vectors = checked(space, rows, vectors)
        now = time.time()
        with self._writing() as db:
            key = self._make_known(db, space, provenance, now)
            values = [(key, *row, now, raw) for row, raw in zip(rows, pack(vectors), strict=True)]
            if seen is None:
                db.executemany(_UPSERT, values)
            else:
                db.executemany(_INSERT_IF_ABSENT, [value for value in values if value[1] not in seen])
                db.executemany(_UPDATE_IF_SEEN, [(*v[2:], key, *seen[v[1]]) for v in values if v[1] in seen])

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
        with self._use(shared=False) as db:
            space = db.execute("SELECT key, space FROM spaces WHERE id = ?", (space_id,)).fetchone()
            if space is None:
                return
            # the plus keeps SQLite from going by an index over the space, in whose order the rows do not lie
            query = "SELECT vector, id, digest, size, mtime_ns FROM vectors WHERE +space = ? ORDER BY number"
            cursor, dimension = db.execute(query, (space[0],)), Space.from_json(space[1]).dimension
            while found := cursor.fetchmany(chunk):
                rows = [Row._make(values[1:]) for values in found]
                yield rows, unpack_many([values[0] for values in found], dimension)

    def ids(self, space_id: str, chunk: int = 65536, prefix: str = "", after: str = "") -> Iterator[list[str]]:
        query = (
            "SELECT v.id FROM vectors v WHERE v.space = (SELECT key FROM spaces WHERE id = ?) "
            "AND v.id >= ? ORDER BY v.id LIMIT ?"
        )
        first = max(prefix, after + "\0" if after else "")  # the next text there can be
        while True:
            with self._use() as db:
                page = [name for (name,) in db.execute(query, (space_id, first, chunk))]
            within = [name for name in page if name.startswith(prefix)]
            if within:
                yield within
            if len(within) < len(page) or not page:
                return
            first = page[-1] + "\0"

    def count(self, space_id: str) -> int:
        found = self._one("SELECT rows FROM spaces WHERE id = ?", space_id)
        return int(found[0]) if found else 0

    def version(self, space_id: str) -> str:
        found = self._one("SELECT version, changed FROM spaces WHERE id = ?", space_id)
        return f"{found[0]}@{found[1]!r}" if found else ""  # a restored file may count up to the same number again

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
        with self._use() as db:
            found = db.execute(
                "SELECT space, rows, created, changed, provenance, calibration FROM spaces ORDER BY key"
            ).fetchall()
        infos = []
        for text, rows, created, changed, provenance, measured in found:
            space, about = Space.from_json(text), json.loads(provenance)
            calibration = Calibration.from_json(measured) if measured else None
            size = rows * space.dimension * 4
            infos.append(SpaceInfo(space, rows, size, created, changed, about, calibration))
        return infos

    def current(self) -> str | None:
        found = self._one("SELECT value FROM facts WHERE name = 'current'")
        return str(found[0]) if found else None

    def use(self, space_id: str) -> None:
        with self._writing() as db:
            self._require_space(db, space_id)
            db.execute("INSERT OR REPLACE INTO facts VALUES ('current', ?)", (space_id,))

    def calibrate(self, space_id: str, calibration: Calibration | None) -> None:
        with self._writing() as db:
            self._require_space(db, space_id)
            text = calibration.to_json() if calibration else None
            db.execute("UPDATE spaces SET calibration = ? WHERE id = ?", (text, space_id))

    def drop(self, space_id: str) -> int:
        with self._writing() as db:
            gone = db.execute(
                "DELETE FROM vectors WHERE space = (SELECT key FROM spaces WHERE id = ?)", (space_id,)
            ).rowcount
            db.execute("DELETE FROM spaces WHERE id = ?", (space_id,))
            db.execute("DELETE FROM facts WHERE name = 'current' AND value = ?", (space_id,))
            db.execute("INSERT OR IGNORE INTO facts SELECT 'current', id FROM spaces ORDER BY key LIMIT 1")
        return gone

    def check(self) -> str:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('probe', ?)", (str(time.time()),))
            db.execute("DELETE FROM facts WHERE name = 'probe'")
            db.execute("INSERT OR IGNORE INTO facts VALUES ('id', ?)", (secrets.token_hex(8),))
            return str(db.execute("SELECT value FROM facts WHERE name = 'id'").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._close_all()

    @contextmanager
    def _use(self, *, create: bool = False, shared: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection to the file that the path means now.

        Args:
            create: make the file if there is none.
            shared: this thread's connection; SQLite's own locks then order the threads as they order processes.
                Otherwise a new one, for as long as the block lasts.
        """
        with self._translated():
            with self._lock:
                opened = self._of_this_thread(create) if shared else self._open(create)
                self._busy += 1
            try:
                yield opened.db
            finally:
                with self._lock:
                    self._busy -= 1
                if not shared:
                    opened.db.close()

    def _of_this_thread(self, create: bool) -> _Opened:
        opened = self._opened.get(threading.current_thread())
        if opened is not None:
            now = self._identities(opened.path)
            if now == opened.identities and not (create and now[0] is None):
                return opened
            if now[0] is not None and now[0] == opened.identities[0]:  # the same file, without its -wal or -shm
                if self._busy:
                    raise StoreUnavailable(f"{opened.path}-wal or -shm was deleted while it was in use")
                self._close_all()  # the last connection that closes moves what the deleted -wal held into the file
            else:
                self._opened.pop(threading.current_thread()).db.close()
        for thread in [thread for thread in self._opened if not thread.is_alive()]:
            self._opened.pop(thread).db.close()  # a backend's threads come and go
        opened = self._opened[threading.current_thread()] = self._open(create)
        return opened

    def _open(self, create: bool) -> _Opened:
        """Open the file, or an empty database in memory if there is none and `create` is not set."""
        for _ in range(MAX_OPENINGS):
            path = os.path.realpath(self._path)
            before = self._identities(path)
            if before[0] is None:
                self._require_folder(path)
                if not create:
                    return _Opened(self._connect(":memory:"), path, before)
                self._create_file(path)
                before = self._identities(path)
            # without mode=rw it would create a file that was deleted just now, for everybody to read
            db = self._connect(f"{Path(path).as_uri()}?mode=rw")
            try:
                opened = _Opened(db, path, self._identities(path))
                if opened.identities[0] == before[0]:
                    is_wal = db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
                    if is_wal and None in opened.identities:  # another connection of this process has a deleted one
                        raise StoreUnavailable(f"{path}-wal or -shm was deleted while it was in use")
                    self._device = os.stat(os.path.dirname(path)).st_dev
                    return opened
            except BaseException:
                db.close()
                raise
            db.close()
        raise StoreUnavailable(f"the store {self._path} is being replaced by another file")

    def _identities(self, path: str) -> tuple[_Identity, _Identity, _Identity]:
        """Of the file that the store's path means now, and of the two that belong to the one at `path`."""
        return self._identity(self._path), self._identity(f"{path}-wal"), self._identity(f"{path}-shm")

    def _identity(self, path: str | Path) -> _Identity:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreUnavailable(f"the store {self._path} cannot be reached: {error}") from error
        return status.st_dev, status.st_ino

    def _require_folder(self, path: str) -> None:
        """Raise StoreUnavailable where the file is gone because its folder is, or because a disk was unmounted."""
        folder = os.path.dirname(path)
        try:
            device = os.stat(folder).st_dev
        except OSError as error:
            raise StoreUnavailable(f"the folder of the store {self._path} is gone: is its disk mounted?") from error
        if self._device not in (None, device):
            way_out = "mount it, or restart to begin a new store there"
            raise StoreUnavailable(f"{folder} is on another disk than the store {self._path} was: {way_out}")

    def _create_file(self, path: str) -> None:
        """Create the file with its permissions; SQLite gives its -wal and -shm the same.

        A file that exists is not opened here: closing it would release SQLite's locks on it in this process.
        """
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:  # another process was faster
            return
        except OSError as error:
            kind = StoreUnavailable if error.errno in PASSING else StoreError
            raise kind(f"the store {self._path} cannot be created: {error}; check path, owner and mode") from error
        try:
            if os.name == "posix":
                os.fchmod(descriptor, self._mode)  # whatever the umask
        finally:
            os.close(descriptor)

    def _connect(self, database: str) -> sqlite3.Connection:
        """A connection to a database of our schema; SQLite has all its files open afterwards."""
        db = sqlite3.connect(
            database, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=database != ":memory:"
        )
        try:
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA synchronous = NORMAL")
            self._prepare(db)
            db.execute("SELECT count(*) FROM facts").fetchone()
        except BaseException:
            db.close()
            raise
        return db

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
        with _transaction(db):
            version = db.execute("PRAGMA user_version").fetchone()[0]  # another process may have been here first
            if version < SCHEMA_VERSION:
                for script in _scripts(version):
                    text = (files("producer.vectors") / "sql" / f"{script}.sql").read_text("utf-8")
                    for statement in text.split("\n\n"):  # not executescript: it commits first
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _close_all(self) -> None:
        for opened in self._opened.values():
            opened.db.close()
        self._opened.clear()

    def _one(self, query: str, *parameters: str) -> tuple[Any, ...] | None:
        """The first row of a query; None without one."""
        with self._use() as db:
            found: tuple[Any, ...] | None = db.execute(query, parameters).fetchone()
        return found

    def _require_space(self, db: sqlite3.Connection, space_id: str) -> None:
        known = [name for (name,) in db.execute("SELECT id FROM spaces ORDER BY key")]
        if space_id not in known:
            raise StoreError(f"{self._path} has no space {space_id!r}; it has: {', '.join(known) or 'none'}")

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
            with self._use() as db:
                found = db.execute(
                    f"SELECT {columns} FROM vectors v JOIN spaces s ON s.key = v.space "
                    f"WHERE s.id = ? AND {by} IN ({_marks(part)})",
                    (space_id, *part),
                ).fetchall()
            yield from found

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._use(create=True) as db, _transaction(db):
            yield db

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate SQLite's errors: StoreUnavailable for what may pass, StoreError for what a person must repair."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if any(word in text for word in ("locked", "busy", "disk is full", "full", "disk I/O", "locking protocol")):
                raise StoreUnavailable(f"the store {self._path} cannot be written for now: {text}") from error
            raise StoreError(f"the store {self._path} cannot be used: {text}; check path, owner and mode") from error
        except sqlite3.DatabaseError as error:
            way_out = "restore it from a copy, or move it elsewhere and index again"
            raise StoreError(f"{self._path} is damaged or is no SQLite file ({error}): {way_out}") from error


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, also when the process dies in the middle."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _scripts(version: int) -> list[str]:
    """The files that bring a database of this version up to date; 0: a new one."""
    if not version:
        return ["tables", "triggers"]
    from_version_1 = ["from_version_1", "triggers"] if version < 2 else []
    return [*from_version_1, "from_version_2"]


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))
