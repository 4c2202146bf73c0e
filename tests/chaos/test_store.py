"""The store's disk is full, its file locked, its writer killed: after each, the invariant."""

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
    """A file system of its own; SQLite's journal alone may take 32 MB before it is folded back."""
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
    "batches are given back and tried again; no poster fails; the file stays whole",
)
def test_a_full_disk(new_installation, small_disk, measured):
    """ENOSPC in the middle of a chunk's transaction."""
    installation = new_installation(store=f"sqlite:{small_disk / 'vectors.db'}")
    names = installation.draw(160)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 30)
    ballast = _fill(small_disk)
    wait_for(lambda: "cannot be written for now" in worker.said(), "the worker's complaint")
    time.sleep(10)
    assert not running.job.progress().at_rest
    ballast.unlink()
    room = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, room)
    installation.check(running.finish()["job"], names)
    _is_whole(small_disk / "vectors.db")
    measured(recovered, installation.embedded() - 160)


@pytest.mark.chaos
@scenario(
    "another program locks the SQLite file for 25 s",
    "the same; longer than SQLite itself is told to wait",
)
def test_a_locked_store(new_installation, measured):
    """A backup, or a person with a shell and an open transaction."""
    installation = new_installation()
    names = installation.draw(120)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 10)
    other = sqlite3.connect(installation.folder / "vectors.db", isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(25)
    assert "locked" in worker.said()
    assert not running.job.progress().at_rest
    other.execute("ROLLBACK")
    other.close()
    free = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, free)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 120)


@scenario(
    "`kill -9` in the middle of a write, rows half inserted",
    "the chunk is in the store whole or not at all; the file stays whole",
)
def test_a_kill_during_a_write(shared_installation, measured):
    """Inside SQLite's transaction, between two rows."""
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
    installation.new_child(worker, old)
    _is_whole(installation.folder / "vectors.db")
    twice = installation.embedded() - before - 60
    assert 1 <= twice <= 24, "the chunk in the transaction was lost with it, and embedded again"
    measured(recovered, twice)


def _fill(folder):
    """Take all the room there is; the file that holds it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def _is_whole(path):
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counts = connection.execute(
        "SELECT s.rows, (SELECT count(*) FROM vectors v WHERE v.space = s.key) FROM spaces s"
    ).fetchall()
    connection.close()
    assert all(kept == there for kept, there in counts), counts
