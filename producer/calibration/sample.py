"""A sample of the collection, with the variants of each poster that people send."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from producer.collection.catalogue import Catalogue
from producer.collection.resolve import existing_file
from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.host import engine_required
from producer.settings import Settings
from producer.vectors.base import Row, VectorStore


@dataclass
class Sample:
    """Posters in the order of a seed; those that cannot be used are counted by the reason and replaced.

    Attributes:
        seed: of the order and of the variants.
        skipped: reasons, and how many posters each.
    """

    settings: Settings
    catalogue: Catalogue
    seed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def shuffled(self, store: VectorStore, space_id: str) -> list[str]:
        """All ids of the space, in the order in which they are taken."""
        ids = list(chain.from_iterable(store.ids(space_id)))
        return [ids[position] for position in np.random.default_rng(self.seed).permutation(len(ids))]

    def draw(self, store: VectorStore, space_id: str, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The first `count` usable posters: id, and the file of each variant by its name."""
        found = 0
        for poster in self.shuffled(store, space_id):
            if found == count:
                return
            row = store.rows(space_id, [poster]).get(poster)
            made = self.variants(poster, row) if row else None
            if made:
                found += 1
                yield poster, made

    def variants(self, poster: str, row: Row | None = None) -> dict[str, bytes] | None:
        """The variants of one poster, always the same; None where its file is gone, damaged, or not that of `row`.

        Raises:
            ConfigurationError: the engine is not installed here.
        """
        with engine_required():
            from worker.renditions.variants import variants

        root = self.settings.root.resolve()
        name = existing_file(root, poster, self.catalogue)
        if name is None:
            self.skipped["missing"] += 1
            return None
        try:
            content = read_file(name, root=root, max_bytes=self.settings.max_file_bytes)
            if row is not None and content.digest != row.digest:
                self.skipped["changed since it was indexed"] += 1
                return None
            random = np.random.default_rng([self.seed, zlib.crc32(poster.encode("utf-8", "surrogatepass"))])
            return variants(content.data, self.settings, random, name=name)
        except (UnreadablePoster, OSError) as error:
            self.skipped[error.word if isinstance(error, UnreadablePoster) else "unreadable"] += 1
            return None
