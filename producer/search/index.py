"""Index: the vectors of one space held in memory, for a backend that searches while others write."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from producer.cores import usable_cores
from producer.embedding import Space, SpacedVectors, Vectors, is_unit, space_of, with_space
from producer.errors import PosterError, SpaceMismatch
from producer.search.nearest import Match, described, first, highest, require_width, sweep
from producer.search.snapshot import Snapshot, load_if_changed
from producer.settings import Settings, load_settings, without_password
from producer.vectors import open_store, store_exists
from producer.vectors.base import VectorStore

REFRESH_S: Final = 2.0  # a look takes microseconds (SQLite) or one round trip (Redis)
LOADING_SHARE: Final = 10  # however busy the store, at most a tenth of the time goes into loading it
BLOCK_ROWS: Final = 16384  # 32 MB of 512 numbers each
# Up to so many queries are searched one by one, as fast as memory can be read; more are multiplied in blocks.
FEW_QUERIES: Final = 12
logger = logging.getLogger(__name__)


class Index:
    """Exact search over the space that readers use; follows the store. Threads may share it."""

    def __init__(self, settings: Settings, space: str | None = None) -> None:
        """Use `Index.open`, which loads the vectors, too."""
        self._settings, self._named = settings, space
        self._store: VectorStore | None = None
        self._held = Snapshot()
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self._threads = usable_cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="search")

    @classmethod
    def open(
        cls, settings: Settings | None = None, *, space: str | None = None, refresh_s: float | None = REFRESH_S
    ) -> Index:
        """Load the vectors and keep them up to date.

        An empty or absent store gives an empty index, which fills as soon as vectors come. Memory: 4 * dimension
        bytes a poster (2 GB for a million of ViT-B/32), twice that for the seconds in which it loads again.

        Args:
            settings: None: from config.json and the environment.
            space: id of a space, or the beginning of one; None: the store's current one, also when that changes.
            refresh_s: seconds between two looks for changes, in a thread of its own; None: only `refresh` looks.

        Raises:
            ConfigurationError: there is no such space, or the catalogue is not readable.
            StoreError: the store cannot be read.
        """
        index = cls(settings or load_settings(), space)
        index.refresh()
        if index.space is None:
            where = without_password(index._settings.store)
            logger.warning("no vectors yet in %s: the index is empty until there are", where)
        if refresh_s is not None:
            threading.Thread(target=index._follow, args=(refresh_s,), name="index", daemon=True).start()
        return index

    @property
    def space(self) -> Space | None:
        """The space that is searched at the moment; None while there are no vectors."""
        return self._held.space

    def __len__(self) -> int:
        """How many posters are searched."""
        return len(self._held.ids)

    def search(self, vectors: Vectors | Sequence[Vectors], k: int = 5, *, space: str | None = None) -> list[Any]:
        """The `k` posters with the highest cosine, best first; exact; ties go to the smaller id.

        Args:
            vectors: (dimension,) float32 of unit length, or several: (n, dimension), or a list of vectors.
            k: at most so many.
            space: id of their space, for arrays that do not know it; those of Producer.embed do.

        Returns:
            list[Match], each with the catalogue's entry as `about`; for several vectors a list of such lists.

        Raises:
            SpaceMismatch: the vectors are of another space than the index, or nobody said of which.
            ValueError: they are not of unit length, or `k` is below 1.
        """
        held = self._held
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if isinstance(vectors, list | tuple):
            spaces = {space_of(vector) for vector in vectors}
            if len(known := sorted(filter(None, spaces))) > 1:
                raise SpaceMismatch(f"vectors of two spaces cannot be searched together: {' and '.join(known)}")
            space = space or (None if None in spaces else next(iter(spaces), None))
            vectors = np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
        array = np.asarray(vectors, np.float32)
        queries = np.atleast_2d(array)
        if held.space is None or not len(queries):
            found: list[list[Match]] = [[] for _ in queries]
        else:
            _check(queries, space, space_of(vectors), held.space)
            found = [described(matches, held.catalogue) for matches in self._search(held, queries, k)]
        return found[0] if array.ndim == 1 else found

    def vectors(self) -> tuple[tuple[str, ...], SpacedVectors]:
        """Ids and a read-only matrix (n, dimension) float32: row i belongs to id i; both of one moment."""
        held = self._held
        return held.ids, with_space(held.matrix, held.space.id if held.space else "")

    def refresh(self) -> bool:
        """Look into the store now, and load it if it has changed; True if it had.

        Searches go on meanwhile, in what was held before.

        Raises:
            StoreError: the store cannot be read; what was held stays.
        """
        with self._loading:
            if self._ended.is_set() or (self._store is None and not store_exists(self._settings.store)):
                return False
            self._store = self._store or open_store(self._settings.store)
            before, self._held = self._held, load_if_changed(self._held, self._store, self._settings, self._named)
            return self._held is not before

    def close(self) -> None:
        """End the threads and let go of the store and the vectors."""
        self._ended.set()
        with self._loading:
            self._held = Snapshot()
            self._pool.shutdown()
            if self._store is not None:
                self._store.close()

    def _search(self, held: Snapshot, queries: Vectors, k: int) -> list[list[Match]]:
        if len(queries) > FEW_QUERIES:
            starts = range(0, len(held.ids), BLOCK_ROWS)
            blocks = ((held.ids[at : at + BLOCK_ROWS], held.matrix[at : at + BLOCK_ROWS]) for at in starts)
            return sweep(blocks, queries, k, held.space.id if held.space else "")
        step = max(BLOCK_ROWS, -(-len(held.ids) // self._threads))
        parts = [(start, held.matrix[start : start + step]) for start in range(0, len(held.ids), step)]

        def best(query: Vectors, start: int, matrix: Vectors) -> Iterator[Match]:
            scores = np.vecdot(matrix, query)
            return (Match(held.ids[start + i], float(scores[i])) for i in highest(scores, k))

        found = []
        for query in queries:
            done = self._pool.map(lambda part, query=query: list(best(query, *part)), parts)
            found.append(first([match for matches in done for match in matches], k))
        return found

    def _follow(self, refresh_s: float) -> None:
        pause, silent = refresh_s, False
        while not self._ended.wait(pause):
            try:
                changed = self.refresh()
                pause = max(refresh_s, LOADING_SHARE * self._held.seconds) if changed else refresh_s
                silent = False
            except (PosterError, MemoryError) as error:
                if not silent and not self._ended.is_set():  # once per outage
                    logger.warning("the index stays as it is: %s", error or "not enough memory to load it again")
                silent = True


def _check(queries: Vectors, told: str | None, known: str | None, space: Space) -> None:
    for claimed in (known, told):
        if claimed not in (None, space.id):
            raise SpaceMismatch(f"the query is of the space {claimed}, and this index holds {space.id}")
    if known is None and told is None:
        raise SpaceMismatch(
            f"this array does not say which space its vectors are of, and the index holds {space.id}: "
            "take them from Producer.embed, or pass space=…"
        )
    require_width(queries, space.dimension, space.id)
    for index in map(int, np.flatnonzero(~is_unit(queries))):
        raise ValueError(f"queries must be of unit length, not {np.linalg.norm(queries[index].astype(np.float64)):g}")
