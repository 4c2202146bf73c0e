"""Duplicate posters: groups of identical files, and of vectors above a cosine threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from producer.embedding import Vectors
from producer.search.similar_pairs import Positions, similar_pairs
from producer.vectors.base import SpaceInfo, VectorStore


class Member(NamedTuple):
    """A poster of a group.

    Attributes:
        id: the poster's id.
        score: cosine to the group's first poster; 1 for that itself.
        same_content: its file has the same bytes as that of `near_to`.
        near_to: the poster of the group for which it is in the group; its own id for the first.
        bytes: size of its file.
    """

    id: str
    score: float
    same_content: bool
    near_to: str
    bytes: int


@dataclass(frozen=True)
class Duplicates:
    """The groups, the largest first, and how many posters were compared."""

    groups: Sequence[Sequence[Member]]
    posters: int


class _Content(NamedTuple):
    """A file content and the posters that have it, ids ascending."""

    ids: list[str]
    size: int


def find_duplicates(
    store: VectorStore, info: SpaceInfo, threshold: float | None, on_pairs: Callable[[int], None] = lambda done: None
) -> Duplicates:
    """Group the posters of one space.

    A group is a poster and all that are nearer to it than the threshold: of the posters that are in no group
    yet, the one with the most such neighbors comes first, and takes them along. What is then left over and has
    a neighbor in a group joins that group. So everything that has a near neighbor is in exactly one group, and
    no chain of small steps leads farther than two.

    Args:
        threshold: cosine; None: only posters of the same content; no vectors are compared.
        on_pairs: as similar_pairs calls it.

    Raises:
        ConfigurationError: the threshold is so low that there are too many pairs.
    """
    contents, vectors = _distinct(store, info, with_vectors=threshold is not None)
    rank = np.empty(len(contents), np.int64)  # of each content by id: breaks ties
    rank[sorted(range(len(contents)), key=lambda i: contents[i].ids[0])] = np.arange(len(contents))
    clusters: list[Cluster] = []
    if threshold is not None:
        clusters = _cluster(_Neighbors(*similar_pairs(vectors, threshold, on_pairs)), vectors, rank)
    near = {i for cluster in clusters for i, _, _ in cluster}
    clusters += [[(i, 1.0, i)] for i, content in enumerate(contents) if len(content.ids) > 1 and i not in near]
    groups = [list(_members(cluster, contents)) for cluster in clusters]
    groups.sort(key=lambda group: (-len(group), group[0].id))
    return Duplicates(groups, sum(len(content.ids) for content in contents))


Cluster = list[tuple[int, float, int]]  # (content, cosine to the first, the content it is near to)


def _distinct(store: VectorStore, info: SpaceInfo, *, with_vectors: bool) -> tuple[list[_Content], Vectors]:
    """Every content once, with one vector: equal bytes have equal vectors and need no comparison."""
    vectors = np.empty((info.count if with_vectors else 0, info.space.dimension), np.float32)
    contents: list[_Content] = []
    known: dict[str, int] = {}
    for rows, part in store.read(info.space.id):
        fresh = []
        for i, row in enumerate(rows):
            if (position := known.setdefault(row.digest, len(contents))) == len(contents):
                contents.append(_Content([row.id], row.size))
                fresh.append(i)
            else:
                contents[position].ids.append(row.id)
        if with_vectors:
            start, stop = len(contents) - len(fresh), len(contents)
            if stop > len(vectors):  # rows were added since they were counted
                vectors = np.concatenate([vectors, np.empty((stop - len(vectors), info.space.dimension), np.float32)])
            vectors[start:stop] = part[fresh]
    for content in contents:
        content.ids.sort()
    return contents, vectors[: len(contents)]


class _Neighbors:
    """The near pairs, indexed by both of their ends."""

    def __init__(self, i: Positions, j: Positions, cosines: Vectors) -> None:
        ends = np.concatenate([i, j])
        order = np.argsort(ends, kind="stable")
        self._others = np.concatenate([j, i])[order]
        self._cosines = np.concatenate([cosines, cosines])[order]
        self.ends, self._starts, self.counts = np.unique(ends[order], return_index=True, return_counts=True)
        self._at = {end: i for i, end in enumerate(self.ends.tolist())}

    def of(self, end: int) -> list[tuple[int, float]]:
        """The neighbors of one content, with their cosines."""
        start = self._starts[self._at[end]]
        stop = start + self.counts[self._at[end]]
        return list(zip(self._others[start:stop].tolist(), self._cosines[start:stop].tolist(), strict=True))


def _cluster(neighbors: _Neighbors, vectors: Vectors, rank: npt.NDArray[np.int64]) -> list[Cluster]:
    """Greedy clusters around the content with the most free neighbors, as find_duplicates describes."""
    clusters: list[Cluster] = []
    cluster_of: dict[int, int] = {}
    left_over = []
    by_count = np.lexsort((rank[neighbors.ends], -neighbors.counts))
    for end in neighbors.ends[by_count].tolist():
        if end in cluster_of:
            continue
        taken = [(other, cosine, end) for other, cosine in neighbors.of(end) if other not in cluster_of]
        if not taken:
            left_over.append(end)
            continue
        taken.sort(key=lambda member: (-member[1], rank[member[0]]))
        clusters.append([(end, 1.0, end), *taken])
        cluster_of.update((member, len(clusters) - 1) for member, _, _ in clusters[-1])
    for end in left_over:  # all of its neighbors are in clusters, so none of them is left over
        nearest, _ = max(neighbors.of(end), key=lambda found: (found[1], -rank[found[0]]))
        cluster = clusters[cluster_of[nearest]]
        cluster.append((end, float(vectors[end] @ vectors[cluster[0][0]]), nearest))
    return clusters


def _members(cluster: Cluster, contents: Sequence[_Content]) -> Iterable[Member]:
    for i, score, near_to in cluster:
        content = contents[i]
        yield Member(content.ids[0], min(score, 1.0), False, contents[near_to].ids[0], content.size)
        for copy in content.ids[1:]:
            yield Member(copy, min(score, 1.0), True, content.ids[0], content.size)
