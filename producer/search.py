"""Exact nearest neighbours in the store: which posters look like these vectors?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worker.errors import SpaceMismatch
from worker.vectors import Vectors, VectorStore


class Match(NamedTuple):
    """A poster and its cosine to the query, from -1 to 1."""

    id: str
    score: float


def nearest(store: VectorStore, space_id: str, queries: Vectors, k: int = 5) -> list[list[Match]]:
    """For each query the `k` posters of the space with the highest cosine, best first.

    Reads the whole space once in constant memory; ties go to the smaller id.

    Args:
        queries: (n, dimension) float32, unit length, made in the same space.

    Raises:
        SpaceMismatch: the queries are not as wide as the space's vectors.
    """
    best: list[list[Match]] = [[] for _ in queries]
    for ids, matrix in store.scan(space_id):
        if matrix.shape[1] != queries.shape[1]:
            raise SpaceMismatch(
                f"the queries have {queries.shape[1]} numbers, vectors of {space_id} have {matrix.shape[1]}"
            )
        scores = queries @ matrix.T
        most = min(k, len(ids))
        for row, found in enumerate(np.argpartition(-scores, most - 1, axis=1)[:, :most]):
            best[row].extend(Match(ids[i], float(scores[row, i])) for i in found)
            best[row].sort(key=lambda match: (-match.score, match.id))
            del best[row][k:]
    return best
