"""Vectors for a waiting caller: what the store has is returned, and nothing else is taken for it."""

import math
import os

import numpy as np
import pytest

from producer import Producer
from producer.embedding import Space
from producer.errors import ConfigurationError, EmbedTimeout, NoWorker
from producer.queue.workers import LOADING, MODEL, READY
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.fork import in_a_fork, needs_fork

SPACE = Space("m", "1" * 32, "gelu", "64x64", 4)
OTHER = Space("m", "2" * 32, "gelu", "64x64", 4)
VECTOR = np.full(4, 0.5, np.float32)


@pytest.fixture
def poster(tmp_path):
    path = tmp_path / "posters" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(b"a picture")
    return path


@pytest.fixture
def producer(redis_url, tmp_path, poster):
    """Without a worker; the store knows the poster as it is."""
    url = f"sqlite:{tmp_path / 'v.db'}"
    stat = poster.stat()
    store = open_store(url)
    store.put(SPACE, [Row("a.jpg", "d", stat.st_size, stat.st_mtime_ns)], VECTOR[None])
    store.close()
    producer = Producer(load_settings(redis_url=redis_url, root=poster.parent, store=url, catalogue="none"))
    yield producer
    producer.close()


def test_what_the_store_has_is_answered_without_a_worker(producer, poster):
    """Bit by bit, with its space; no job is begun."""
    vector = producer.embed(poster, timeout=1)
    assert np.array_equal(np.asarray(vector), VECTOR)
    assert vector.space == SPACE.id
    assert producer.job_store.list_jobs() == []


@needs_fork
def test_a_producer_and_its_store_work_in_a_forked_process(producer, poster):
    """SQLite forbids to use the parent's connection there; both processes answer."""
    producer.embed(poster, timeout=1)
    with producer.on_demand._opening:  # another thread opens the store at the moment of the fork
        assert in_a_fork(lambda: producer.embed(poster, timeout=1).tolist()) == VECTOR.tolist()
    assert np.array_equal(np.asarray(producer.embed(poster, timeout=1)), VECTOR)


def test_with_closes_a_producer(producer, poster, monkeypatch):
    """Store and connections end with the block."""
    closed = []
    monkeypatch.setattr(producer.job_store, "close", lambda: closed.append(1))
    with producer as same:
        assert same is producer
    assert closed == [1]


def test_a_poster_that_changed_needs_a_worker(producer, poster):
    """Another time or size: the stored vector may not be its."""
    stat = poster.stat()
    os.utime(poster, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(NoWorker):
        producer.embed(poster, timeout=1)


def test_a_vector_of_another_model_is_no_answer(producer, poster):
    """The worker makes another space than the store has: its vector is waited for."""
    producer.registry.publish("w", READY, {"space": OTHER.id, "space_json": OTHER.to_json()})
    with pytest.raises(EmbedTimeout):
        producer.embed(poster, timeout=0.3)


def test_a_worker_that_loads_is_waited_for_and_named(producer, poster):
    """Not busy, and not to be waited for without limit; a wrong argument is no outage of Redis."""
    producer.registry.publish("w/1/x", LOADING, {"stage": MODEL})
    with pytest.raises(EmbedTimeout, match="w is starting, and is loading its model"):
        producer.embed_image(b"x", timeout=0.1)
    with pytest.raises(TypeError, match="an image must be"):
        producer.embed_image(["a.jpg"], timeout=0.1)
    with pytest.raises(TypeError, match="timeout"):
        producer.embed(poster, timeout="5")
    for timeout in (None, math.inf):
        assert np.array_equal(np.asarray(producer.embed(poster, timeout)), VECTOR)


def test_a_store_that_is_not_there_is_not_made(redis_url, tmp_path, poster):
    """A backend only reads; an empty file in its place would hide the mistake."""
    path = tmp_path / "elsewhere.db"
    producer = Producer(
        load_settings(redis_url=redis_url, root=poster.parent, store=f"sqlite:{path}", catalogue="none")
    )
    with pytest.raises(NoWorker):
        producer.embed(poster, timeout=0.3)
    producer.close()
    assert not path.exists()


def test_a_single_path_is_no_list_of_paths(producer):
    """A text is a sequence of letters, and each would have been queued."""
    with pytest.raises(ConfigurationError, match=r"enqueue\(\['a\.jpg'\]\)"):
        producer.enqueue("a.jpg")
