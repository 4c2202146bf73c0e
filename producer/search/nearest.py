"""Exact nearest neighbors: which posters look like these vectors? In one pass over the store, nothing held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from producer.collection.catalogue import Catalogue
from producer.embedding import Vectors, space_of
from producer.errors import SpaceMismatch
from producer.vectors.base import VectorStore


class Match(NamedTuple):
    """A poster that looks like the query.

    Attributes:
        id: the poster's id.
        score: cosine to the query, from -1 to 1.
        about: what the catalogue says of it, `file` and `title` among it; empty where nobody looked.
    """

    id: str
    score: float
    about: Mapping[str, Any] = MappingProxyType({})


def nearest(store: VectorStore, space_id: str, queries: Vectors, k: int = 5) -> list[list[Match]]:
    """For each query the `k` posters of the space with the highest cosine, best first.

    Reads the whole space once in constant memory; ties go to the smaller id.

    Args:
        queries: (n, dimension) float32, unit length, made in the same space.

    Raises:
        SpaceMismatch: the queries are of another space, or not as wide as the space's vectors.
    """
    require_space(queries, space_id)
    return sweep((([row.id for row in rows], matrix) for rows, matrix in store.read(space_id)), queries, k, space_id)


def sweep(
    blocks: Iterable[tuple[Sequence[str], Vectors]], queries: Vectors, k: int, space_id: str
) -> list[list[Match]]:
    """The `k` best matches of each query over blocks of ids and vectors (n, dimension), each looked at once."""
    best: list[list[Match]] = [[] for _ in queries]
    for ids, matrix in blocks:
        require_width(queries, matrix.shape[1], space_id)
        for found, scores in zip(best, (matrix @ np.asarray(queries).T).T, strict=True):
            found.extend(Match(ids[i], float(scores[i])) for i in highest(scores, k))
            found[:] = first(found, k)
    return best


def highest(scores: Vectors, k: int) -> Sequence[int]:
    """Positions of the `k` highest scores (n,) and of all that equal the last of them, in no order."""
    count = len(scores)
    if k >= count:
        return range(count)
    least = np.partition(scores, count - k)[count - k]
    return [int(position) for position in np.flatnonzero(scores >= least)]


def first(matches: Sequence[Match], k: int) -> list[Match]:
    """The `k` best, best first; ties go to the smaller id."""
    return nsmallest(k, matches, key=lambda match: (-match.score, match.id))


def described(matches: Iterable[Match], catalogue: Catalogue) -> list[Match]:
    """The same matches with what the catalogue says of each; a poster that it does not name has its id as its file."""
    return [match._replace(about=about(match.id, catalogue)) for match in matches]


def about(poster: str, catalogue: Catalogue) -> Mapping[str, Any]:
    """Every key of the poster's entry, and its `file` under the posters root in any case."""
    entry = catalogue.by_id([poster]).get(poster)
    return {**entry.about, "file": entry.file} if entry else {"file": poster}


def title_of(match: Match) -> str:
    """The title that the catalogue gives; empty where it gives none."""
    return str(match.about.get("title", ""))


def require_space(queries: Vectors, space_id: str) -> None:
    """SpaceMismatch where the queries say that they are of another space."""
    told = space_of(queries)
    if told not in (None, space_id):
        raise SpaceMismatch(f"the query is of the space {told} and cannot be compared with vectors of {space_id}")


def require_width(queries: Vectors, dimension: int, space_id: str) -> None:
    """SpaceMismatch where the queries have another number of numbers."""
    if queries.shape[1] != dimension:
        raise SpaceMismatch(f"the queries have {queries.shape[1]} numbers, vectors of {space_id} have {dimension}")
