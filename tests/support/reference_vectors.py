"""What each stored vector must be: the one that the model gives, in this process, for the bytes of its own file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from producer.embedding import Vectors
from producer.vectors.base import Row, VectorStore
from worker.clip_embedder import CLIPEmbedder

SAME = 1e-5  # between a stored vector and its reference; batches of other sizes differ by 5e-8


class ReferenceVectors:
    """Knows the models, every content that a file has had, and the vector of each."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._embedders: dict[str, CLIPEmbedder] = {}
        self._vectors: dict[tuple[str, str], Vectors] = {}  # (space, digest) → vector
        self._had: dict[str, set[str]] = defaultdict(set)  # id → digests of all that its file has been

    def learn(self, model: str) -> None:
        """Make a model known, for the space that it makes."""
        embedder = CLIPEmbedder(model, "cpu", precision="fp32")
        self._embedders[embedder.space.id] = embedder

    def remember(self, names: Iterable[str]) -> None:
        """Take note of what the files hold now; to be called before they are replaced or deleted."""
        digests = {name: _digest(self._root / name) for name in names}
        for name, digest in digests.items():
            self._had[name].add(digest)
        for space, embedder in self._embedders.items():
            new = {digest: name for name, digest in digests.items() if (space, digest) not in self._vectors}
            if new:
                result = embedder.embed_paths([self._root / name for name in new.values()], batch_size=64)
                known = [list(new)[index] for index in result.indices]
                self._vectors |= {(space, d): vector for d, vector in zip(known, result.vectors, strict=True)}

    def check(self, store: VectorStore, replaced: Collection[str] = ()) -> None:
        """Every vector of every space; AssertionError names the first that is not what it must be.

        Args:
            replaced: ids whose file changed meanwhile. Their row may be that of any content which this
                very file has had, if `index` will see by size and time that it is not the present one.
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
            assert row.digest in self._had[row.id], f"{row.id}: a vector of bytes that its file never had"
            return
        stat, same = path.stat(), row.digest == _digest(path)
        if replaced:
            assert row.digest in self._had[row.id], f"{row.id}: a vector of bytes that its file never had"
            seen = (row.size, row.mtime_ns) != (stat.st_size, stat.st_mtime_ns)
            assert same or seen, f"{row.id}: an old vector that `index` takes for the present one"
        else:
            assert same, f"{row.id}: its row speaks of other bytes than its file holds"
            assert row.size == stat.st_size, row

    def _check_vector(self, space: str, row: Row, vector: Vectors) -> None:
        distance = float(np.abs(self._vectors[space, row.digest] - vector).max())
        if distance > SAME:
            nearest = min(self._vectors, key=lambda key: float(np.abs(self._vectors[key] - vector).max()))
            whose = [name for name, digests in self._had.items() if nearest[1] in digests]
            raise AssertionError(f"{row.id} in {space} is {distance:g} from its reference; nearest is {whose}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
