"""Index: what a backend holds. Exact, up to date, shared by threads, and deaf to other spaces."""

import json
import logging
import os
import shutil
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from producer import Index
from producer.embedding import space_of, with_space
from producer.errors import ConfigurationError, SpaceMismatch, StoreUnavailable
from producer.search import index as index_module
from producer.search import snapshot as held_module
from producer.settings import load_settings
from producer.vectors import open_store
from tests.support.filled_store import OTHER, SPACE, fill, unit
from tests.support.fork import in_a_fork, needs_fork


@pytest.fixture
def url(tmp_path):
    return f"sqlite:{tmp_path / 'v.db'}"  # tests/integration/test_index_on_redis.py runs this file on Redis


@pytest.fixture
def settings(url, tmp_path):
    (tmp_path / "posters.json").write_text("[]")
    os.utime(tmp_path / "posters.json", (1, 1))  # a file of this second may change without a trace, and is read again
    return load_settings(store=url, catalogue=tmp_path / "posters.json")


@pytest.fixture
def store(url):
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def opened(settings):
    """Open indexes that poll when `refresh` is called, and close them."""
    indexes = []

    def open_index(**options):
        indexes.append(Index.open(settings, **{"refresh_s": None} | options))
        return indexes[-1]

    yield open_index
    for index in indexes:
        index.close()


def wait_until(condition, within_s=10.0):
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("queries", [1, 3, 40])
def test_search_is_exact(store, opened, monkeypatch, queries):
    """One query, a few, many, over several blocks: what a full sort of all products finds."""
    monkeypatch.setattr(index_module, "BLOCK_ROWS", 300)
    ids = [f"{n:05}" for n in range(2000)]
    vectors = fill(store, ids)
    asked = unit(queries, seed=9)
    found = opened().search(asked, k=6, space=SPACE.id)
    assert len(found) == queries
    for query, matches in zip(asked, found, strict=True):
        best = sorted(zip(-(vectors @ query), ids, strict=True))[:6]
        assert [match.id for match in matches] == [name for _, name in best]
        assert [match.score for match in matches] == pytest.approx([-score for score, _ in best], abs=1e-6)


def test_one_vector_gives_one_list(store, opened):
    """And a list of vectors a list of lists; each match carries the catalogue's entry."""
    vectors = fill(store, ["a", "b", "c"])
    index = opened()
    assert [match.id for match in index.search(with_space(vectors[1], SPACE.id), 1)] == ["b"]
    several = index.search([with_space(vectors[2], SPACE.id), with_space(vectors[0], SPACE.id)], 1)
    assert [[match.id for match in matches] for matches in several] == [["c"], ["a"]]
    assert index.search([], 1) == []
    assert (len(index), index.space) == (3, SPACE)


def test_vectors_gives_ids_and_matrix_of_one_moment(store, opened):
    """Row i belongs to id i; read-only; the matrix knows its space, and can be searched with."""
    vectors = fill(store, ["b", "a", "c"])
    index = opened()
    ids, matrix = index.vectors()
    assert sorted(ids) == ["a", "b", "c"]
    for name, vector in zip(ids, matrix, strict=True):
        assert vector.tobytes() == vectors[["b", "a", "c"].index(name)].tobytes()
    assert (matrix.shape, matrix.dtype, space_of(matrix)) == ((3, 16), np.float32, SPACE.id)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0] = 0
    assert [found[0].id for found in index.search(matrix, 1)] == list(ids)


def test_vectors_of_another_space_are_refused(store, opened):
    """Of the same width: only the space tells; an array that does not say is refused with the way out."""
    vectors = fill(store, ["a"])
    index = opened()
    with pytest.raises(SpaceMismatch, match=f"of the space {OTHER.id}, and this index holds {SPACE.id}"):
        index.search(with_space(vectors[0], OTHER.id))
    with pytest.raises(SpaceMismatch, match=f"of the space {OTHER.id}"):
        index.search(vectors[0], space=OTHER.id)
    with pytest.raises(SpaceMismatch, match="of the space"):
        index.search(with_space(vectors[0], OTHER.id), space=SPACE.id)
    with pytest.raises(SpaceMismatch, match="does not say which space"):
        index.search(vectors[0])
    with pytest.raises(SpaceMismatch, match="two spaces"):
        index.search([with_space(vectors[0], OTHER.id), with_space(vectors[0], SPACE.id)])
    with pytest.raises(SpaceMismatch, match="does not say"):
        index.search([with_space(vectors[0], SPACE.id), vectors[0]])
    with pytest.raises(SpaceMismatch, match="have 8 numbers"):
        index.search(unit(1, 8)[0], space=SPACE.id)


