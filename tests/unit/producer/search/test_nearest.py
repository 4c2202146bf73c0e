"""Nearest neighbors: exact, best first, ties by id, in one pass, and never across spaces."""

import numpy as np
import pytest

from producer.embedding import with_space
from producer.errors import SpaceMismatch
from producer.search.nearest import Match, best_matches, metadata_of, nearest, title_of, top_positions, with_metadata
from tests.support.filled_store import OTHER, SPACE, catalogue_of, fill, unit
from tests.support.memory_store import MemoryStore


def brute(ids, vectors, query, k):
    scores = vectors @ query
    return sorted(((-score, name) for name, score in zip(ids, scores, strict=True)))[:k]


def test_nearest_is_what_a_full_sort_finds():
    """For several queries at once, over more rows than one chunk of the store."""
    store = MemoryStore()
    ids = [f"{n:05}" for n in range(20000)]
    vectors = fill(store, ids)
    queries = unit(7, seed=5)
    for query, found in zip(queries, nearest(store, SPACE.id, queries, 9), strict=True):
        expected = brute(ids, vectors, query, 9)
        assert [match.id for match in found] == [name for _, name in expected]
        assert [match.score for match in found] == pytest.approx([-score for score, _ in expected], abs=1e-6)


def test_ties_go_to_the_smaller_id():
    """Also where the last place is shared by more than fit."""
    store = MemoryStore()
    vector = unit(1)[0]
    ids = [f"{n:03}" for n in np.random.default_rng(0).permutation(500)]
    fill(store, ids, np.tile(vector, (500, 1)))
    (found,) = nearest(store, SPACE.id, vector[None], 4)
    assert [match.id for match in found] == ["000", "001", "002", "003"]


def test_fewer_posters_than_asked_for():
    """All of them, best first; none at all is no error."""
    store = MemoryStore()
    assert nearest(store, SPACE.id, unit(2), 5) == [[], []]
    vectors = fill(store, ["a", "b"])
    (found,) = nearest(store, SPACE.id, vectors[1:], 5)
    assert [match.id for match in found] == ["b", "a"]


def test_queries_of_another_space_are_refused():
    """By what they say, and where they say nothing by their width."""
    store = MemoryStore()
    vectors = fill(store, ["a"])
    with pytest.raises(SpaceMismatch, match=f"{OTHER.id} and cannot be compared with vectors of {SPACE.id}"):
        nearest(store, SPACE.id, with_space(vectors, OTHER.id))
    with pytest.raises(SpaceMismatch, match="have 8 numbers"):
        nearest(store, SPACE.id, unit(1, 8))
    assert nearest(store, SPACE.id, with_space(vectors, SPACE.id))[0][0].id == "a"


def test_highest_holds_every_tie():
    """So that whoever sorts them afterwards decides, and not the partition."""
    scores = np.array([1, 3, 2, 3, 3, 0], np.float32)
    assert sorted(top_positions(scores, 2)) == [1, 3, 4]
    assert sorted(top_positions(scores, 4)) == [1, 2, 3, 4]
    assert sorted(top_positions(scores, 99)) == [0, 1, 2, 3, 4, 5]
    assert [match.id for match in best_matches([Match("b", 1.0), Match("a", 1.0), Match("c", 2.0)], 2)] == ["c", "a"]


def test_a_match_says_what_the_catalogue_says(tmp_path):
    """Every key; a poster that it does not name has its id as its file."""
    catalogue = catalogue_of(tmp_path, {"file": "p/a.jpg", "id": "first", "title": "A", "year": 1999})
    known, unknown = with_metadata([Match("first", 0.5), Match("p/b.jpg", 0.4)], catalogue)
    assert known.about == {"file": "p/a.jpg", "id": "first", "title": "A", "year": 1999}
    assert (title_of(known), title_of(unknown)) == ("A", "")
    assert unknown.about == metadata_of("p/b.jpg", catalogue) == {"file": "p/b.jpg"}
