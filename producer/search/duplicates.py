"""Duplicate posters: groups of identical files, and of vectors above a cosine threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from producer.embedding import Vectors
from producer.errors import ConfigurationError
from producer.search.similar_pairs import Pairs, Positions, similar_pairs
from producer.vectors.base import SpaceInfo, VectorStore

MAX_PAIRS: Final = 10_000_000  # 120 MB, and four times that while they are sorted
MAX_LARGEST: Final = 1000  # steps of a pass over all vectors each: minutes for a million


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
        ConfigurationError: the threshold is so low that nearly everything is near to everything.
    """
    contents, vectors = _distinct(store, info, with_vectors=threshold is not None)
    rank = np.empty(len(contents), np.int64)  # of each content by id: breaks ties
    rank[sorted(range(len(contents)), key=lambda i: contents[i].ids[0])] = np.arange(len(contents))
    clusters: list[Cluster] = []
    if threshold is not None:
        clusters = _Clustering(vectors, threshold, rank).run(on_pairs)
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


class _Clustering:
    """Greedy clusters around the content with the most free neighbors, as find_duplicates describes."""

    def __init__(self, vectors: Vectors, threshold: float, rank: npt.NDArray[np.int64]) -> None:
        self._vectors, self._threshold, self._rank = vectors, threshold, rank
        self._clusters: list[Cluster] = []
        self._cluster_of: dict[int, int] = {}

    def run(self, on_pairs: Callable[[int], None]) -> list[Cluster]:
        """The clusters. Where there are too many pairs to hold, the largest ones are formed without."""
        counts = np.zeros(len(self._vectors), np.int64)
        kept: list[Pairs] = []
        pairs = 0
        for found in similar_pairs(self._vectors, self._threshold, on_pairs):
            for ends in found[:2]:
                np.add.at(counts, ends, 1)
            pairs += len(found[0])
            if pairs <= MAX_PAIRS:
                kept.append(found)
            else:
                kept.clear()
        if pairs > MAX_PAIRS:
            self._cluster_largest(counts)
            kept = list(self._pairs_of_free_ones(on_pairs))
        if any(len(i) for i, _, _ in kept):
            self._cluster(_Neighbors(*map(np.concatenate, zip(*kept, strict=True))))
        return self._clusters

    def _cluster_largest(self, counts: npt.NDArray[np.int64]) -> None:
        """Cluster until no more than MAX_PAIRS are left of those that are in no cluster yet."""
        left = int(counts.sum())
        for number, end in enumerate(self._by_count(np.flatnonzero(counts), counts[counts > 0])):
            if left <= MAX_PAIRS:
                return
            if number > MAX_LARGEST:
                raise ConfigurationError(
                    f"nearly all posters have a cosine of {self._threshold:g} or more with others: raise --threshold"
                )
            if end in self._cluster_of:
                continue
            cosines = self._vectors @ self._vectors[end]
            near = np.flatnonzero(cosines >= self._threshold).tolist()
            neighbors = [(other, float(cosines[other])) for other in near if other != end]
            before = len(self._cluster_of)
            if not self._begin_cluster(end, neighbors) and neighbors:
                self._join_cluster(end, neighbors)
            left -= int(counts[list(islice(reversed(self._cluster_of), len(self._cluster_of) - before))].sum())

    def _pairs_of_free_ones(self, on_pairs: Callable[[int], None]) -> Iterator[Pairs]:
        """The pairs again, of which one at least is in no cluster yet."""
        is_free = np.ones(len(self._vectors), np.bool_)
        is_free[list(self._cluster_of)] = False
        for i, j, cosines in similar_pairs(self._vectors, self._threshold, on_pairs):
            keep = is_free[i] | is_free[j]
            yield i[keep], j[keep], cosines[keep]

    def _cluster(self, neighbors: _Neighbors) -> None:
        left_over = []
        for end in self._by_count(neighbors.ends, neighbors.counts):
            if end not in self._cluster_of and not self._begin_cluster(end, neighbors.of(end)):
                left_over.append(end)
        for end in left_over:  # all of its neighbors are in clusters, so none of them is left over
            self._join_cluster(end, neighbors.of(end))

    def _by_count(self, ends: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> list[int]:
        """Those with the most neighbors first."""
        order: list[int] = ends[np.lexsort((self._rank[ends], -counts))].tolist()
        return order

    def _begin_cluster(self, end: int, neighbors: Sequence[tuple[int, float]]) -> bool:
        """Form a cluster of `end` and its free neighbors; False where it has none."""
        taken = [(other, cosine, end) for other, cosine in neighbors if other not in self._cluster_of]
        if not taken:
            return False
        taken.sort(key=lambda member: (-member[1], self._rank[member[0]]))
        self._clusters.append([(end, 1.0, end), *taken])
        self._cluster_of.update((member, len(self._clusters) - 1) for member, _, _ in self._clusters[-1])
        return True

    def _join_cluster(self, end: int, neighbors: Sequence[tuple[int, float]]) -> None:
        """Add `end` to the cluster of its nearest neighbor."""
        nearest, _ = max(neighbors, key=lambda found: (found[1], -self._rank[found[0]]))
        number = self._cluster_of[nearest]
        first = self._clusters[number][0][0]
        self._clusters[number].append((end, float(self._vectors[end] @ self._vectors[first]), nearest))
        self._cluster_of[end] = number


def _members(cluster: Cluster, contents: Sequence[_Content]) -> Iterable[Member]:
    for i, score, near_to in cluster:
        content = contents[i]
        yield Member(content.ids[0], min(score, 1.0), False, contents[near_to].ids[0], content.size)
        for copy in content.ids[1:]:
            yield Member(copy, min(score, 1.0), True, content.ids[0], content.size)