@pytest.mark.parametrize(
    ("query", "k", "text"),
    [(2 * unit(1)[0], 5, "unit length, not 2"), (np.full(16, np.nan), 5, "unit length"), (unit(1)[0], 0, "at least 1")],
)
def test_what_cannot_be_a_query_is_refused(store, opened, query, k, text):
    """A score of it would not be a cosine."""
    fill(store, ["a"])
    with pytest.raises(ValueError, match=text):
        opened().search(query, k, space=SPACE.id)


def test_refresh_loads_what_has_changed_and_only_then(store, opened, monkeypatch):
    """New, replaced and deleted rows are seen; without a change nothing is read."""
    fill(store, ["a", "b"])
    index = opened()
    before = index.vectors()[1]
    assert index.refresh() is False
    assert index.vectors()[1].base is before.base
    new = fill(store, ["c"], unit(1, seed=7))
    assert index.refresh() is True
    assert index.search(with_space(new[0], SPACE.id), 1)[0].id == "c"
    store.delete(SPACE.id, ["c"])
    assert index.refresh() is True
    assert len(index) == 2


def test_the_index_follows_the_current_space(store, opened):
    """`spaces use` takes effect without a restart; a named space stays."""
    fill(store, ["a"])
    index, named = opened(), opened(space="vit-b")
    fill(store, ["x", "y"], space=OTHER)
    assert index.refresh() is False
    store.use(OTHER.id)
    assert index.refresh() is True
    assert (index.space, len(index)) == (OTHER, 2)
    named.refresh()
    assert named.space == SPACE


def test_an_index_that_cannot_be_opened_closes_its_store(store, opened, monkeypatch):
    """A backend may try again and again."""
    fill(store, ["a"])
    events = []

    def open_and_watch(*given):
        made = open_store(*given)
        close = made.close
        monkeypatch.setattr(made, "close", lambda: (close(), events.append("closed")))
        events.append("opened")
        return made

    monkeypatch.setattr(index_module, "open_store", open_and_watch)
    with pytest.raises(ConfigurationError, match="no space 'vit-x'"):
        opened(space="vit-x")
    assert events == ["opened", "closed"]


def test_an_empty_store_fills_later(settings, opened, caplog):
    """A backend may start before the first poster is embedded: the index is empty, and then finds it."""
    with caplog.at_level(logging.WARNING):
        index = opened()
    assert "no vectors yet" in caplog.text
    assert (index.space, len(index), index.search(unit(1)[0])) == (None, 0, [])
    assert index.search(unit(2)) == [[], []]
    with closing(open_store(settings.store)) as store:
        vectors = fill(store, ["a"])
    assert index.refresh() is True
    assert index.search(vectors[0], space=SPACE.id)[0].id == "a"


def test_the_index_follows_by_itself(store, opened, monkeypatch):
    """Within about refresh_s, in a thread of its own; searches never wait for it."""
    monkeypatch.setattr(index_module, "LOADING_SHARE", 0)
    fill(store, ["a"])
    index = opened(refresh_s=0.05)
    fill(store, ["b"], unit(1, seed=3))
    wait_until(lambda: len(index) == 2)
    store.drop(SPACE.id)
    wait_until(lambda: len(index) == 0)


def test_an_index_follows_the_file_that_the_path_means(tmp_path):
    """Deleted: empty. Replaced by a backup, with as many changes since: the rows of that one, not of the old."""
    path = tmp_path / "own.db"
    settings = load_settings(store=f"sqlite:{path}", catalogue=None)
    with closing(open_store(settings.store)) as store:
        fill(store, ["a"])
    shutil.copy(path, tmp_path / "backup")
    with closing(open_store(settings.store)) as store:
        fill(store, ["b"])
    with closing(Index.open(settings, refresh_s=None)) as index:
        assert index.vectors()[0] == ("a", "b")
        (tmp_path / "backup").rename(path)
        with closing(open_store(settings.store)) as store:
            fill(store, ["c"], unit(1, seed=3))
        assert index.refresh() is True
        assert index.vectors()[0] == ("a", "c")
        path.unlink()
        assert index.refresh() is True
        assert (index.space, len(index)) == (None, 0)
        assert not path.exists()


