"""Files that are being written are left alone until they rest."""

import os

import pytest

from producer.watch import debounce
from producer.watch.debounce import Debouncer, Settled


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held(tmp_path, clock):
    return Debouncer(tmp_path, 2.0, clock)


def test_a_file_is_let_go_when_it_has_rested(held, clock, tmp_path):
    """Not a moment before, and once."""
    (tmp_path / "a.jpg").write_bytes(b"whole")
    held.add("a.jpg")
    clock.now = 1.9
    assert not held.poll()
    clock.now = 2.0
    assert held.poll() == Settled(files=["a.jpg"])
    assert not held.poll()
    assert len(held) == 0


def test_a_file_that_grows_is_held(held, clock, tmp_path):
    """As long as it grows, however often it is looked at; also when only its time changes."""
    path = tmp_path / "a.jpg"
    for size in range(1, 8):
        path.write_bytes(b"x" * size)
        held.add("a.jpg") if size == 1 else None
        clock.now += 1.5
        assert not held.poll()
    os.utime(path, ns=(5, 5))
    clock.now += 1.9
    assert not held.poll()
    clock.now += 1.9
    assert not held.poll()
    clock.now += 0.1
    assert held.poll() == Settled(files=["a.jpg"])


def test_a_file_that_is_told_again_waits_again(held, clock, tmp_path):
    """An event is a sign of life, even if size and time look the same."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    held.add("a.jpg")
    clock.now = 1.5
    held.add("a.jpg")
    clock.now = 3.0
    assert not held.poll()
    clock.now = 3.5
    assert held.poll().files == ["a.jpg"]


def test_a_file_that_is_replaced_by_renaming_rests_from_then(held, clock, tmp_path):
    """As editors and download programs do it."""
    (tmp_path / "a.jpg").write_bytes(b"old")
    held.add("a.jpg")
    clock.now = 1.9
    (tmp_path / ".part").write_bytes(b"new!")
    os.replace(tmp_path / ".part", tmp_path / "a.jpg")
    clock.now = 2.5
    assert not held.poll()
    clock.now = 4.5
    assert held.poll().files == ["a.jpg"]


def test_what_is_gone_and_stays_so_is_told_as_gone(held, clock, tmp_path):
    """A file that is only away while it is replaced is not."""
    (tmp_path / "back.jpg").write_bytes(b"x")
    for name in ("gone.jpg", "back.jpg"):
        held.add(name)
    (tmp_path / "back.jpg").unlink()
    clock.now = 1.0
    assert not held.poll()
    (tmp_path / "back.jpg").write_bytes(b"y")
    clock.now = 2.0
    assert held.poll() == Settled(gone=["gone.jpg"])
    clock.now = 4.0
    assert held.poll() == Settled(files=["back.jpg"])


def test_only_new_folders_are_looked_into(held, clock, tmp_path):
    """What happens in a known one is told file by file."""
    for name in ("new", "known"):
        (tmp_path / name).mkdir()
    held.add("new", is_new=True)
    held.add("new")  # told again, it is still new
    held.add("known")
    clock.now = 2.0
    assert held.poll() == Settled(folders=["new"])
    assert len(held) == 0


def test_there_is_a_limit(held, monkeypatch):
    """Whoever changes more than that gets a search of everything; what is known may always be told again."""
    monkeypatch.setattr(debounce, "MAX_HELD_PATHS", 2)
    assert held.add("a")
    assert held.add("b")
    assert not held.add("c")
    assert held.add("a")
