"""What only a file can suffer: kills, foreign contents, damage, locks; and the documented way to read it."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from producer.embedding import Space
from producer.errors import StoreError, StoreUnavailable
from producer.vectors import sqlite as sqlite_module
from producer.vectors.base import Row
from producer.vectors.sqlite import SQLiteStore
from tests.support.filled_store import CALIBRATION
from tests.support.project import PROJECT

SPACE = Space("tiny", "0" * 32, "gelu", "8x8", 4)


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, SPACE.dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows(count: int, prefix: str = "p") -> list[Row]:
    return [Row(f"{prefix}{index:05}", f"{prefix}{index}", 1, 1) for index in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "vectors.db"


@pytest.fixture
def store(path):
    store = SQLiteStore(str(path))
    yield store
    store.close()


WRITER = """
import sys, numpy as np
from producer.embedding import Space
from producer.vectors.base import Row
from producer.vectors.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
space = Space("tiny", "0" * 32, "gelu", "8x8", 4)
vectors = np.tile(np.array([1, 0, 0, 0], np.float32), (500, 1))
number = 0
while True:
    store.put(space, [Row(f"{number:06}-{i:03}", "d", 1, 1) for i in range(500)], vectors)
    print(number, flush=True)
    number += 1
"""


def test_a_kill_in_the_middle_leaves_whole_chunks(path):
    """kill -9 while it writes, several times: every chunk is there whole or not at all; what was reported is there."""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=PROJECT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        reported = [int(writer.stdout.readline()) for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        reported += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        store = SQLiteStore(str(path))
        ids = [name for names in store.ids(SPACE.id) for name in names]
        counts = dict.fromkeys({name[:6] for name in ids}, 0)
        for name in ids:
            counts[name[:6]] += 1
        assert set(counts.values()) == {500}
        assert {f"{number:06}" for number in reported} <= set(counts)
        assert store.count(SPACE.id) == len(ids)
        store.close()


def test_a_file_of_another_program_is_not_touched(path):
    """Its tables are named, and nothing is added to it."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE songs (title TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"another program.*songs"):
        SQLiteStore(str(path))
    assert path.read_bytes() == before


