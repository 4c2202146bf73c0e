"""Exact nearest-neighbor search in one pass over the store, in constant memory."""

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
    """A search result.

    Attributes:
        id: the poster's id.
        score: cosine to the query, from -1 to 1.
        about: its catalogue entry, with `file`; empty when the catalogue was not consulted.
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
    if (tagged := space_of(queries)) not in (None, space_id):
        raise SpaceMismatch(f"the query is of the space {tagged} and cannot be compared with vectors of {space_id}")
    blocks = (([row.id for row in rows], matrix) for rows, matrix in store.read(space_id))
    return search_blocks(blocks, queries, k, space_id)


def search_blocks(
    blocks: Iterable[tuple[Sequence[str], Vectors]], queries: Vectors, k: int, space_id: str
) -> list[list[Match]]:
    """The `k` best matches of each query over blocks of ids and vectors (n, dimension), each read once."""
    best: list[list[Match]] = [[] for _ in queries]
    for ids, matrix in blocks:
        require_width(queries, matrix.shape[1], space_id)
        for found, scores in zip(best, (matrix @ np.asarray(queries).T).T, strict=True):
            found.extend(Match(ids[i], float(scores[i])) for i in top_positions(scores, k))
            found[:] = best_matches(found, k)
    return best


def top_positions(scores: Vectors, k: int) -> Sequence[int]:
    """Positions of the `k` highest scores (n,) and of all that tie with the last of them, unordered."""
    count = len(scores)
    if k >= count:
        return range(count)
    least = np.partition(scores, count - k)[count - k]
    return [int(position) for position in np.flatnonzero(scores >= least)]


def best_matches(matches: Sequence[Match], k: int) -> list[Match]:
    """The `k` best, best first; ties go to the smaller id."""
    return nsmallest(k, matches, key=lambda match: (-match.score, match.id))


def with_metadata(matches: Iterable[Match], catalogue: Catalogue) -> list[Match]:
    """The same matches with their catalogue entries as `about`."""
    return [match._replace(about=metadata_of(match.id, catalogue)) for match in matches]


def metadata_of(poster: str, catalogue: Catalogue) -> Mapping[str, Any]:
    """The poster's catalogue entry; without one, its id as `file`."""
    entry = catalogue.by_id([poster]).get(poster)
    return {**entry.about, "file": entry.file} if entry else {"file": poster}


def title_of(match: Match) -> str:
    """The catalogue's title; empty when there is none."""
    return str(match.about.get("title", ""))


def require_width(queries: Vectors, dimension: int, space_id: str) -> None:
    """Raise SpaceMismatch if the queries have another dimension."""
    if queries.shape[1] != dimension:
        raise SpaceMismatch(f"the queries have {queries.shape[1]} numbers, vectors of {space_id} have {dimension}")
