"""What goes to disk comes back as it went."""

import os

from producer.spooled import SpooledNames, SpooledSet


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
