"""A vector store in dictionaries, for tests that need no file and no server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from producer.embedding import Space, Vectors
from producer.errors import StoreError
from producer.vectors import open_store
from producer.vectors.base import Row, SpaceInfo, VectorStore
from producer.vectors.codec import checked, first_version


@dataclass
class _Held:
    space: Space
    created: float
    changed: float
    provenance: Mapping[str, str]
    version: int = field(default_factory=first_version)
    rows: dict[str, Row] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    stored: dict[str, float] = field(default_factory=dict)

    def touch(self, now: float) -> None:
        self.version, self.changed = self.version + 1, now


class MemoryStore:
    """Keeps the contract of VectorStore in dictionaries. Safe to share between threads."""

    def __init__(self) -> None:
        """An empty store."""
        self._spaces: dict[str, _Held] = {}
        self._current: str | None = None
        self._lock = threading.Lock()

    def put(
        self, space: Space, rows: Sequence[Row], vectors: Vectors, provenance: Mapping[str, str] | None = None
    ) -> None:
        rows, vectors = checked(space, rows, vectors)
        with self._lock:
            now = time.time()
            held = self._spaces.setdefault(space.id, _Held(space, now, now, {}))
            held.provenance = dict(provenance) if provenance is not None else held.provenance
            self._current = self._current or space.id
            if rows:
                held.touch(now)
            for row, vector in zip(rows, vectors, strict=True):
                held.rows[row.id], held.vectors[row.id] = row, vector.copy()
                held.stored[row.id] = time.time()

    def get(self, space_id: str, ids: Sequence[str]) -> dict[str, Vectors]:
        with self._lock:
            held = self._spaces.get(space_id)
            return {name: held.vectors[name].copy() for name in ids if name in held.vectors} if held else {}

    def rows(self, space_id: str, ids: Sequence[str]) -> dict[str, Row]:
        with self._lock:
            held = self._spaces.get(space_id)
            return {name: held.rows[name] for name in ids if name in held.rows} if held else {}

    def stored(self, space_id: str, ids: Sequence[str]) -> dict[str, float]:
        with self._lock:
            held = self._spaces.get(space_id)
            return {name: held.stored[name] for name in ids if name in held.stored} if held else {}

    def by_content(self, space_id: str, digests: Sequence[str]) -> dict[str, Vectors]:
        with self._lock:
            held = self._spaces.get(space_id)
            wanted = set(digests)
            rows = held.rows.values() if held else ()
            return {row.digest: held.vectors[row.id].copy() for row in rows if held and row.digest in wanted}

    def read(self, space_id: str, chunk: int = 8192) -> Iterator[tuple[list[Row], Vectors]]:
        with self._lock:
            held = self._spaces.get(space_id)
            items = [(row, held.vectors[name]) for name, row in held.rows.items()] if held else []
        for start in range(0, len(items), chunk):
            part = items[start : start + chunk]
            yield [row for row, _ in part], np.stack([vector for _, vector in part])

    def ids(self, space_id: str, chunk: int = 65536, prefix: str = "") -> Iterator[list[str]]:
        with self._lock:
            held = self._spaces.get(space_id)
            names = sorted(name for name in held.rows if name.startswith(prefix)) if held else []
        for start in range(0, len(names), chunk):
            yield names[start : start + chunk]

    def count(self, space_id: str) -> int:
        with self._lock:
            held = self._spaces.get(space_id)
            return len(held.rows) if held else 0

    def version(self, space_id: str) -> str:
        with self._lock:
            held = self._spaces.get(space_id)
            return str(held.version) if held else ""

    def delete(self, space_id: str, ids: Sequence[str]) -> int:
        with self._lock:
            held = self._spaces.get(space_id)
            gone = [name for name in dict.fromkeys(ids) if held and name in held.rows]
            for name in gone:
                assert held is not None
                del held.rows[name], held.vectors[name], held.stored[name]
            if held and gone:
                held.touch(time.time())
            return len(gone)

    def spaces(self) -> list[SpaceInfo]:
        with self._lock:
            return [
                SpaceInfo(
                    held.space,
                    len(held.rows),
                    len(held.rows) * held.space.dimension * 4,
                    held.created,
                    held.changed,
                    held.provenance,
                )
                for held in sorted(self._spaces.values(), key=lambda held: held.created)
            ]

    def current(self) -> str | None:
        return self._current

    def use(self, space_id: str) -> None:
        with self._lock:
            if space_id not in self._spaces:
                raise StoreError(f"the store has no space {space_id!r}; it has: {', '.join(self._spaces) or 'none'}")
            self._current = space_id

    def drop(self, space_id: str) -> int:
        with self._lock:
            held = self._spaces.pop(space_id, None)
            if self._current == space_id:
                self._current = next(iter(self._spaces), None)
            return len(held.rows) if held else 0

    def check(self) -> None:
        """Memory can always be written."""

    def close(self) -> None:
        """Nothing to let go of."""


def open_one(request: pytest.FixtureRequest, path: Path) -> VectorStore:
    """The store that a fixture's parameter names: ``memory``, ``sqlite`` (at `path`) or ``redis``."""
    if request.param == "memory":
        return MemoryStore()
    return open_store(f"sqlite:{path}" if request.param == "sqlite" else request.getfixturevalue("redis_url"))
