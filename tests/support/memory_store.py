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
from producer.vectors.base import Calibration, Row, SpaceInfo, VectorStore
from producer.vectors.codec import checked, first_version


@dataclass
class _StoredSpace:
    space: Space
    created: float
    changed: float
    provenance: Mapping[str, str]
    version: int = field(default_factory=first_version)
    rows: dict[str, Row] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    stored: dict[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None

    def touch(self, now: float) -> None:
        self.version, self.changed = self.version + 1, now


class MemoryStore:
    """Keeps the contract of VectorStore in dictionaries. Safe to share between threads."""

    def __init__(self) -> None:
        """An empty store."""
        self._spaces: dict[str, _StoredSpace] = {}
        self._current: str | None = None
        self._lock = threading.Lock()

    def put(
        self,
        space: Space,
        rows: Sequence[Row],
        vectors: Vectors,
        provenance: Mapping[str, str] | None = None,
        *,
        seen: Mapping[str, Row] | None = None,
    ) -> None:
        rows, vectors = checked(space, rows, vectors)
        with self._lock:
            now = time.time()
            entry = self._spaces.setdefault(space.id, _StoredSpace(space, now, now, {}))
            entry.provenance = dict(provenance) if provenance is not None else entry.provenance
            self._current = self._current or space.id
            if rows:
                entry.touch(now)
            for row, vector in zip(rows, vectors, strict=True):
                if seen is not None and entry.rows.get(row.id) != seen.get(row.id):
                    continue
                entry.rows[row.id], entry.vectors[row.id] = row, vector.copy()
                entry.stored[row.id] = time.time()

    def get(self, space_id: str, ids: Sequence[str]) -> dict[str, Vectors]:
        with self._lock:
            entry = self._spaces.get(space_id)
            return {name: entry.vectors[name].copy() for name in ids if name in entry.vectors} if entry else {}

    def rows(self, space_id: str, ids: Sequence[str]) -> dict[str, Row]:
        with self._lock:
            entry = self._spaces.get(space_id)
            return {name: entry.rows[name] for name in ids if name in entry.rows} if entry else {}

    def stored(self, space_id: str, ids: Sequence[str]) -> dict[str, float]:
        with self._lock:
            entry = self._spaces.get(space_id)
            return {name: entry.stored[name] for name in ids if name in entry.stored} if entry else {}

    def by_content(self, space_id: str, digests: Sequence[str]) -> dict[str, Vectors]:
        with self._lock:
            entry = self._spaces.get(space_id)
            wanted = set(digests)
            rows = entry.rows.values() if entry else ()
            return {row.digest: entry.vectors[row.id].copy() for row in rows if entry and row.digest in wanted}

    def read(self, space_id: str, chunk: int = 8192) -> Iterator[tuple[list[Row], Vectors]]:
        with self._lock:
            entry = self._spaces.get(space_id)
            items = [(row, entry.vectors[name]) for name, row in entry.rows.items()] if entry else []
        for start in range(0, len(items), chunk):
            part = items[start : start + chunk]
            yield [row for row, _ in part], np.stack([vector for _, vector in part])

    def ids(self, space_id: str, chunk: int = 65536, prefix: str = "", after: str = "") -> Iterator[list[str]]:
        with self._lock:
            entry = self._spaces.get(space_id)
            names = sorted(name for name in entry.rows if name.startswith(prefix) and name > after) if entry else []
        for start in range(0, len(names), chunk):
            yield names[start : start + chunk]

    def count(self, space_id: str) -> int:
        with self._lock:
            entry = self._spaces.get(space_id)
            return len(entry.rows) if entry else 0

    def version(self, space_id: str) -> str:
        with self._lock:
            entry = self._spaces.get(space_id)
            return str(entry.version) if entry else ""

    def delete(self, space_id: str, ids: Sequence[str]) -> int:
        with self._lock:
            entry = self._spaces.get(space_id)
            gone = [name for name in dict.fromkeys(ids) if entry and name in entry.rows]
            for name in gone:
                assert entry is not None
                del entry.rows[name], entry.vectors[name], entry.stored[name]
            if entry and gone:
                entry.touch(time.time())
            return len(gone)

    def spaces(self) -> list[SpaceInfo]:
        with self._lock:
            return [
                SpaceInfo(
                    entry.space,
                    len(entry.rows),
                    len(entry.rows) * entry.space.dimension * 4,
                    entry.created,
                    entry.changed,
                    entry.provenance,
                    entry.calibration,
                )
                for entry in sorted(self._spaces.values(), key=lambda entry: entry.created)
            ]

    def current(self) -> str | None:
        return self._current

    def use(self, space_id: str) -> None:
        with self._lock:
            self._require_space(space_id)
            self._current = space_id

    def calibrate(self, space_id: str, calibration: Calibration | None) -> None:
        with self._lock:
            self._require_space(space_id)
            self._spaces[space_id].calibration = calibration

    def _require_space(self, space_id: str) -> None:
        if space_id not in self._spaces:
            raise StoreError(f"the store has no space {space_id!r}; it has: {', '.join(self._spaces) or 'none'}")

    def drop(self, space_id: str) -> int:
        with self._lock:
            entry = self._spaces.pop(space_id, None)
            if self._current == space_id:
                self._current = next(iter(self._spaces), None)
            return len(entry.rows) if entry else 0

    def check(self) -> str:
        """Memory can always be written."""
        return hex(id(self))

    def close(self) -> None:
        """Nothing to let go of."""


def open_one(request: pytest.FixtureRequest, path: Path) -> VectorStore:
    """The store that a fixture's parameter names: ``memory``, ``sqlite`` (at `path`) or ``redis``."""
    if request.param == "memory":
        return MemoryStore()
    return open_store(f"sqlite:{path}" if request.param == "sqlite" else request.getfixturevalue("redis_url"))
