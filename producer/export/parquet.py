"""What is known of each poster beside its vector, as columns of a Parquet table: the row's, and the catalogue's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from producer.collection.catalogue import Catalogue
from producer.collection.entry import Entry
from producer.errors import ConfigurationError
from producer.vectors.base import Row

# Columns of every table. `image_path` is what clip-retrieval calls it: the file, relative to the posters root.
OWN: Final = {"image_path": "string", "id": "string", "digest": "string", "bytes": "int64", "mtime_ns": "int64"}
EMBEDDING: Final = "embedding"  # as embedding-reader calls the column of vectors
LEFT_OUT: Final = frozenset(("file", "id"))  # they are among our own
PREFIX: Final = "catalogue_"  # for keys that would hide one of our columns
WHOLE_NUMBERS: Final = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Column:
    """A key of the catalogue as a column: its name, Arrow's name of the type, and what makes a value of it."""

    name: str
    key: str
    type: str
    convert: Callable[[Any], Any]


def pyarrow() -> Any:
    """The library, imported when it is needed; ConfigurationError says how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            f"Parquet needs pyarrow, which is not installed here: pip install pyarrow ({error})"
        ) from error
    return pyarrow


def columns_of(catalogue: Catalogue) -> list[Column]:
    """One column for each key that any entry has, in the order in which they come.

    A key whose values are all whole numbers, numbers, booleans or texts has that type; any other is text,
    and what is no text in it is written as JSON.
    """
    kinds: dict[str, set[type]] = {}
    for entry in catalogue.entries():
        for key, value in entry.about.items():
            if key not in LEFT_OUT and value is not None:
                large = type(value) is int and value not in WHOLE_NUMBERS
                kinds.setdefault(key, set()).add(object if large else type(value))
    taken = {*OWN, EMBEDDING}
    columns = []
    for key, kind in kinds.items():
        name = _text(key)
        while name in taken:
            name = PREFIX + name
        taken.add(name)
        columns.append(Column(name, key, *_type(kind)))
    return columns


def schema(columns: Sequence[Column], about: Mapping[str, str]) -> Any:
    """The table's schema; `about` is kept in the file, so that a table knows its space."""
    arrow = pyarrow()
    fields = [(name, kind) for name, kind in OWN.items()] + [(column.name, column.type) for column in columns]
    return arrow.schema([(name, getattr(arrow, kind)()) for name, kind in fields], metadata=dict(about))


def arrays(rows: Sequence[Row], columns: Sequence[Column], catalogue: Catalogue, schema: Any) -> list[Any]:
    """One Arrow array for each field of the schema, over the rows."""
    entries = _entries(rows, catalogue)
    values: list[list[Any]] = [
        [_text(entry.file) if entry else row.id for row, entry in zip(rows, entries, strict=True)],
        [row.id for row in rows],
        [row.digest for row in rows],
        [row.size for row in rows],
        [row.mtime_ns for row in rows],
    ]
    abouts = [entry.about if entry else {} for entry in entries]
    for column in columns:
        found = (about.get(column.key) for about in abouts)
        values.append([None if value is None else column.convert(value) for value in found])
    arrow = pyarrow()
    return [arrow.array(part, field.type) for part, field in zip(values, schema, strict=False)]


def _entries(rows: Sequence[Row], catalogue: Catalogue) -> list[Entry | None]:
    """The entry of each row; None where the catalogue has none."""
    described = catalogue.by_id(row.id for row in rows) if catalogue else {}
    return [described.get(row.id) for row in rows]


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
