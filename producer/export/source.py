"""The source of an export, and the libraries that write it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from producer.collection.catalogue import Catalogue
from producer.embedding import Vectors
from producer.errors import ConfigurationError
from producer.vectors.base import Row, SpaceInfo, VectorStore


@dataclass(frozen=True)
class Source:
    """One space of the store, and the catalogue with the metadata of its posters."""

    store: VectorStore
    info: SpaceInfo
    catalogue: Catalogue

    def blocks(self) -> Iterator[tuple[list[Row], Vectors]]:
        """All rows once, in constant memory."""
        return self.store.read(self.info.space.id)


@contextmanager
def library_required(needed_by: str, package: str) -> Iterator[None]:
    """Turn a failed import of an optional library into an instruction."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{needed_by} needs {package}, which is not installed here: pip install {package} ({error})"
        ) from error
