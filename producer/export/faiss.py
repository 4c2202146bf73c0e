"""FAISS indexes of a space: inner product (the cosine of unit vectors), numbered by position in a list of ids."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from producer.embedding import Vectors
from producer.errors import ConfigurationError
from producer.export.source import Source, library_required

KINDS: Final = ("auto", "flat", "ivf", "hnsw")
# Flat is exact and needs no training; each query reads all vectors, about 0.1 s and 2 GB for a million of 512
# numbers. Above that, IVF probes only some of its cells; HNSW answers faster still, but takes ten times as long
# to build and more memory.
MAX_FLAT_VECTORS: Final = 1_000_000
CELLS_PER_ROOT: Final = 4  # cells of IVF = 4 * sqrt(n), as FAISS's guidelines advise up to a few millions
TRAINING_VECTORS_PER_CELL: Final = 40  # FAISS warns below 39


def write_index(source: Source, folder: Path, kind: str, on_rows: Callable[[int], None]) -> tuple[int, str]:
    """Write ``posters.faiss`` and ``ids.json``; returns the number of rows and the kind chosen.

    FAISS's number of a poster is its position in the list of ids.

    Raises:
        ConfigurationError: faiss is not installed, or there are too few vectors to train the cells of IVF.
        OSError: the folder cannot be written.
    """
    faiss = _faiss()
    dimension, count = source.info.space.dimension, source.store.count(source.info.space.id)
    if kind == "auto":
        kind = "flat" if count <= MAX_FLAT_VECTORS else "ivf"
    index = _create_index(faiss, kind, source, dimension, count)
    rows = 0
    with (folder / "ids.json").open("w", encoding="utf-8") as ids:
        for part, matrix in source.blocks():
            index.add_with_ids(np.ascontiguousarray(matrix), np.arange(rows, rows + len(part)))
            ids.writelines(f"{',' if rows + at else '['}\n{json.dumps(row.id)}" for at, row in enumerate(part))
            rows += len(part)
            on_rows(len(part))
        ids.write("\n]\n" if rows else "[]\n")
    with (folder / "posters.faiss").open("wb") as file:
        # FAISS's own file writer only logs an error on close: on a full disk the end would be missing
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, 1 << 20))
    return rows, kind


def _create_index(faiss: Any, kind: str, source: Source, dimension: int, count: int) -> Any:
    if kind == "flat":
        return faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)  # links of each vector
        graph.hnsw.efConstruction, graph.hnsw.efSearch = 80, 128
        return faiss.IndexIDMap2(graph)
    cells = min(int(CELLS_PER_ROOT * math.sqrt(count)), count // TRAINING_VECTORS_PER_CELL)
    if cells < 1:
        raise ConfigurationError(f"{count} vectors are too few for the cells of IVF: use --index flat")
    index = faiss.index_factory(dimension, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).cp.spherical = True  # the centers, too, have unit length
    index.train(_sample(source, count, TRAINING_VECTORS_PER_CELL * cells))
    index.nprobe = min(cells, max(8, cells // 32))  # how many cells a query reads
    return index


def _sample(source: Source, count: int, wanted: int) -> Vectors:
    """At least `wanted` vectors, evenly spread, in the order in which they are stored."""
    step = max(1, count // wanted)
    parts, seen = [], 0
    for rows, matrix in source.blocks():
        parts.append(matrix[-seen % step :: step])
        seen += len(rows)
    return np.concatenate(parts)


def _faiss() -> Any:
    with library_required("--format faiss", "faiss-cpu"):
        import faiss
    return faiss
