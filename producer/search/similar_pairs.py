"""All pairs of vectors above a cosine threshold: exact, in blocks, most ruled out in a low-dimensional projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from typing import Final

import numpy as np
import numpy.typing as npt

from producer.embedding import Vectors

Positions = npt.NDArray[np.int32]
Pairs = tuple[Positions, Positions, Vectors]
BLOCK_ROWS: Final = 4096  # a block of products has 64 MB
DIRECTIONS: Final = 62  # plus the two columns that turn products into distances: 64
SAMPLE_ROWS: Final = 16384  # enough to estimate the directions of largest variance
SLACK: Final = 1e-4  # rounding errors of 512 float32 products stay below 1e-5: no near pair is ruled out
SPARSE: Final = 16  # where fewer than 1 pair in SPARSE remains, they are computed one by one
STRIP_ROWS: Final = 256  # otherwise so many rows of a block at a time: at most a million pairs, 20 MB


def similar_pairs(
    vectors: Vectors, threshold: float, on_pairs: Callable[[int], None] = lambda done: None
) -> Iterator[Pairs]:
    """Every pair ``i < j`` of rows with a cosine of at least `threshold`, once: arrays of i, of j and of cosines.

    Two unit vectors of cosine c lie sqrt(2 - 2c) apart, and their projections into any subspace no farther. So the
    pairs are first compared in the DIRECTIONS of largest variance; only those whose projections are near enough
    are computed in full, so no pair is lost. Memory: a quarter of the vectors.

    Args:
        vectors: (n, dimension) float32, unit length.
        threshold: cosine.
        on_pairs: called with the number of pairs compared since the last call.
    """
    projections, counterparts = _projections(vectors) if len(vectors) > BLOCK_ROWS else (vectors, vectors)
    # A product of projections is -distance²/2, and distance²/2 of the vectors 1 - cosine. One block is compared whole.
    minimum = threshold - SLACK - (len(vectors) > BLOCK_ROWS)
    side = min(BLOCK_ROWS, len(vectors))
    products, nears = np.empty((side, side), np.float32), np.empty((side, side), np.bool_)  # reused for every block
    for row, column in combinations_with_replacement(range(0, len(vectors), BLOCK_ROWS), 2):
        rows, columns = vectors[row : row + BLOCK_ROWS], vectors[column : column + BLOCK_ROWS]
        product, near = products[: len(rows), : len(columns)], nears[: len(rows), : len(columns)]
        np.matmul(projections[row : row + BLOCK_ROWS], counterparts[column : column + BLOCK_ROWS].T, out=product)
        candidates = np.count_nonzero(np.greater_equal(product, minimum, out=near))
        step = len(rows) if candidates * SPARSE < near.size else STRIP_ROWS
        for start in range(0, len(rows), step) if candidates else ():
            i, j, cosine = _exact_pairs(rows[start : start + step], columns, near[start : start + step], threshold)
            i += start
            if row == column:
                keep = i < j
                i, j, cosine = i[keep], j[keep], cosine[keep]
            yield (i + row).astype(np.int32), (j + column).astype(np.int32), cosine
        on_pairs(len(rows) * len(columns) if row != column else len(rows) * (len(rows) - 1) // 2)


def _projections(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Two matrices whose product is minus half the squared distance of the projections: (n, DIRECTIONS + 2) each."""
    sample = vectors[:: max(1, len(vectors) // SAMPLE_ROWS)][: 2 * SAMPLE_ROWS].astype(np.float64)
    spread = sample - sample.mean(axis=0) if len(sample) else sample
    _, directions = np.linalg.eigh(spread.T @ spread)  # ascending
    chosen = directions[:, ::-1][:, :DIRECTIONS].astype(np.float32)
    width = chosen.shape[1]
    projections = np.empty((len(vectors), width + 2), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        part = projections[start : start + BLOCK_ROWS]
        np.matmul(vectors[start : start + BLOCK_ROWS], chosen, out=part[:, :width])
        part[:, width] = -0.5 * (part[:, :width] ** 2).sum(axis=1)
        part[:, width + 1] = 1
    counterparts = projections.copy()
    counterparts[:, [width, width + 1]] = counterparts[:, [width + 1, width]]
    return projections, counterparts


def _exact_pairs(
    rows: Vectors, columns: Vectors, near: npt.NDArray[np.bool_], threshold: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Vectors]:
    """The candidate pairs whose exact cosine reaches the threshold."""
    i, j = np.nonzero(near)
    if len(i) * SPARSE < near.size:
        parts = [
            np.vecdot(rows[i[at : at + BLOCK_ROWS]], columns[j[at : at + BLOCK_ROWS]])
            for at in range(0, len(i), BLOCK_ROWS)
        ]
        cosines = np.concatenate(parts)
    else:
        cosines = (rows @ columns.T)[i, j]
    keep = cosines >= threshold
    return i[keep], j[keep], cosines[keep]
