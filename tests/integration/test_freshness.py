"""Freshness: posters count as unchanged only where the workers' space and the store are both known."""

import numpy as np
import pytest

from producer.client import Producer
from producer.embedding import Space
from producer.errors import StoreUnavailable
from producer.indexing import freshness
from producer.indexing.freshness import UpToDateFilter
from producer.queue.messages import Poster
from producer.queue.workers import LOADING, READY
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row

MINE, OTHER = Space("tiny", "1", "gelu", "8x8", 4), Space("tiny", "2", "gelu", "8x8", 4)
POSTERS = [Poster("a", "a", 5, 7), Poster("b", "b", 5, 7), Poster("c", "c", -1, -1), Poster("d", "d", 6, 7)]


@pytest.fixture
def producer(redis_url, tmp_path):
    producer = Producer(load_settings(redis_url=redis_url, root=tmp_path, store=f"sqlite:{tmp_path / 'v.db'}"))
    yield producer
    producer.close()


@pytest.fixture
def recorded(producer, monkeypatch):
    """The filter, which reads the workers every time, and its messages."""
    monkeypatch.setattr(freshness, "REFRESH_S", 0.0)
    messages = []
    current = UpToDateFilter(producer, messages.append)
    yield current, messages
    current.close()


def fill(producer, space, ids):
    store = open_store(producer.settings.store)
    one = np.zeros((len(ids), 4), np.float32)
    one[:, 0] = 1
    store.put(space, [Row(name, name, 5, 7) for name in ids], one)
    store.close()


def announce(producer, state, space=MINE):
    producer.registry.publish("w", state, {"space": space.id, "space_json": space.to_json()})


def test_size_and_time_decide_in_the_workers_space(producer, recorded):
    """Equal size and time: unchanged. Another size, an unknown file, a vector of another model: not."""
    current, _ = recorded
    fill(producer, MINE, ["a", "c", "d"])
    fill(producer, OTHER, ["b"])
    announce(producer, READY)
    assert current(POSTERS) == {"a"}
    announce(producer, READY, OTHER)
    assert current(POSTERS) == {"b"}


def test_until_a_worker_is_ready_nothing_is_current(producer, recorded):
    """No worker, a loading one, a ready one: only the last makes posters unchanged."""
    current, messages = recorded
    fill(producer, MINE, ["a"])
    assert (current(POSTERS), current.is_known()) == (set(), False)
    announce(producer, LOADING)
    assert (current(POSTERS), current.is_known()) == (set(), False)
    announce(producer, READY)
    assert (current(POSTERS), current.is_known()) == ({"a"}, True)
    assert messages == []


def test_a_store_that_does_not_exist_is_empty_and_is_not_created(producer, recorded, tmp_path):
    """On the first run the store counts as empty; once the worker has created its file, it is read."""
    current, messages = recorded
    announce(producer, READY)
    assert (current(POSTERS), current.is_known()) == (set(), True)
    assert not (tmp_path / "v.db").exists()
    fill(producer, MINE, ["a"])
    assert current(POSTERS) == {"a"}
    assert messages == []


def test_nothing_is_current_in_a_file_that_was_deleted(producer, recorded, tmp_path):
    """As `rm data/embeddings.db*` leaves it, while `index` has it open; nor is it made again by reading."""
    current, messages = recorded
    fill(producer, MINE, ["a"])
    announce(producer, READY)
    assert current(POSTERS) == {"a"}
    for file in tmp_path.glob("v.db*"):
        file.unlink()
    assert (current(POSTERS), current.is_known()) == (set(), True)
    assert not (tmp_path / "v.db").exists()
    fill(producer, MINE, ["d"])
    assert current([POSTERS[3]._replace(size=5)]) == {"d"}
    assert messages == []


def test_an_unreachable_store_is_reported_once_and_is_not_an_obstacle(producer, recorded, monkeypatch):
    """The worker compares instead."""
    current, messages = recorded
    fill(producer, MINE, ["a"])
    announce(producer, READY)
    assert current(POSTERS) == {"a"}

    def fail(*_):
        raise StoreUnavailable("locked")

    monkeypatch.setattr(current._store, "rows", fail)
    assert current(POSTERS) == set()
    assert current(POSTERS) == set()
    assert messages == ["the store is unreachable from here, so the worker decides what is up to date: locked"]
