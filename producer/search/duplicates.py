"""Which posters are the same? Groups of one content, and of vectors nearer than a threshold."""

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
        same_content: its file has the very bytes of `near_to`'s.
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
    """A file's content, and all posters that have it: ids ascending."""

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
        threshold: cosine; None: only posters of the same content, which takes no comparing.
        on_pairs: as near_pairs calls it.

    Raises:
        ConfigurationError: the threshold is so low that nearly everything is near to everything.
    """
    contents, vectors = _distinct(store, info, with_vectors=threshold is not None)
    place = np.empty(len(contents), np.int64)  # of a content in the order of ids, which breaks ties
    place[sorted(range(len(contents)), key=lambda at: contents[at].ids[0])] = np.arange(len(contents))
    stars: list[Star] = []
    if threshold is not None:
        stars = _clusters(_Neighbors(*similar_pairs(vectors, threshold, on_pairs)), vectors, place)
    near = {at for star in stars for at, _, _ in star}
    stars += [[(at, 1.0, at)] for at, content in enumerate(contents) if len(content.ids) > 1 and at not in near]
    groups = [list(_members(star, contents)) for star in stars]
    groups.sort(key=lambda group: (-len(group), group[0].id))
    return Duplicates(groups, sum(len(content.ids) for content in contents))


Star = list[tuple[int, float, int]]  # (content, cosine to the first, the one that it is near to)


def _distinct(store: VectorStore, info: SpaceInfo, *, with_vectors: bool) -> tuple[list[_Content], Vectors]:
    """Every content once, with one vector of it: equal bytes have equal vectors, and need no comparing."""
    vectors = np.empty((info.count if with_vectors else 0, info.space.dimension), np.float32)
    contents: list[_Content] = []
    known: dict[str, int] = {}
    for rows, part in store.read(info.space.id):
        fresh = []
        for at, row in enumerate(rows):
            if (place := known.setdefault(row.digest, len(contents))) == len(contents):
                contents.append(_Content([row.id], row.size))
                fresh.append(at)
            else:
                contents[place].ids.append(row.id)
        if with_vectors:
            start, stop = len(contents) - len(fresh), len(contents)
            if stop > len(vectors):  # more came since they were counted
                vectors = np.concatenate([vectors, np.empty((stop - len(vectors), info.space.dimension), np.float32)])
            vectors[start:stop] = part[fresh]
    for content in contents:
        content.ids.sort()
    return contents, vectors[: len(contents)]


class _Neighbors:
    """The near pairs, by each of their ends."""

    def __init__(self, i: Positions, j: Positions, cosines: Vectors) -> None:
        ends = np.concatenate([i, j])
        order = np.argsort(ends, kind="stable")
        self._others = np.concatenate([j, i])[order]
        self._cosines = np.concatenate([cosines, cosines])[order]
        self.ends, self._starts, self.counts = np.unique(ends[order], return_index=True, return_counts=True)
        self._at = {end: at for at, end in enumerate(self.ends.tolist())}

    def of(self, end: int) -> list[tuple[int, float]]:
        """The neighbors of one, with their cosines."""
        start = self._starts[self._at[end]]
        stop = start + self.counts[self._at[end]]
        return list(zip(self._others[start:stop].tolist(), self._cosines[start:stop].tolist(), strict=True))


def _clusters(neighbors: _Neighbors, vectors: Vectors, place: npt.NDArray[np.int64]) -> list[Star]:
    """See find_duplicates."""
    stars: list[Star] = []
    star_of: dict[int, int] = {}
    left_over = []
    most_first = np.lexsort((place[neighbors.ends], -neighbors.counts))
    for end in neighbors.ends[most_first].tolist():
        if end in star_of:
            continue
        taken = [(other, cosine, end) for other, cosine in neighbors.of(end) if other not in star_of]
        if not taken:
            left_over.append(end)
            continue
        taken.sort(key=lambda member: (-member[1], place[member[0]]))
        stars.append([(end, 1.0, end), *taken])
        star_of.update((member, len(stars) - 1) for member, _, _ in stars[-1])
    for end in left_over:  # all neighbors of each are taken, and it is no neighbor of another one left over
        nearest, _ = max(neighbors.of(end), key=lambda found: (found[1], -place[found[0]]))
        star = stars[star_of[nearest]]
        star.append((end, float(vectors[end] @ vectors[star[0][0]]), nearest))
    return stars


def _members(star: Star, contents: Sequence[_Content]) -> Iterable[Member]:
    for at, score, near_to in star:
        content = contents[at]
        yield Member(content.ids[0], min(score, 1.0), False, contents[near_to].ids[0], content.size)
        for copy in content.ids[1:]:
            yield Member(copy, min(score, 1.0), True, content.ids[0], content.size)
