"""Snapshots: a space loaded into memory, reloaded only when the store or the catalogue has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from producer.collection.catalogue import Catalogue, open_catalogue
from producer.embedding import Space, Vectors
from producer.maintenance.spaces import find_space
from producer.settings import Settings
from producer.vectors.base import SpaceInfo, VectorStore


@dataclass(frozen=True)
class Snapshot:
    """The content of a space at one moment; replaced as a whole, never modified.

    Attributes:
        space: which it is; None while the store holds none.
        stamp: the store's version of the space before it was read, so that a later change shows.
        ids: row i of the matrix belongs to id i.
        matrix: float32 (n, dimension), read-only.
        catalogue: of that time.
        info: what the store said of the space: its calibration, its vectors' number.
        seconds: how long loading took.
    """

    space: Space | None = None
    stamp: str = ""
    ids: tuple[str, ...] = ()
    matrix: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(None))
    info: SpaceInfo | None = None
    seconds: float = 0.0


def load_if_changed(snapshot: Snapshot, store: VectorStore, settings: Settings, name: str | None) -> Snapshot:
    """What the store holds now; `snapshot` itself when nothing has changed.

    Args:
        name: the space that is wanted, or its beginning; None: the store's current one.
    """
    if name is None and store.current() is None:
        return Snapshot() if snapshot.space else snapshot
    info = find_space(store, name)
    space, before = info.space, snapshot.info
    stamp, catalogue, began = store.version(space.id), snapshot.catalogue, time.monotonic()
    if snapshot.space is None or not catalogue.is_current():
        catalogue = open_catalogue(settings)
    if (snapshot.space, snapshot.stamp) != (space, stamp):
        ids, matrix = load(store, space)
    elif catalogue is not snapshot.catalogue or before is None or info.calibration != before.calibration:
        ids, matrix = snapshot.ids, snapshot.matrix
    else:
        return snapshot
    return Snapshot(space, stamp, ids, matrix, catalogue, info, time.monotonic() - began)


def load(store: VectorStore, space: Space) -> tuple[tuple[str, ...], Vectors]:
    """A whole space: ids, and a read-only float32 (n, dimension), in the order of VectorStore.read."""
    ids: list[str] = []
    matrix = np.empty((store.count(space.id), space.dimension), np.float32)
    for rows, part in store.read(space.id):
        stop = len(ids) + len(rows)
        if stop > len(matrix):  # rows were added since they were counted
            more = max(stop - len(matrix), len(matrix) // 8)
            matrix = np.concatenate([matrix, np.empty((more, space.dimension), np.float32)])
        matrix[len(ids) : stop] = part
        ids.extend(row.id for row in rows)
    whole = matrix[: len(ids)]
    whole.flags.writeable = False
    return tuple(ids), whole
