"""The source of an export: one space of the store, and the catalogue."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from producer.collection.catalogue import Catalogue
from producer.embedding import Vectors
from producer.vectors.base import Row, SpaceInfo, VectorStore

READ_ROWS: Final = 8192
Blocks = Iterator[tuple[list[Row], Vectors]]


@dataclass(frozen=True)
class Source:
    """What is exported: the rows of one space, and what the catalogue says of them."""

    store: VectorStore
    info: SpaceInfo
    catalogue: Catalogue

    def blocks(self) -> Blocks:
        """All rows once, in constant memory."""
        return self.store.read(self.info.space.id, READ_ROWS)
