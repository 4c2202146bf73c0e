"""Metadata columns of a Parquet table: those of the store's row, and the catalogue's keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from producer.collection.catalogue import Catalogue
from producer.export.source import library_required
from producer.vectors.base import Row

# Columns of every table. `image_path` is what clip-retrieval calls it: the file, relative to the posters root.
COLUMNS: Final = {
    "image_path": "string",
    "id": "string",
    "digest": "string",
    "bytes": "int64",
    "mtime_ns": "int64",
}
EMBEDDING: Final = "embedding"  # as embedding-reader calls the column of vectors


@dataclass(frozen=True)
class Column:
    """A key of the catalogue as a column: its name, Arrow's type name, and the conversion of a value."""

    name: str
    key: str
    type: str
    convert: Callable[[Any], Any]


def pyarrow() -> Any:
    """The library pyarrow with its submodule `parquet`, imported when it is needed."""
    with library_required("Parquet", "pyarrow"):
        import pyarrow.parquet
    return pyarrow


def columns_of(catalogue: Catalogue) -> list[Column]:
    """One column for each key that any entry has, in the order in which they come.

    A key whose values are all integers, numbers, booleans or strings gets that type; any other becomes a string
    column, in which non-strings are JSON.
    """
    kinds: dict[str, set[type]] = {}
    for entry in catalogue.entries():
        for key, value in entry.about.items():
            if key not in ("file", "id") and value is not None:  # those two are among COLUMNS
                exceeds_int64 = type(value) is int and not -(2**63) <= value < 2**63
                kinds.setdefault(key, set()).add(object if exceeds_int64 else type(value))
    taken = {*COLUMNS, EMBEDDING}
    columns = []
    for key, kind in kinds.items():
        name = _text(key)
        while name in taken:
            name = f"catalogue_{name}"
        taken.add(name)
        columns.append(Column(name, key, *_type(kind)))
    return columns


def schema(columns: Sequence[Column], about: Mapping[str, str]) -> Any:
    """The table's schema; `about` becomes the file's metadata, which names the space."""
    arrow = pyarrow()
    fields = [(name, kind) for name, kind in COLUMNS.items()] + [(column.name, column.type) for column in columns]
    return arrow.schema([(name, getattr(arrow, kind)()) for name, kind in fields], metadata=dict(about))


def arrays(rows: Sequence[Row], columns: Sequence[Column], catalogue: Catalogue, schema: Any) -> list[Any]:
    """One Arrow array for each field of the schema, over the rows."""
    entries = catalogue.by_id(row.id for row in rows) if catalogue else {}
    files = [_text(entries[row.id].file) if row.id in entries else row.id for row in rows]
    values: list[list[Any]] = [files, [row.id for row in rows], [row.digest for row in rows]]
    values += [[row.bytes for row in rows], [row.mtime_ns for row in rows]]
    abouts = [entries[row.id].about if row.id in entries else {} for row in rows]
    for column in columns:
        found = (about.get(column.key) for about in abouts)
        values.append([None if value is None else column.convert(value) for value in found])
    arrow = pyarrow()
    return [arrow.array(part, field.type) for part, field in zip(values, schema, strict=False)]


def _type(kinds: set[type]) -> tuple[str, Callable[[Any], Any]]:
    if kinds == {bool}:
        return "bool_", bool
    if kinds == {int}:
        return "int64", int
    if kinds <= {int, float}:
        return "float64", float
    return "string", lambda value: _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _text(value: str) -> str:
    """Without lone surrogates, which JSON may hold and Parquet may not."""
    return value.encode("utf-8", "replace").decode("utf-8")
