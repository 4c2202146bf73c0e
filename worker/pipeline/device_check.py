"""Checks the device with a known image among the others, and removes from the store what it may have got wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from producer.embedding import Vectors
from producer.errors import StoreError, WrongVectors
from producer.vectors.base import Row, VectorStore

if TYPE_CHECKING:
    from worker.model.parity import Canary
    from worker.pipeline.protocols import Embedder

CHECK_EVERY: Final = 2000  # images between two checks, which cost as much as one image
logger = logging.getLogger(__name__)


class DeviceCheck:
    """Stores rows, and removes those since the last check where the device fails the next. Threads may share it."""

    def __init__(self, embedder: Embedder, store: VectorStore) -> None:
        """Note nothing yet; `store` is the caller's to close."""
        self._embedder, self._store = embedder, store
        self.passed, self.passed_at = 0, 0.0  # checks, and when the last one was, seconds since 1970
        self._since = CHECK_EVERY  # images since the last check: the first chunk has one
        self._ids: dict[str, set[str]] = {}  # digest → ids of the rows that have its vector
        self._noting, self._storing = threading.Lock(), threading.Lock()  # the second is held while the store writes
        self._error: WrongVectors | None = None

    def due(self, images: int) -> Canary | None:
        """The known image, where it is to follow so many images of a chunk: a check is due, and there is room."""
        canary = self._embedder.canary
        with self._noting:
            self._since += images
            if canary is None or self._since < CHECK_EVERY or images >= max(2, self._embedder.chunk):
                return None
            self._since = 0
        return canary

    def check(self, canary: Canary, vector: Vectors) -> None:
        """Compare the vector that the device gave for the known image now; raises WrongVectors."""
        if problem := canary.problem(vector):
            raise WrongVectors(problem)
        with self._noting:
            self._ids = {}
            self.passed, self.passed_at = self.passed + 1, time.time()

    def note(self, rows: Sequence[Row]) -> None:
        """Note rows that are about to be stored, of vectors that the device has computed."""
        with self._noting:
            for row in rows:
                self._ids.setdefault(row.digest, set()).add(row.id)

    def note_copies(self, rows: Sequence[Row]) -> None:
        """Note those of the rows whose vectors, found in the store, may have been computed since the last check."""
        with self._noting:
            for row in rows:
                if row.digest in self._ids:
                    self._ids[row.digest].add(row.id)

    def put(self, rows: Sequence[Row], vectors: Vectors, seen: Mapping[str, Row]) -> None:
        """Store rows; raises StoreError, and WrongVectors once the device was found to be wrong."""
        with self._storing:
            if self._error is not None:
                raise self._error
            self._store.put(self._embedder.space, rows, vectors, self._embedder.provenance, seen=seen)

    def remove(self, error: WrongVectors) -> None:
        """Remove what may be wrong, and store nothing any more; says in the log what was removed, or stays."""
        with self._storing, self._noting:
            if self._error is not None:
                return
            self._error = error
            doubtful = list(dict.fromkeys(name for names in self._ids.values() for name in names))
            try:
                removed = self._store.delete(self._embedder.space.id, doubtful)
            except StoreError as failure:
                logger.critical(
                    "%s; %d vectors since the last check may be wrong, and stay: %s", error, len(doubtful), failure
                )
            else:
                logger.critical("%s; %d vectors since the last check are removed: run `index` again", error, removed)
