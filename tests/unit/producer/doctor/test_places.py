"""The posters root as the worker sees it, and the room on the disk."""

import json
import shutil
import socket
from types import SimpleNamespace

import pytest

from producer.doctor import places
from producer.doctor.finding import Status
from producer.queue.workers import READY, Announcement


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    return tmp_path


def seen(folder, names, **fields):
    """The finding where a worker on another machine has found `names` in its root."""
    about = {"host": "gpu1", "root": "/posters", "root_names": names if isinstance(names, str) else json.dumps(names)}
    return places.root(folder, [Announcement("w@gpu1/7/aa", READY, about | fields)])


def test_a_folder_that_the_worker_sees_empty_is_found(folder):
    """A mount point without its disk, on the worker's machine; also under the same path as here."""
    for root in ("/posters", str(folder.resolve())):
        found = seen(folder, [], root=root)
        assert found.status is Status.MISCONFIGURED
        assert "w@gpu1 on gpu1 reads" in found.text
        assert "is empty there" in found.text
        assert "mount the same folder on gpu1" in found.way_out


def test_a_worker_with_other_posters_is_found(folder):
    """None of the names that it has found is here."""
    found = seen(folder, ["x.jpg", "y.jpg"], root=str(folder.resolve()))
    assert found.status is Status.MISCONFIGURED
    assert "which holds x.jpg, y.jpg, and not what is here" in found.text


def test_a_worker_with_the_same_posters_is_right(folder):
    """One name in common says so: others may have been deleted since then. An older worker says nothing."""
    assert seen(folder, ["gone.jpg", "a.jpg"]).ok
    assert seen(folder, "").ok
    assert seen(folder, ["gone.jpg"], unloaded_since="1.0").ok, "it looks again once it has work"
    (folder / "a.jpg").unlink()
    assert seen(folder, []).ok, "both are empty"


def test_a_folder_that_is_none_is_found(tmp_path):
    """With its whole path."""
    found = places.root(tmp_path / "x", [])
    assert found.status is Status.MISCONFIGURED
    assert str(tmp_path / "x") in found.text
    assert "POSTERS_ROOT" in found.way_out
    assert socket.gethostname() not in found.text


@pytest.mark.parametrize(("missing", "status"), [(1, Status.WARNING), (0, Status.OK)])
def test_little_room_for_the_store_is_a_warning(tmp_path, monkeypatch, missing, status):
    """A full disk stops the worker."""
    free = places.LITTLE_BYTES - missing
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    producer = SimpleNamespace(settings=SimpleNamespace(store=f"sqlite:{tmp_path}/v.db"))
    found = places.disk(producer)
    assert found.status is status
    assert str(tmp_path) in found.text


def test_a_disk_that_is_not_there_is_the_stores_matter(tmp_path):
    """And the disk of a store in Redis is not seen from here."""
    for store in (f"sqlite:{tmp_path}/no/v.db", "redis://h/1"):
        assert places.disk(SimpleNamespace(settings=SimpleNamespace(store=store))).ok
