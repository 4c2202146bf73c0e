"""Stores that are filled without a model: vectors are drawn, and everything else is real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from producer.collection.catalogue import Catalogue, read_catalogue
from producer.embedding import Space, Vectors
from producer.vectors.base import Calibration, Row, VectorStore

SPACE = Space("ViT-B-32", "w1", "gelu", "224", 16)
OTHER = Space("ViT-L-14", "w2", "gelu", "224", 16)  # as wide: nothing but the space's id tells them apart


CALIBRATION = Calibration(0.9, 0.05, 0.6, 0.99, 0.01, 0, 300, 4500, 4000, 30, 300, 1.7e9)


def unit(count: int, dimension: int = SPACE.dimension, seed: int = 0) -> Vectors:
    """(count, dimension) float32 of unit length."""
    drawn = np.random.default_rng(seed).standard_normal((count, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def fill(
    store: VectorStore, ids: Sequence[str], vectors: Vectors | None = None, space: Space = SPACE, contents: str = ""
) -> Vectors:
    """Put posters in; ``contents`` has a letter for each, and equal letters are equal contents."""
    vectors = unit(len(ids), space.dimension) if vectors is None else vectors
    digests = contents or ids
    rows = [Row(name, f"digest-{digest}", 1000, 5) for name, digest in zip(ids, digests, strict=True)]
    store.put(space, rows, vectors, {"torch": "2.15.0", "device": "cpu", "precision": "fp32", "pretrained": "openai"})
    return vectors


def catalogue_of(folder: Path, *abouts: dict[str, Any]) -> Catalogue:
    """A catalogue as a user writes it: a file of entries."""
    path = folder / "posters.json"
    path.write_text(json.dumps(abouts), encoding="utf-8")
    return read_catalogue(path)
