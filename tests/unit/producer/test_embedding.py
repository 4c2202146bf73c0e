"""Vectors that know their space: what keeps it, and what has none. Searches that refuse other spaces: search/."""

import copy
import pickle

import numpy as np

from producer.embedding import SpacedVectors, space_of, with_space
from tests.support.filled_store import unit

ONE = with_space(unit(4), "one")


def test_rows_slices_and_copies_keep_their_space():
    """And nothing that is computed has one."""
    for kept in (ONE[0], ONE[1:], ONE.T, ONE.copy(), copy.copy(ONE), ONE.reshape(-1)):
        assert space_of(kept) == "one"
    for plain in (ONE @ ONE.T, ONE + 1, ONE.mean(axis=0), np.stack([ONE[0], ONE[1]]), np.asarray(ONE), unit(1)):
        assert space_of(plain) is None


def test_numbers_are_those_of_a_plain_array():
    """Bit by bit, without a copy; a single product is a number."""
    plain = unit(4)
    view = with_space(plain, "one")
    assert isinstance(view, SpacedVectors)
    assert np.shares_memory(view, plain)
    assert view[2].tobytes() == plain[2].tobytes()
    assert np.array_equal(view @ view.T, plain @ plain.T)
    assert isinstance(view[0] @ view[1], np.float32)
    own = view.copy()
    own *= 2
    assert space_of(own) == "one"
    assert np.array_equal(own, plain * 2)


def test_a_pickle_and_a_deep_copy_keep_the_space():
    """As a vector travels between the processes of a backend, or lies in its cache."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for vectors in (ONE, ONE[1], with_space(unit(4).astype(">f4"), "one")):
            again = pickle.loads(pickle.dumps(vectors, protocol))
            assert isinstance(again, SpacedVectors)
            assert space_of(again) == "one"
            assert np.array_equal(again, vectors)
    assert space_of(copy.deepcopy(ONE)) == "one"
    assert space_of(pickle.loads(pickle.dumps(ONE[0].view(SpacedVectors) + 0))) is None
