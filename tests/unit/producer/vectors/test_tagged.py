"""Vectors that know their space: NumPy itself refuses to let two of them meet."""

import copy

import numpy as np
import pytest

from producer.errors import SpaceMismatch
from producer.vectors.tagged import SpacedVectors, space_of, spaced
from tests.support.filled_store import unit

ONE, OTHER = spaced(unit(4), "one"), spaced(unit(4, seed=1), "other")


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: a @ b.T,
        lambda a, b: b[0] @ a[0],
        lambda a, b: a - b,
        lambda a, b: a == b,
        lambda a, b: np.dot(a, b.T),
        lambda a, b: a.dot(b.T),
        lambda a, b: np.inner(a, b),
        lambda a, b: np.vecdot(a, b),
        lambda a, b: np.einsum("ij,ij->i", a, b),
        lambda a, b: np.stack([a[0], b[0]]),
        lambda a, b: np.concatenate([a, b]),
        lambda a, b: np.linalg.norm(a - b),
        lambda a, b: np.multiply(a, a, out=b),
    ],
)
def test_two_spaces_never_meet(meet):
    """Products, differences, stacks: an error that names both spaces."""
    with pytest.raises(SpaceMismatch, match="one and other"):
        meet(ONE, OTHER)


def test_rows_slices_and_copies_keep_their_space():
    """And nothing that is computed has one."""
    for kept in (ONE[0], ONE[1:], ONE.T, ONE.copy(), copy.copy(ONE), ONE.reshape(-1)):
        assert space_of(kept) == "one"
    for plain in (ONE @ ONE.T, ONE + 1, ONE.mean(axis=0), np.stack([ONE[0], ONE[1]]), np.asarray(ONE), unit(1)):
        assert space_of(plain) is None


def test_numbers_are_those_of_a_plain_array():
    """Bit by bit, without a copy; a single product is a number."""
    plain = unit(4)
    view = spaced(plain, "one")
    assert isinstance(view, SpacedVectors)
    assert np.shares_memory(view, plain)
    assert view[2].tobytes() == plain[2].tobytes()
    assert np.array_equal(view @ view.T, plain @ plain.T)
    assert isinstance(view[0] @ view[1], np.float32)
    own = view.copy()
    own *= 2
    assert space_of(own) == "one"
    assert np.array_equal(own, plain * 2)