def test_a_busy_store_takes_a_tenth_of_the_time_at_most(store, opened, monkeypatch):
    """A store that changes without a pause is not loaded without a pause."""
    fill(store, ["a"])
    loads = []
    real = held_module.load

    def slow(*arguments):
        loaded = real(*arguments)
        loads.append(time.monotonic())
        fill(store, [f"{len(loads)}"], unit(1))  # it has changed again before it is held
        time.sleep(0.1)
        return loaded

    monkeypatch.setattr(held_module, "load", slow)
    opened(refresh_s=0.01)
    time.sleep(2.5)
    assert 2 <= len(loads) <= 4


def test_a_store_that_is_away_leaves_the_index_as_it_is(store, opened, monkeypatch, caplog):
    """It is logged once, and the old vectors answer."""
    vectors = fill(store, ["a"])
    index = opened(refresh_s=0.02)

    def away(*_):
        raise StoreUnavailable("the store is away")

    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(index_module, "load_if_changed", away)
        time.sleep(0.3)
    assert index.search(vectors[0], space=SPACE.id)[0].id == "a"
    assert caplog.text.count("the store is away") == 1


def test_a_changed_catalogue_is_read_again(store, opened, settings):
    """Titles follow without loading a vector."""
    vectors = fill(store, ["one"])
    settings.catalogue.write_text(json.dumps([{"file": "a.jpg", "id": "one", "title": "Old"}]))
    index = opened()
    assert index.search(vectors[0], space=SPACE.id)[0].about == {"file": "a.jpg", "id": "one", "title": "Old"}
    settings.catalogue.write_text(json.dumps([{"file": "a.jpg", "id": "one", "title": "New title", "year": 1}]))
    before = index.vectors()[1]
    assert index.refresh() is True
    assert index.vectors()[1].base is before.base
    assert index.search(vectors[0], space=SPACE.id)[0].about["title"] == "New title"


def test_threads_share_an_index_that_is_being_reloaded(store, opened):
    """Every answer is whole: of the old content or of the new, never of a mixture."""
    ids = [f"{n:03}" for n in range(400)]
    fill(store, ids, unit(400, seed=0))
    index, problems, ended = opened(), [], threading.Event()

    def ask():
        while not ended.is_set():
            held, matrix = index.vectors()
            if len(held) != len(matrix) or len(held) not in (400, 200):
                problems.append((len(held), matrix.shape))
            found = index.search(matrix[7], 3)
            if len(found) != 3 or not -1.001 <= found[0].score <= 1.001:
                problems.append(found)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        store.delete(SPACE.id, ids[200:]) if turn % 2 == 0 else fill(store, ids, unit(400, seed=turn))
        index.refresh()
    ended.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_close_lets_go(store, opened):
    """Of the vectors and the threads; closing twice is no error."""
    fill(store, ["a"])
    index = opened(refresh_s=0.01)
    index.close()
    index.close()
    assert len(index) == 0
    assert index.refresh() is False


@needs_fork
def test_an_index_works_in_a_forked_process(store, opened):
    """As under gunicorn with preload: it answers, sees what came since, follows, and ends; so does the parent's."""
    vectors = fill(store, ["a", "b"])
    index = opened(refresh_s=0.05)

    def use():
        first = [match.id for match in index.search(vectors[1], 1, space=SPACE.id)], len(index)
        with closing(open_store(index._settings.store)) as own:
            fill(own, ["d"], unit(1, seed=4))
        wait_until(lambda: len(index) == 4)
        index.close()
        return first

    with index._loading:  # another thread is loading at the moment of the fork
        index._pool.submit(lambda: None).result()
        fill(store, ["c"], unit(1, seed=3))
        found = in_a_fork(use)
    assert found == [["b"], 3]
    wait_until(lambda: len(index) == 4)
    assert index.search(vectors[0], 1, space=SPACE.id)[0].id == "a"


@needs_fork
def test_a_forked_index_without_a_store_keeps_its_vectors(store, opened, monkeypatch):
    """The store is away when the process asks for the first time: the inherited vectors answer."""
    vectors = fill(store, ["a"])
    index = opened(refresh_s=60)

    def away(*_):
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(index_module, "load_if_changed", away)
    assert in_a_fork(lambda: index.search(vectors[0], 1, space=SPACE.id)[0].id) == "a"


def test_with_closes_an_index(store, settings):
    """Its threads end with the block."""
    fill(store, ["a"])
    with Index.open(settings, refresh_s=60) as index:
        assert len(index) == 1
    assert index._ended.is_set()
