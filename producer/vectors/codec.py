"""Vectors as stored bytes, and the checks before they are stored. Format: docs/store.md."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import numpy as np

from producer.embedding import Space, Vectors, is_unit
from producer.errors import SpaceMismatch, StoreError
from producer.vectors.base import Row

DTYPE: Final = np.dtype("<f4")  # little-endian float32 on every machine


def first_version() -> int:
    """A random first version of a space, so that one that is created again never repeats a stamp."""
    return secrets.randbits(60)  # leaves 2**62 changes in a signed 64-bit number


def pack(vectors: Vectors) -> list[bytes]:
    """(N, dimension) float32 → N times 4 * dimension bytes."""
    matrix = np.ascontiguousarray(vectors, DTYPE)
    return [row.tobytes() for row in matrix]


def unpack(raw: bytes, dimension: int) -> Vectors:
    """4 * dimension bytes → (dimension,) float32; StoreError if they are not as many."""
    if len(raw) != dimension * DTYPE.itemsize:
        raise StoreError(f"a stored vector has {len(raw)} bytes, its space says {dimension * DTYPE.itemsize}")
    return np.frombuffer(raw, DTYPE).astype(np.float32)


def unpack_many(raws: Sequence[bytes], dimension: int) -> Vectors:
    """N times 4 * dimension bytes → (N, dimension) float32."""
    joined = b"".join(raws)
    if len(joined) != len(raws) * dimension * DTYPE.itemsize:
        raise StoreError(f"stored vectors do not all have the {dimension} numbers that their space says")
    return np.frombuffer(joined, DTYPE).astype(np.float32).reshape(len(raws), dimension)


def checked(space: Space, rows: Sequence[Row], vectors: Vectors) -> tuple[list[Row], Vectors]:
    """Rows and vectors as they may be stored: aligned, finite, of unit length, the last of each id.

    Raises:
        SpaceMismatch: the vectors' width is not the space's dimension.
        StoreError: anything else that would make a stored vector wrong.
    """
    if vectors.ndim != 2 or vectors.shape[1] != space.dimension:
        raise SpaceMismatch(f"vectors of shape {vectors.shape} do not belong to {space.id}: (N, {space.dimension})")
    if vectors.dtype != np.float32:
        raise StoreError(f"vectors must be float32, not {vectors.dtype}")
    if len(rows) != len(vectors):
        raise StoreError(f"{len(rows)} rows do not match {len(vectors)} vectors")
    for index in map(int, np.flatnonzero(~is_unit(vectors))):
        length = float(np.linalg.norm(vectors[index].astype(np.float64)))
        raise StoreError(f"the vector of {rows[index].id!r} has length {length:g}, not 1; it was not stored")
    for row in rows:
        try:
            row.id.encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"the id {row.id!a} is not Unicode text") from error
    last = {row.id: index for index, row in enumerate(rows)}
    kept = sorted(last.values())
    if len(kept) == len(rows):
        return list(rows), vectors
    return [rows[index] for index in kept], vectors[kept]
