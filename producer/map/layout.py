"""Two dimensions from many: principal components, then PaCMAP, which keeps neighbors and the order of groups.

PaCMAP: Wang, Huang, Rudin and Shaposhnik, "Understanding how dimension reduction tools work", JMLR 22 (2021). Pairs of
near, mid-near and far points are drawn once; 450 steps of Adam then pull the first two kinds together and push the last
apart. Weights, phases and constants are the paper's. NumPy alone does it: the gradient of all pairs is a few array
operations, and neighbors are found exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from producer.embedding import Vectors

COMPONENTS: Final = 50  # that neighbors are sought in; the paper's choice as well
NEIGHBORS: Final = 10
SPARE_NEIGHBORS: Final = 50  # candidates from which the nearest are chosen, by distances scaled to each one's density
MID_NEAR: Final = 5
MID_NEAR_TRIED: Final = 6  # points drawn for each of them, of which the second nearest counts
FAR: Final = 20
STEPS: Final = 450
PLACED_BETWEEN: Final = 5  # anchors
SAME: Final = 1e-6  # squared distance, as a share of the squared length, that rounding leaves between equal ones
LEAST: Final = 2 * NEIGHBORS  # of fewer points, the first two components are as good a picture
BLOCK_ROWS: Final = 128  # of distances at once: 15 MB for 30,000 points
Positions = npt.NDArray[np.float32]  # (n, 2)
Indexes = npt.NDArray[np.int64]
OnProgress = Callable[[int, int], object]  # done, of how many


class Components(NamedTuple):
    """Principal components of vectors.

    Attributes:
        mean: (dimension,).
        axes: (dimension, c), the strongest first.
    """

    mean: Vectors
    axes: Vectors

    def project(self, vectors: Vectors) -> Vectors:
        """(n, c) coordinates along the axes."""
        return np.asarray((vectors - self.mean) @ self.axes, np.float32)


def principal_components(vectors: Vectors) -> Components:
    """The COMPONENTS strongest of (n, dimension) vectors; the sign of each is that of its largest number."""
    mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
    centered = vectors - mean
    _, axes = np.linalg.eigh((centered.T @ centered).astype(np.float64))
    axes = axes[:, ::-1][:, :COMPONENTS]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return Components(mean, axes.astype(np.float32))


def nearest(queries: Vectors, points: Vectors, k: int) -> tuple[Indexes, Vectors]:
    """For each of (n, c) queries the `k` nearest of (m, c) points, nearest first: indexes and squared distances."""
    norms = np.vecdot(points, points)
    found, distances = [], []
    for start in range(0, len(queries), BLOCK_ROWS):
        block = queries[start : start + BLOCK_ROWS]
        squares = norms - 2 * (block @ points.T) + np.vecdot(block, block)[:, None]
        some = (
            np.argpartition(squares, k - 1, axis=1)[:, :k]
            if k < len(points)
            else np.tile(np.arange(k), (len(block), 1))
        )
        of_some = np.take_along_axis(squares, some, 1)
        order = np.lexsort((some, of_some), axis=1)
        found.append(np.take_along_axis(some, order, 1))
        distances.append(np.maximum(np.take_along_axis(of_some, order, 1), 0))
    return np.concatenate(found), np.concatenate(distances)


def lay_out(points: Vectors, seed: int, on_progress: OnProgress = lambda done, total: None) -> Positions:
    """Positions (n, 2) of (n, c) points in the coordinates of their principal components; the same for the same seed.

    Time: half a minute of one core for 30,000 points, a third of it for their neighbors. Memory: 5 kB a point.
    """
    start = np.zeros((len(points), 2), np.float32)
    start[:, : min(2, points.shape[1])] = points[:, :2]
    if len(points) < LEAST:
        return start
    on_progress(0, STEPS)
    draw = np.random.default_rng(seed)
    near = _near(points)
    far = draw.integers(len(points), size=(len(points), FAR))
    groups = (_Pairs(near), _Pairs(_mid_near(points, draw)), _Pairs(far, _strangers(far, near)))
    return _descend(0.01 * start / max(float(np.abs(start).max()), 1e-12), groups, on_progress)


def between_neighbors(points: Vectors, anchors: Vectors, positions: Positions) -> Positions:
    """Positions of (n, c) further points: between those of their nearest anchors, of which most lie together.

    The mean of all would put a point whose neighbors lie in two groups into the void between them. One that is equal to
    an anchor lies on it.
    """
    if not len(points):
        return np.zeros((0, 2), np.float32)
    found, squares = nearest(points, anchors, min(PLACED_BETWEEN, len(anchors)))
    at = positions[found]
    away = np.linalg.norm(at - np.median(at, axis=1, keepdims=True), axis=2)
    weights = (away <= np.median(away, axis=1, keepdims=True)) / (squares + 1e-6)
    placed = (at * (weights / weights.sum(1, keepdims=True))[:, :, None]).sum(1)
    is_same = squares[:, :1] <= SAME * (1 + np.vecdot(points, points)[:, None])
    return np.where(is_same, at[:, 0], placed).astype(np.float32)


class _Pairs:
    """Points (n,) with k others each, the pairs of one kind; `counts`: which of them count."""

    def __init__(self, others: Indexes, counts: npt.NDArray[np.bool_] | None = None) -> None:
        self._others, self._flat, self._counts = others, others.ravel(), counts

    def gradient(self, at: Positions, pull: float, reach: float) -> Positions:
        """Sum over the pairs of the difference times ``pull / (reach + d)²``, d: its squared length plus one."""
        difference = at[:, None, :] - at[self._others]
        factor = pull / (reach + 1 + np.vecdot(difference, difference)) ** 2
        if self._counts is not None:
            factor = factor * self._counts
        difference *= factor[:, :, None]
        total = difference.sum(1)
        for axis in range(2):
            total[:, axis] -= np.bincount(self._flat, difference[:, :, axis].ravel(), len(at))
        return total


def _near(points: Vectors) -> Indexes:
    """Of each point the NEIGHBORS with the smallest distance, scaled by how far away the neighbors of both are."""
    most = min(NEIGHBORS + SPARE_NEIGHBORS, len(points) - 1)
    found, squares = nearest(points, points, most + 1)
    is_other = found != np.arange(len(points))[:, None]
    is_other[is_other.all(1), -1] = False  # a point that is not among its own neighbors has that many equal ones
    found, squares = found[is_other].reshape(-1, most), squares[is_other].reshape(-1, most)
    spread = np.maximum(np.sqrt(squares[:, 3:6]).mean(1), 1e-10)
    scaled = squares / spread[:, None] / spread[found]
    order = np.lexsort((found, scaled), axis=1)[:, :NEIGHBORS]
    return np.take_along_axis(found, order, 1)


def _mid_near(points: Vectors, draw: np.random.Generator) -> Indexes:
    """Of each point MID_NEAR others: each the second nearest of some that are drawn."""
    chosen = np.empty((len(points), MID_NEAR), np.int64)
    for number in range(MID_NEAR):
        drawn = draw.integers(len(points), size=(len(points), MID_NEAR_TRIED))
        squares = np.stack([((points - points[drawn[:, i]]) ** 2).sum(1) for i in range(MID_NEAR_TRIED)], 1)
        second = np.argsort(squares, 1, kind="stable")[:, 1]
        chosen[:, number] = drawn[np.arange(len(points)), second]
    return chosen


def _strangers(far: Indexes, near: Indexes) -> npt.NDArray[np.bool_]:
    """Which of the drawn pairs are no neighbors."""
    return np.stack([(far[:, i, None] != near).all(1) for i in range(far.shape[1])], 1)


def _weights(step: int) -> tuple[float, float, float]:
    """Of near, mid-near and far pairs, in the paper's three phases."""
    if step < 100:
        return 2.0, 1000 * (1 - step / 100) + 3 * step / 100, 1.0
    return (3.0, 3.0, 1.0) if step < 200 else (1.0, 0.0, 1.0)


def _descend(at: Any, groups: tuple[_Pairs, _Pairs, _Pairs], on_progress: OnProgress) -> Positions:
    """Adam, with a learning rate of 1."""
    near, mid_near, far = groups
    first, second = np.zeros_like(at), np.zeros_like(at)
    for step in range(STEPS):
        of_near, of_mid, of_far = _weights(step)
        slope = near.gradient(at, of_near * 20, 10)
        if of_mid:
            slope += mid_near.gradient(at, of_mid * 20_000, 10_000)
        slope += far.gradient(at, -of_far * 2, 1)
        first += 0.1 * (slope - first)
        second += 0.001 * (slope * slope - second)
        scale = np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        at = at - np.float32(scale) * first / (np.sqrt(second) + 1e-7)
        on_progress(step + 1, STEPS)
    return np.asarray(at, np.float32)
