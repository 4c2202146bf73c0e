"""Full disk, locked file, killed writer under the store; afterwards the invariant of chaos_installation.py holds."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.support.scenario_table import scenario
from tests.support.wait import wait_for


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB; SQLite's write-ahead log alone may take 32 MB before it is checkpointed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs Linux and root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.chaos
@scenario(
    "the disk under the SQLite store is full for 10 s",
    "batches are released and retried; no poster fails; the file stays intact",
)
def test_a_full_disk(new_installation, small_disk, measured):
    """ENOSPC strikes in the middle of a chunk's transaction."""
    installation = new_installation(store=f"sqlite:{small_disk / 'vectors.db'}")
    names = installation.draw(160)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 30)
    ballast = _fill(small_disk)
    wait_for(lambda: "cannot be written for now" in worker.log_text(), "the worker's log line")
    time.sleep(10)
    assert not running.job.progress().at_rest
    ballast.unlink()
    freed = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, freed)
    installation.check(running.finish()["job"], names)
    _assert_intact(small_disk / "vectors.db")
    measured(recovered, installation.embedded() - 160)


@pytest.mark.chaos
@scenario(
    "the SQLite store's file is deleted under a running worker, before an `index` and during one",
    "nothing in it counts as unchanged, and all that is counted afterwards is in the new file",
)
def test_a_deleted_store(new_installation, measured):
    """As `rm data/embeddings.db*` does; what was counted before the deletion is found by the next `index`."""
    installation = new_installation()
    names = installation.draw(80)
    installation.worker("w").wait_until_ready()
    installation.check(installation.index("--batch", "20")["job"], names)
    _delete_store(installation)
    counts = installation.index("--batch", "20")
    assert (counts["embedded"], counts["unchanged"]) == (80, 0)
    installation.check(counts["job"], names)

    for name in names:
        installation.paint(name)
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 30)
    counted = running.job.progress().settled
    _delete_store(installation)
    deleted = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, deleted)
    assert running.finish()["embedded"] == 80
    counts = installation.index()
    assert counts["unchanged"] >= 80 - counted - 20, "at most one batch was counted while the file was deleted"
    installation.check(counts["job"], names)
    _assert_intact(installation.folder / "vectors.db")
    measured(recovered)


@pytest.mark.chaos
@scenario(
    "another program locks the SQLite file for 25 s",
    "the same; 25 s is longer than SQLite's busy timeout",
)
def test_a_locked_store(new_installation, measured):
    """As a backup does, or a person with a shell and an open transaction."""
    installation = new_installation()
    names = installation.draw(120)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 10)
    other = sqlite3.connect(installation.folder / "vectors.db", isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(25)
    assert "locked" in worker.log_text()
    assert not running.job.progress().at_rest
    other.execute("ROLLBACK")
    other.close()
    free = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, free)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 120)


@scenario(
    "`kill -9` in the middle of a write, with some of the rows inserted",
    "the chunk is stored completely or not at all; the file stays intact",
)
def test_a_kill_during_a_write(shared_installation, measured):
    """The process is killed inside SQLite's transaction, between two rows."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    names, before = installation.draw(60, "write/"), installation.embedded()
    running = installation.index_in_background("write", batch=20)
    installation.wait_for_some(running.job, 10)
    old = worker.child()
    installation.arm("kill-in-write")
    wait_for(lambda: not installation.armed("kill-in-write"), "the write")
    killed = time.monotonic()
    recovered = installation.wait_for_pass(after=killed)
    installation.check(running.finish()["job"], names)
    installation.wait_for_new_child(worker, old)
    _assert_intact(installation.folder / "vectors.db")
    twice = installation.embedded() - before - 60
    assert 1 <= twice <= 24, "the chunk in the transaction was lost with it, and embedded again"
    measured(recovered, twice)


def _delete_store(installation):
    for file in installation.folder.glob("vectors.db*"):
        file.unlink()


def _fill(folder):
    """Fill the file system; returns the file to delete afterwards."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def _assert_intact(path):
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counts = connection.execute(
        "SELECT s.rows, (SELECT count(*) FROM vectors v WHERE v.space = s.key) FROM spaces s"
    ).fetchall()
    connection.close()
    assert all(kept == there for kept, there in counts), counts
