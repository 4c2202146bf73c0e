"""The layout: neighbors stay neighbors, the same seed gives the same map, and few or equal points are no problem."""

import numpy as np
import pytest

from producer.map.layout import COMPONENTS, LEAST, between_neighbors, lay_out, nearest, principal_components
from tests.support.filled_store import unit

GROUPS, OF_EACH = 6, 60


@pytest.fixture(scope="module")
def grouped():
    """Points in groups, the group of each, and their layout."""
    draw = np.random.default_rng(3)
    centers, group = draw.standard_normal((GROUPS, 20)), np.repeat(np.arange(GROUPS), OF_EACH)
    points = (centers[group] + 0.3 * draw.standard_normal((len(group), 20))).astype(np.float32)
    return points, group, lay_out(points, 0)


def test_points_of_a_group_lie_together(grouped):
    """The nearest on the map are of the same group."""
    _, group, positions = grouped
    assert positions.shape == (GROUPS * OF_EACH, 2)
    assert positions.dtype == np.float32
    near, _ = nearest(positions, positions, 6)
    assert (group[near] == group[:, None]).mean() > 0.99


def test_the_same_seed_gives_the_same_map(grouped):
    """To the last bit."""
    points, _, positions = grouped
    assert np.array_equal(lay_out(points, 0), positions)
    assert not np.array_equal(lay_out(points, 1), positions)


def test_neighbors_are_exact_and_in_order():
    """As all distances say, also for more queries than are compared at once."""
    points = unit(300, 8)
    found, squares = nearest(points, points[:40], 3)
    all_squares = ((points[:, None] - points[None, :40]) ** 2).sum(2)
    assert np.array_equal(found, np.argsort(all_squares, 1, kind="stable")[:, :3])
    assert np.allclose(squares, np.take_along_axis(all_squares, found, 1), atol=1e-5)
    assert nearest(points[:2], points[:2], 2)[0].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("count", [0, 1, 2, LEAST - 1, LEAST, LEAST + 1])
def test_few_points_have_positions(count):
    """Of fewer than LEAST, their first two components."""
    points = unit(count, 5)
    positions = lay_out(points, 0)
    assert positions.shape == (count, 2)
    assert np.isfinite(positions).all()
    assert count >= LEAST or np.array_equal(positions, points[:, :2])


def test_equal_points_have_positions():
    """As the posters of a collection whose images are one placeholder, and of vectors of one number."""
    for points in (np.ones((100, 4), np.float32), np.ones((50, 1), np.float32)):
        assert np.isfinite(lay_out(points, 0)).all()


def test_components_keep_what_varies_most():
    """The strongest first; the sign of each is its own, and not that of the library."""
    vectors = unit(200, 64) * np.linspace(3, 0.1, 64, dtype=np.float32)
    components = principal_components(vectors)
    projected = components.project(vectors)
    assert projected.shape == (200, COMPONENTS)
    _, singular, _ = np.linalg.svd(vectors - vectors.mean(0))
    assert np.allclose(projected.var(0) * 200, singular[:COMPONENTS] ** 2, rtol=1e-2)
    assert (np.take_along_axis(components.axes, np.abs(components.axes).argmax(0)[None], 0) > 0).all()


def test_a_new_point_lies_between_its_neighbors(grouped):
    """One that is equal to an anchor lies on it; all others inside the group that they belong to."""
    points, group, positions = grouped
    anchors = np.arange(0, len(points), 2)
    others = anchors + 1
    assert np.allclose(
        between_neighbors(points[anchors], points[anchors], positions[anchors]), positions[anchors], atol=1e-5
    )
    placed = between_neighbors(points[others], points[anchors], positions[anchors])
    near, distance = nearest(placed, positions[anchors], 1)
    assert np.sqrt(distance).max() < 0.1 * np.ptp(positions), "none in the void between two groups"
    assert (group[anchors][near[:, 0]] == group[others]).all()
    assert between_neighbors(points[:0], points, positions).shape == (0, 2)
