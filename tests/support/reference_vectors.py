"""Reference vectors: each stored vector must equal the one that this process computes for its file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from producer.embedding import Vectors
from producer.vectors.base import Row, VectorStore
from worker.clip_embedder import CLIPEmbedder

TOLERANCE = 1e-5  # between a stored vector and its reference; other batch sizes differ by 5e-8


class ReferenceVectors:
    """The vectors of every content that each file has had, for several models."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._embedders: dict[str, CLIPEmbedder] = {}
        self._vectors: dict[tuple[str, str], Vectors] = {}  # (space, digest) → vector
        self._contents: dict[str, set[str]] = defaultdict(set)  # id → digests of all contents of its file

    def learn(self, model: str) -> None:
        """Add a model and its space."""
        embedder = CLIPEmbedder(model, "cpu", precision="fp32")
        self._embedders[embedder.space.id] = embedder

    def remember(self, names: Iterable[str]) -> None:
        """Record the current contents of the files; call it before they are replaced or deleted."""
        digests = {name: _digest(self._root / name) for name in names}
        for name, digest in digests.items():
            self._contents[name].add(digest)
        for space, embedder in self._embedders.items():
            new = {digest: name for name, digest in digests.items() if (space, digest) not in self._vectors}
            if new:
                result = embedder.embed_paths([self._root / name for name in new.values()], batch_size=64)
                known = [list(new)[index] for index in result.indices]
                self._vectors |= {(space, d): vector for d, vector in zip(known, result.vectors, strict=True)}

    def check(self, store: VectorStore, replaced: Collection[str] = ()) -> None:
        """Check every vector of every space; AssertionError names the first wrong one.

        Args:
            replaced: ids whose file changed meanwhile. Their row may be that of any earlier content of the
                file, if `index` can see by size and time that it is not the current one.
        """
        for info in store.spaces():
            for rows, vectors in store.read(info.space.id):
                self.remember(row.id for row in rows if (self._root / row.id).exists())
                for row, vector in zip(rows, vectors, strict=True):
                    self._check_row(row, row.id in replaced)
                    self._check_vector(info.space.id, row, vector)

    def _check_row(self, row: Row, replaced: bool) -> None:
        path = self._root / row.id
        if not path.exists():
            assert row.digest in self._contents[row.id], f"{row.id}: a vector of a content that its file never had"
            return
        stat, same = path.stat(), row.digest == _digest(path)
        if replaced:
            assert row.digest in self._contents[row.id], f"{row.id}: a vector of a content that its file never had"
            seen = not row.matches(stat.st_size, stat.st_mtime_ns)
            assert same or seen, f"{row.id}: an old vector that `index` considers current"
        else:
            assert same, f"{row.id}: its row has another digest than its file"
            assert row.bytes == stat.st_size, row

    def _check_vector(self, space: str, row: Row, vector: Vectors) -> None:
        distance = float(np.abs(self._vectors[space, row.digest] - vector).max())
        if distance > TOLERANCE:
            nearest = min(self._vectors, key=lambda key: float(np.abs(self._vectors[key] - vector).max()))
            whose = [name for name, digests in self._contents.items() if nearest[1] in digests]
            raise AssertionError(f"{row.id} in {space} is {distance:g} from its reference; nearest is {whose}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