def test_a_file_of_a_newer_version_is_not_touched(store, path):
    """An old program must not write what a new one reads."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"PRAGMA user_version = {sqlite_module.SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        SQLiteStore(str(path))


def test_a_file_that_is_no_database_is_named(path):
    """And left as it is."""
    path.parent.mkdir()
    path.write_bytes(b"these are not the vectors you are looking for" * 100)
    with pytest.raises(StoreError, match=r"vectors\.db is damaged or is no SQLite file"):
        SQLiteStore(str(path))
    assert path.read_bytes().startswith(b"these are not")


def test_damage_inside_is_an_error_and_not_a_vector(path):
    """A vector of the wrong length is never handed out."""
    store = SQLiteStore(str(path))
    store.put(SPACE, rows(3), unit(3))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE vectors SET vector = x'00' WHERE id = 'p00001'")
    db.close()
    with pytest.raises(StoreError, match="1 bytes, its space says 16"):
        store.get(SPACE.id, ["p00001"])
    with pytest.raises(StoreError, match="do not all have the 4 numbers"):
        list(store.read(SPACE.id))
    store.close()


def test_a_locked_file_is_a_passing_trouble(store, path, monkeypatch):
    """Another program holds it: try again, nothing is lost."""
    store.put(SPACE, rows(1), unit(1))
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.2)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = SQLiteStore(str(path))
    with pytest.raises(StoreUnavailable, match="locked"):
        waiting.put(SPACE, rows(1, "q"), unit(1))
    other.execute("ROLLBACK")
    other.close()
    waiting.put(SPACE, rows(1, "q"), unit(1))
    assert waiting.count(SPACE.id) == 2
    waiting.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="folder of the store"):
        SQLiteStore(str(tmp_path / "file" / "x.db"))


def test_a_chunk_that_fails_leaves_nothing(store, monkeypatch):
    """All or nothing: also when the last row of a chunk is the one that fails."""
    broken = [*rows(4), Row("p9", None, 1, 1)]  # NOT NULL stops it inside the transaction
    with pytest.raises(StoreError):
        store.put(SPACE, broken, unit(5))
    assert store.count(SPACE.id) == 0
    assert list(store.read(SPACE.id)) == []


VERSION_1 = """
CREATE TABLE spaces (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, space TEXT NOT NULL,
    created REAL NOT NULL, provenance TEXT NOT NULL, rows INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE vectors (
    number INTEGER PRIMARY KEY, space INTEGER NOT NULL REFERENCES spaces(key), id TEXT NOT NULL,
    digest TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, stored REAL NOT NULL,
    vector BLOB NOT NULL
);
CREATE UNIQUE INDEX vectors_by_id ON vectors (space, id);
CREATE INDEX vectors_by_content ON vectors (space, digest);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TRIGGER one_more AFTER INSERT ON vectors
    BEGIN UPDATE spaces SET rows = rows + 1 WHERE key = NEW.space; END;
CREATE TRIGGER one_less AFTER DELETE ON vectors
    BEGIN UPDATE spaces SET rows = rows - 1 WHERE key = OLD.space; END;
PRAGMA user_version = 1;
"""
OPENER = "import sys; from producer.vectors import open_store; open_store(sys.argv[1]).check()"


def test_a_file_of_version_1_is_brought_up_to_date(path):
    """By several programs at once: every row stays, and counts and versions go on from there."""
    path.parent.mkdir()
    vectors = unit(3)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO spaces VALUES (1, ?, ?, 5.0, '{}', 0)", (SPACE.id, SPACE.to_json()))
        db.execute("INSERT INTO facts VALUES ('current', ?)", (SPACE.id,))
        for row, vector in zip(rows(3), vectors, strict=True):
            db.execute("INSERT INTO vectors VALUES (NULL, 1, ?, ?, ?, ?, 5.0, ?)", (*row, vector.tobytes()))
    db.close()
    openers = [subprocess.Popen([sys.executable, "-c", OPENER, f"sqlite:{path}"], cwd=PROJECT) for _ in range(2)]
    assert [opener.wait() for opener in openers] == [0, 0]
    store = SQLiteStore(str(path))
    assert store.current() == SPACE.id
    assert store.get(SPACE.id, ["p00001"])["p00001"].tobytes() == vectors[1].tobytes()
    assert (store.spaces()[0].created, store.spaces()[0].changed) == (5.0, 5.0)
    before = store.version(SPACE.id)
    store.put(SPACE, rows(4), unit(4))
    assert store.count(SPACE.id) == 4
    assert store.version(SPACE.id) != before
    store.close()


@pytest.mark.parametrize("name", ["store-v0.1.db", "store-schema-2.db"])
def test_a_kept_file_of_an_earlier_schema_takes_a_calibration(path, name):
    """A file of version 0.1, and one of the schema before this one: rows stay, and it is not calibrated yet."""
    path.parent.mkdir()
    shutil.copy(PROJECT / "tests" / "support" / "fixtures" / name, path)
    with closing(SQLiteStore(str(path))) as store:
        (before,) = store.spaces()
        assert (before.space.model, before.count, before.calibration) == ("tiny", 3, None)
        store.calibrate(before.space.id, CALIBRATION)
        assert store.get(before.space.id, ["b"])["b"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    with closing(SQLiteStore(str(path))) as store:
        assert store.spaces()[0].calibration == CALIBRATION
        assert store.version(before.space.id)


def test_a_row_changed_by_hand_is_noticed(store, path):
    """Triggers count, not the program: whoever deletes with another tool changes count and version, too."""
    store.put(SPACE, rows(3), unit(3))
    before = store.version(SPACE.id)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM vectors WHERE id = 'p00001'")
    db.close()
    assert store.count(SPACE.id) == 2
    assert store.version(SPACE.id) != before


def test_read_sees_one_moment(store, path):
    """Rows that go and come back while somebody reads are neither missed nor seen twice."""
    store.put(SPACE, rows(1000), unit(1000))
    reading = store.read(SPACE.id, 100)
    seen = [row.id for row in next(reading)[0]]
    other = SQLiteStore(str(path))
    other.delete(SPACE.id, [row.id for row in rows(1000)])
    other.put(SPACE, rows(1000), unit(1000, 1))
    seen += [row.id for some, _ in reading for row in some]
    assert seen == [row.id for row in rows(1000)]
    other.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no peak of memory in this way")
def test_reading_takes_the_memory_of_a_chunk(path):
    """A program that walks over 40 MB of vectors grows by a few."""
    space = Space("wide", "0" * 32, "gelu", "8x8", 512)
    store = SQLiteStore(str(path))
    vectors = np.zeros((5000, 512), np.float32)
    vectors[:, 0] = 1
    for start in range(0, 20000, 5000):
        store.put(space, [Row(f"{n:06}", f"{n}", 1, 1) for n in range(start, start + 5000)], vectors)
    store.close()
    code = (
        "import resource, sys; from producer.vectors import open_store\n"
        "store = open_store(sys.argv[1]); seen = 0\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "next(store.read(sys.argv[2], 1000)); before = peak()\n"
        "for rows, matrix in store.read(sys.argv[2], 1000): seen += len(matrix)\n"
        "print(seen, peak() - before)"
    )
    command = [sys.executable, "-c", code, f"sqlite:{path}", space.id]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    seen, grown_mb = map(int, done.stdout.split())
    assert seen == 20000
    assert grown_mb < 20


def test_pages_keep_the_file_near_the_raw_size(path):
    """The reason for 32 KiB pages: a file of at most 1.25 times the vectors."""
    space = Space("wide", "0" * 32, "gelu", "8x8", 512)
    store = SQLiteStore(str(path))
    vectors = np.random.default_rng(0).normal(size=(2000, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store.put(space, rows(2000), vectors)
    store.close()
    assert os.path.getsize(path) < 1.25 * vectors.nbytes


def test_the_documented_reader_reads(store, path):
    """docs/store.md promises one line of NumPy: it is run as it stands there."""
    vectors = unit(7)
    store.put(SPACE, rows(7), vectors)
    text = (PROJECT / "docs" / "store.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    line = next(block for block in blocks if "np.frombuffer" in block)
    found: dict = {}
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        exec(line.replace("data/embeddings.db", "vectors.db"), found)
    finally:
        os.chdir(before)
    assert found["ids"] == [row.id for row in rows(7)]
    assert np.array_equal(found["vectors"], vectors)
    assert found["vectors"].dtype == np.float32


def test_many_rows_are_written_and_scanned_quickly(store):
    """Not a benchmark: a guard against a missing index or a commit per row."""
    count = 5000
    began = time.perf_counter()
    for start in range(0, count, 250):
        store.put(SPACE, [Row(f"{n:06}", f"{n}", 1, 1) for n in range(start, start + 250)], unit(250))
    store.rows(SPACE.id, [f"{n:06}" for n in range(count)])
    store.by_content(SPACE.id, [f"{n}" for n in range(count)])
    assert sum(len(ids) for ids, _ in store.read(SPACE.id, 500)) == count
    assert time.perf_counter() - began < 20


def test_a_thread_that_ended_leaves_no_connection(tmp_path):
    """A backend's threads come and go; its descriptors must not run out."""
    store = SQLiteStore(tmp_path / "v.db")
    for _ in range(20):
        thread = threading.Thread(target=store.spaces)
        thread.start()
        thread.join()
    assert len(store._opened) <= 3
    store.close()


def files_of(path):
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def take_away(path):
    """Delete the file with its -wal and -shm, as `rm data/embeddings.db*` does."""
    for file in files_of(path):
        file.unlink(missing_ok=True)


in_use = pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no file that is open")


@in_use
def test_a_deleted_file_reads_as_empty_and_is_made_again_by_the_next_write(store, path):
    """A store that reads alone makes no file; nothing is written to one that has no name any more."""
    store.put(SPACE, rows(3), unit(3))
    reader = SQLiteStore(str(path))
    assert reader.count(SPACE.id) == 3
    take_away(path)
    for one in (store, reader):
        assert one.rows(SPACE.id, ["p00000"]) == {}
        assert (one.count(SPACE.id), one.version(SPACE.id), one.current(), one.spaces()) == (0, "", None, [])
        assert list(one.read(SPACE.id)) == list(one.ids(SPACE.id)) == []
    assert not path.exists()
    store.put(SPACE, rows(2, "q"), unit(2))
    assert reader.rows(SPACE.id, ["p00000", "q00001"]).keys() == {"q00001"}
    reader.close()
    with closing(SQLiteStore(str(path))) as other:
        assert [name for names in other.ids(SPACE.id) for name in names] == ["q00000", "q00001"]


@in_use
@pytest.mark.parametrize("kept", ["the old one", "none"])
def test_a_restored_backup_is_what_is_read_and_written_from_then_on(store, path, kept):
    """By threads that had the old file open, too; its version differs from the one that it replaces."""
    store.put(SPACE, rows(1), unit(1))
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM INTO ?", (str(path.with_name("backup")),))
    store.put(SPACE, rows(1, "lost"), unit(1))
    before = store.version(SPACE.id)
    seen, step, done = [], threading.Event(), threading.Event()

    def follow():
        seen.append(store.count(SPACE.id))
        done.set()
        step.wait()
        seen.append(store.count(SPACE.id))

    thread = threading.Thread(target=follow)
    thread.start()
    done.wait()
    if kept == "none":
        take_away(path)
    for file in files_of(path)[1:]:
        file.unlink(missing_ok=True)
    path.with_name("backup").rename(path)
    step.set()
    thread.join()
    assert seen == [2, 1]
    assert store.count(SPACE.id) == 1
    store.put(SPACE, rows(1, "new"), unit(1))
    assert store.version(SPACE.id) != before, "as many changes as before, and other rows"
    with closing(SQLiteStore(str(path))) as other:
        assert [name for names in other.ids(SPACE.id) for name in names] == ["new00000", "p00000"]


@in_use
def test_a_deleted_wal_loses_nothing_that_was_written(store, path):
    """SQLite would go on in a file without a name; whoever opens the store next would not find it."""
    store.put(SPACE, rows(3), unit(3))
    thread = threading.Thread(target=store.count, args=(SPACE.id,))
    thread.start()
    thread.join()
    for file in files_of(path)[1:]:
        file.unlink()
    store.put(SPACE, rows(2, "q"), unit(2))
    with closing(SQLiteStore(str(path))) as other:
        assert other.count(SPACE.id) == 5
        other.put(SPACE, rows(1, "r"), unit(1))
    assert store.count(SPACE.id) == 6


@in_use
def test_two_stores_of_one_process_recover_from_a_deleted_wal(store, path):
    """SQLite shares its -shm between them: the first to notice waits until the other has closed it, too."""
    other = SQLiteStore(str(path))
    store.put(SPACE, rows(3), unit(3))
    other.put(SPACE, rows(2, "q"), unit(2))
    for file in files_of(path)[1:]:
        file.unlink()
    with pytest.raises(StoreUnavailable):
        store.count(SPACE.id)
    assert (other.count(SPACE.id), store.count(SPACE.id)) == (5, 5)
    other.close()


@in_use
def test_a_wal_that_goes_while_somebody_reads_is_an_outage_until_they_end(store, path):
    """Two kinds of -wal on one file would damage it."""
    store.put(SPACE, rows(3), unit(3))
    reading = store.read(SPACE.id, 1)
    next(reading)
    files_of(path)[1].unlink()
    with pytest.raises(StoreUnavailable, match="deleted while it was in use"):
        store.count(SPACE.id)
    assert len(list(reading)) == 2
    assert store.count(SPACE.id) == 3


@in_use
def test_a_folder_that_is_gone_is_an_outage_and_no_new_store(store, path):
    """Moved away, as by an unmount: neither reads as empty nor is made again, and works when it is back."""
    store.put(SPACE, rows(3), unit(3))
    path.parent.rename(path.parent.with_name("away"))
    for call in (lambda: store.count(SPACE.id), store.check, lambda: store.put(SPACE, rows(1), unit(1))):
        with pytest.raises(StoreUnavailable, match="is its disk mounted"):
            call()
    assert not path.parent.exists()
    path.parent.with_name("away").rename(path.parent)
    assert store.count(SPACE.id) == 3


@in_use
def test_an_unmounted_disk_is_an_outage_though_its_folder_is_there(store, path, monkeypatch):
    """The mount point is an empty folder of another device."""
    store.put(SPACE, rows(3), unit(3))
    take_away(path)
    monkeypatch.setattr(store, "_device", store._device + 1)
    for call in (lambda: store.count(SPACE.id), store.check):
        with pytest.raises(StoreUnavailable, match="on another disk"):
            call()
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
@pytest.mark.parametrize("mode", ["0600", "0660"])
def test_a_new_file_has_the_permissions_of_the_setting(tmp_path, mode):
    """Its -wal and -shm as well, whatever the umask; a file that is there keeps its own."""
    path, before = tmp_path / "v.db", os.umask(0o077 if mode == "0660" else 0)
    try:
        with closing(SQLiteStore(str(path), mode)) as store:
            store.put(SPACE, rows(1), unit(1))
            assert {oct(file.stat().st_mode & 0o777) for file in files_of(path)} == {oct(int(mode, 8))}
        path.chmod(0o644)
        with closing(SQLiteStore(str(path), mode)) as store:
            store.put(SPACE, rows(1), unit(1))
            assert {oct(file.stat().st_mode & 0o777) for file in files_of(path)} == {"0o644"}
    finally:
        os.umask(before)
