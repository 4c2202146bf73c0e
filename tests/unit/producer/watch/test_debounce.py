"""Files that are being written are left alone until they rest."""

import os

import pytest

from producer.watch import debounce
from producer.watch.debounce import Debouncer, Settled


@pytest.fixture
def debouncer(tmp_path, clock):
    return Debouncer(tmp_path, 2.0, clock)


def test_a_file_is_released_when_it_has_settled(debouncer, clock, tmp_path):
    """Not a moment before, and once."""
    (tmp_path / "a.jpg").write_bytes(b"whole")
    debouncer.add("a.jpg")
    clock.now = 1.9
    assert not debouncer.poll()
    clock.now = 2.0
    assert debouncer.poll() == Settled(files=["a.jpg"])
    assert not debouncer.poll()
    assert len(debouncer) == 0


def test_a_file_that_grows_waits(debouncer, clock, tmp_path):
    """As long as it grows, however often it is looked at; also when only its time changes."""
    path = tmp_path / "a.jpg"
    for size in range(1, 8):
        path.write_bytes(b"x" * size)
        debouncer.add("a.jpg") if size == 1 else None
        clock.now += 1.5
        assert not debouncer.poll()
    os.utime(path, ns=(5, 5))
    clock.now += 1.9
    assert not debouncer.poll()
    clock.now += 1.9
    assert not debouncer.poll()
    clock.now += 0.1
    assert debouncer.poll() == Settled(files=["a.jpg"])


def test_a_file_that_changes_again_waits_again(debouncer, clock, tmp_path):
    """An event is a sign of life, even if size and time look the same."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    debouncer.add("a.jpg")
    clock.now = 1.5
    debouncer.add("a.jpg")
    clock.now = 3.0
    assert not debouncer.poll()
    clock.now = 3.5
    assert debouncer.poll().files == ["a.jpg"]


def test_a_file_that_is_replaced_by_renaming_rests_from_then(debouncer, clock, tmp_path):
    """As editors and download programs do it."""
    (tmp_path / "a.jpg").write_bytes(b"old")
    debouncer.add("a.jpg")
    clock.now = 1.9
    (tmp_path / ".part").write_bytes(b"new!")
    os.replace(tmp_path / ".part", tmp_path / "a.jpg")
    clock.now = 2.5
    assert not debouncer.poll()
    clock.now = 4.5
    assert debouncer.poll().files == ["a.jpg"]


def test_what_is_gone_and_stays_so_is_reported_as_gone(debouncer, clock, tmp_path):
    """A file that is only away while it is replaced is not."""
    (tmp_path / "back.jpg").write_bytes(b"x")
    for name in ("gone.jpg", "back.jpg"):
        debouncer.add(name)
    (tmp_path / "back.jpg").unlink()
    clock.now = 1.0
    assert not debouncer.poll()
    (tmp_path / "back.jpg").write_bytes(b"y")
    clock.now = 2.0
    assert debouncer.poll() == Settled(gone=["gone.jpg"])
    clock.now = 4.0
    assert debouncer.poll() == Settled(files=["back.jpg"])


def test_only_new_folders_are_looked_into(debouncer, clock, tmp_path):
    """What happens in a known one is reported file by file."""
    for name in ("new", "known"):
        (tmp_path / name).mkdir()
    debouncer.add("new", is_new=True)
    debouncer.add("new")  # added again, it is still new
    debouncer.add("known")
    clock.now = 2.0
    assert debouncer.poll() == Settled(folders=["new"])
    assert len(debouncer) == 0


def test_there_is_a_limit(debouncer, monkeypatch):
    """Whoever changes more than that gets a search of everything; what is known may always be added again."""
    monkeypatch.setattr(debounce, "MAX_WAITING_PATHS", 2)
    assert debouncer.add("a")
    assert debouncer.add("b")
    assert not debouncer.add("c")
    assert debouncer.add("a")
