"""Export a space as NumPy shards with Parquet metadata, one Parquet table, or a FAISS index; all or nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from producer.embedding import Vectors
from producer.export.atomic import MANIFEST, atomic_folder
from producer.export.parquet import EMBEDDING, Column, arrays, columns_of, pyarrow, schema
from producer.export.source import Source
from producer.vectors.base import Row

FORMATS: Final = ("npy", "parquet", "faiss")
SHARD_ROWS: Final = 1_000_000  # as clip-retrieval cuts them: 2 GB of 512 numbers
NPY_HEADER_BYTES: Final = 128  # NumPy pads it so that any number of rows fits: it is written again at the end


@dataclass(frozen=True)
class Export:
    """What was written, where, and how fast."""

    folder: str
    format: str
    space: str
    rows: int
    bytes: int
    files: tuple[str, ...]
    seconds: float


def export(
    source: Source,
    folder: Path,
    format: str = "npy",
    *,
    shard_rows: int = SHARD_ROWS,
    index: str = "auto",
    replace: bool = False,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Export:
    """Write the space into a folder that appears only when it is complete.

    Args:
        source: one space and the catalogue.
        folder: must not exist, be empty, or, with `replace`, hold an earlier export.
        format: one of FORMATS; their layouts are in docs/search.md.
        shard_rows: rows of one .npy file and its metadata.
        index: for ``faiss``: one of faiss.KINDS.
        on_rows: called with the rows written since the last call.

    Raises:
        ConfigurationError: the folder cannot be written, or a library is missing.
        StoreError: the store cannot be read; nothing is left under the folder's name.
    """
    began = time.monotonic()
    about: dict[str, Any] = {"format": format}
    with atomic_folder(folder, replace=replace) as partial:
        if format == "npy":
            rows = _write_shards(source, partial, shard_rows, on_rows)
        elif format == "parquet":
            rows = _write_table(source, partial, on_rows)
        else:
            from producer.export.faiss import write_index

            rows, about["index"] = write_index(source, partial, index, on_rows)
        about |= {"rows": rows, "space": source.info.space.id, "exported": time.time()}
        about |= {"model": asdict(source.info.space), "provenance": dict(source.info.provenance)}
        (partial / MANIFEST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        files = tuple(sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()))
        size = sum((partial / name).stat().st_size for name in files)
    seconds = round(time.monotonic() - began, 3)
    return Export(str(folder), format, source.info.space.id, rows, size, files, seconds)


def _write_shards(source: Source, folder: Path, shard_rows: int, on_rows: Callable[[int], None]) -> int:
    """Write ``img_emb/img_emb_0.npy`` and ``metadata/metadata_0.parquet``, row by row the same posters.

    Readers sort the names as text, so numbers are padded with zeros from ten shards on.
    """
    vectors, metadata = folder / "img_emb", folder / "metadata"
    vectors.mkdir()
    metadata.mkdir()
    columns = columns_of(source.catalogue)
    total = last = 0
    for last, parts in groupby(_cut(source, shard_rows), key=itemgetter(0)):
        table = _Table(metadata / f"{last}.parquet", source, columns)
        with (vectors / f"{last}.npy").open("wb") as file, closing(table):
            file.write(bytes(NPY_HEADER_BYTES))
            rows = 0
            for _, part, matrix in parts:
                np.ascontiguousarray(matrix, "<f4").tofile(file)
                table.write(part)
                rows += len(part)
                on_rows(len(part))
            _write_header(file, rows, source.info.space.dimension)
        total += rows
    width = len(str(last))
    for at in range(last + 1):
        os.rename(vectors / f"{at}.npy", vectors / f"img_emb_{at:0{width}}.npy")
        os.rename(metadata / f"{at}.parquet", metadata / f"metadata_{at:0{width}}.parquet")
    return total


def _write_table(source: Source, folder: Path, on_rows: Callable[[int], None]) -> int:
    """Write ``posters.parquet``: the metadata's columns and `embedding`, a list of float32."""
    rows = 0
    with closing(_Table(folder / "posters.parquet", source, columns_of(source.catalogue), with_vectors=True)) as table:
        for part, matrix in source.blocks():
            table.write(part, matrix)
            rows += len(part)
            on_rows(len(part))
    return rows


class _Table:
    """A Parquet file; each call of `write` adds a row group."""

    def __init__(self, path: Path, source: Source, columns: list[Column], *, with_vectors: bool = False) -> None:
        self._arrow = pyarrow()
        self._catalogue, self._columns = source.catalogue, columns
        self._plain = schema(columns, {"space": source.info.space.to_json(), "space_id": source.info.space.id})
        self._kind = self._arrow.list_(self._arrow.float32(), source.info.space.dimension)
        self._schema = self._plain.append(self._arrow.field(EMBEDDING, self._kind)) if with_vectors else self._plain
        names = self._plain.names
        self._writer = self._arrow.parquet.ParquetWriter(
            path,
            self._schema,
            compression=dict.fromkeys(names, "zstd") | {f"{EMBEDDING}.list.element": "none"},  # noise does not shrink
            use_dictionary=[name for name in names if name not in ("image_path", "id", "digest", "mtime_ns")],
            write_statistics=names,
        )

    def write(self, rows: list[Row], matrix: Vectors | None = None) -> None:
        """One row group."""
        values = arrays(rows, self._columns, self._catalogue, self._plain)
        if matrix is not None:
            numbers = self._arrow.array(matrix.reshape(-1), self._arrow.float32())
            values.append(self._arrow.FixedSizeListArray.from_arrays(numbers, type=self._kind))
        self._writer.write_table(self._arrow.Table.from_arrays(values, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def _cut(source: Source, shard_rows: int) -> Iterator[tuple[int, list[Row], Vectors]]:
    """Number of the shard, rows, vectors: blocks of which none lies in two shards; an empty one for an empty space."""
    row = 0
    for rows, matrix in source.blocks():
        start = 0
        while start < len(rows):
            stop = start + shard_rows - row % shard_rows
            yield row // shard_rows, rows[start:stop], matrix[start:stop]
            row += len(rows[start:stop])
            start = stop
    if not row:
        yield 0, [], np.zeros((0, source.info.space.dimension), np.float32)


def _write_header(file: BinaryIO, rows: int, dimension: int) -> None:
    file.seek(0)
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
    np.lib.format.write_array_header_1_0(file, shape)
    if file.tell() != NPY_HEADER_BYTES:
        raise AssertionError(f"NumPy's header for {shape} has {file.tell()} bytes, not {NPY_HEADER_BYTES}")
