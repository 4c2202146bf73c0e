"""What goes to disk comes back as it went."""

import os
import tempfile
from pathlib import Path

import pytest

from producer.collection import catalogue, spill
from producer.collection.catalogue import read_catalogue
from producer.collection.spill import SpooledNames, SpooledSet, temporary_database
from producer.errors import ConfigurationError


def test_names_come_back_in_order_from_memory_and_disk():
    """Lots that went to disk and the rest in memory are one order; newlines and bytes that are no text survive."""
    given = [f"{(number * 37) % 101:03}" for number in range(101)] + ["new\nline", os.fsdecode(b"\xff.jpg"), "進撃", ""]
    for held_most in (1, 2, 10, 1000):
        names = SpooledNames(held_most)
        for name in given:
            names.add(name)
        assert list(names) == sorted(given)
    assert list(SpooledNames()) == []


def test_a_set_knows_what_it_has_seen():
    """Once is new, twice is not."""
    seen = SpooledSet()
    assert [seen.add(text) for text in ("a", "é", "a", "b", "é")] == [True, True, False, True, False]


@pytest.fixture
def small(monkeypatch):
    """Temporary databases that are full after 80 kB."""

    def small():
        database = temporary_database()
        database.execute("PRAGMA max_page_count = 20").close()
        return database

    for module in (catalogue, spill):
        monkeypatch.setattr(module, "temporary_database", small)


def test_a_catalogue_without_room_is_told(tmp_path, small):
    """And that TMPDIR sets another place."""
    path = tmp_path / "posters.jsonl"
    path.write_text("".join(f'{{"file": "{number}.jpg"}}\n' for number in range(20_000)))
    with pytest.raises(ConfigurationError, match=r"no room for temporary files .*full.*TMPDIR"):
        read_catalogue(path)


def test_spellings_without_room_are_told(small):
    """The same."""
    seen = SpooledSet()
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        all(seen.add(f"{number}") for number in range(20_000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk is Linux's")
def test_names_without_room_are_told(monkeypatch):
    """The same."""
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        names = SpooledNames(2)
        names.add("a")
        with pytest.raises(ConfigurationError, match="TMPDIR"):
            names.add("b")
