"""Index: the vectors of one space in memory, for a backend that searches while others write."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Self

import numpy as np

from producer.embedding import Space, SpacedVectors, Vectors, is_unit, space_of, with_space
from producer.errors import PosterError, SpaceMismatch
from producer.host import abandon, renew_after_fork, usable_cores
from producer.search.nearest import Match, best_matches, require_width, search_blocks, top_positions, with_metadata
from producer.search.snapshot import Snapshot, load_if_changed
from producer.search.verdict import LEAD_MATCHES, NOT_FOUND, Identification, Verdict, judge
from producer.settings import Settings, load_settings, without_password
from producer.vectors import open_store, store_exists
from producer.vectors.base import VectorStore

REFRESH_S: Final = 2.0  # a poll takes microseconds (SQLite) or one round trip (Redis)
LOADING_SHARE: Final = 10  # however busy the store, loading takes at most a tenth of the time
BLOCK_ROWS: Final = 16384  # 32 MB of 512 numbers each
# Up to this many queries are searched one by one, at memory bandwidth; more are multiplied in blocks.
MAX_SINGLE_QUERIES: Final = 12
logger = logging.getLogger(__name__)


class Index:
    """Exact search over the space that readers use; follows the store.

    Threads may share it, and so may forked processes, which share the vectors' memory until they change. `with` closes
    it.
    """

    def __init__(self, settings: Settings, space: str | None = None) -> None:
        """Use `Index.open`, which loads the vectors, too."""
        self._settings, self._space_name = settings, space
        self._store: VectorStore | None = None
        self._snapshot = Snapshot()
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self._threads = usable_cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="search")
        self._refresh_s: float | None = None
        self._is_forked = False  # and does not follow the store yet
        renew_after_fork(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            refresh_s: seconds between two polls for changes, in a background thread; None: only `refresh` polls.

        Raises:
            ConfigurationError: there is no such space, or the catalogue is not readable.
            StoreError: the store cannot be read.
        """
        index = cls(settings or load_settings(), space)
        try:
            index.refresh()
        except BaseException:
            index.close()
            raise
        if index.space is None:
            where = without_password(index._settings.store)
            logger.warning("no vectors yet in %s: the index stays empty until some are stored", where)
        index._refresh_s = refresh_s
        index._start_following()
        return index

    @property
    def space(self) -> Space | None:
        """The space that is searched at the moment; None while there are no vectors."""
        return self._latest().space

    def __len__(self) -> int:
        """How many posters are searched."""
        return len(self._latest().ids)

    def search(self, vectors: Vectors | Sequence[Vectors], k: int = 5, *, space: str | None = None) -> list[Any]:
        """The `k` posters with the highest cosine, best first; exact; ties go to the smaller id.

        Args:
            vectors: (dimension,) float32 of unit length, or several: (n, dimension), or a list of vectors.
            k: number of matches per query.
            space: id of their space, for arrays without one; those of Producer.embed have it.

        Returns:
            list[Match], each with the catalogue's entry as `about`; for several vectors a list of such lists.

        Raises:
            SpaceMismatch: the vectors are of another space than the index, or their space is unknown.
            ValueError: they are not of unit length, or `k` is below 1.
        """
        snapshot = self._latest()
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
        if snapshot.space is None or not len(queries):
            found: list[list[Match]] = [[] for _ in queries]
        else:
            _check(queries, space, space_of(vectors), snapshot.space)
            found = [with_metadata(matches, snapshot.catalogue) for matches in self._search(snapshot, queries, k)]
        return found[0] if array.ndim == 1 else found

    def identify(self, vector: Vectors, k: int = 5, *, space: str | None = None) -> Identification:
        """The verdict on one query, and its `k` best matches; see docs/identify.md.

        Args:
            vector: (dimension,) float32 of unit length, as `search` takes it.
            k: number of matches.
            space: id of its space, for an array without one.

        Raises:
            SpaceMismatch, ValueError: as `search` does; also ValueError for more than one vector.
        """
        if np.ndim(vector) != 1:
            raise ValueError(f"identify takes one vector, (dimension,), not {np.shape(vector)}")
        snapshot = self._latest()
        matches = self.search(vector, max(k, LEAD_MATCHES), space=space)
        info = snapshot.info
        if info is None:
            return Identification(Verdict(NOT_FOUND, "there are no posters to compare with"), [])
        copies: set[str] = set()
        if info.calibration and matches and matches[0].id in snapshot.ids:
            first = snapshot.matrix[snapshot.ids.index(matches[0].id)]
            near = self._search(snapshot, first[None], LEAD_MATCHES)[0]
            copies = {match.id for match in near if match.score >= info.calibration.copy}
        return Identification(judge(matches, copies, replace(info, count=len(snapshot.ids))), matches[:k])

    def vectors(self) -> tuple[tuple[str, ...], SpacedVectors]:
        """Ids and a read-only matrix (n, dimension) float32: row i belongs to id i; both of one moment."""
        snapshot = self._latest()
        return snapshot.ids, with_space(snapshot.matrix, snapshot.space.id if snapshot.space else "")

    def refresh(self) -> bool:
        """Poll the store now, and reload if it has changed; True if it had.

        Searches go on meanwhile in the previous snapshot.

        Raises:
            StoreError: the store cannot be read; the snapshot stays.
        """
        with self._loading:
            if self._ended.is_set() or (self._store is None and not store_exists(self._settings.store)):
                return False
            self._store = self._store or open_store(self._settings.store, self._settings.store_mode)
            before = self._snapshot
            self._snapshot = load_if_changed(before, self._store, self._settings, self._space_name)
            return self._snapshot is not before

    def close(self) -> None:
        """Stop the threads, close the store and release the vectors."""
        self._ended.set()
        with self._loading:
            self._snapshot = Snapshot()
            self._pool.shutdown()
            if self._store is not None:
                self._store.close()

    def after_fork(self) -> None:
        """In a forked process: the vectors stay, shared with the parent; threads, locks and the store do not."""
        ended, self._ended = self._ended.is_set(), threading.Event()
        if ended:
            self._ended.set()
        self._loading = threading.Lock()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="search")
        abandon(self._store)
        self._store, self._is_forked = None, True

    def _latest(self) -> Snapshot:
        """The snapshot to answer from; in a forked process, the first call looks for changes, and follows again."""
        if self._is_forked:
            with self._loading:
                is_first, self._is_forked = self._is_forked, False
            if is_first and self._refresh_s is not None:
                self._refresh_or_warn()
                self._start_following()
        return self._snapshot

    def _start_following(self) -> None:
        if self._refresh_s is not None:
            threading.Thread(target=self._follow, args=(self._refresh_s,), name="index", daemon=True).start()

    def _search(self, snapshot: Snapshot, queries: Vectors, k: int) -> list[list[Match]]:
        if len(queries) > MAX_SINGLE_QUERIES:
            starts = range(0, len(snapshot.ids), BLOCK_ROWS)
            blocks = ((snapshot.ids[at : at + BLOCK_ROWS], snapshot.matrix[at : at + BLOCK_ROWS]) for at in starts)
            return search_blocks(blocks, queries, k, snapshot.space.id if snapshot.space else "")
        step = max(BLOCK_ROWS, -(-len(snapshot.ids) // self._threads))
        parts = [(start, snapshot.matrix[start : start + step]) for start in range(0, len(snapshot.ids), step)]

        def best(query: Vectors, start: int, matrix: Vectors) -> Iterator[Match]:
            scores = np.vecdot(matrix, query)
            return (Match(snapshot.ids[start + i], float(scores[i])) for i in top_positions(scores, k))

        found = []
        for query in queries:
            done = self._pool.map(lambda part, query=query: list(best(query, *part)), parts)
            found.append(best_matches([match for matches in done for match in matches], k))
        return found

    def _follow(self, refresh_s: float) -> None:
        pause, warned = refresh_s, False
        while not self._ended.wait(pause):
            changed = self._refresh_or_warn(quiet=warned)  # once per outage
            pause = max(refresh_s, LOADING_SHARE * self._snapshot.seconds) if changed else refresh_s
            warned = changed is None

    def _refresh_or_warn(self, *, quiet: bool = False) -> bool | None:
        """Like `refresh`; None where that failed, and is logged unless `quiet`."""
        try:
            return self.refresh()
        except (PosterError, MemoryError) as error:
            if not quiet and not self._ended.is_set():
                logger.warning("the index keeps its last snapshot: %s", error or "not enough memory to reload")
            return None


def _check(queries: Vectors, given: str | None, tagged: str | None, space: Space) -> None:
    for claimed in (tagged, given):
        if claimed not in (None, space.id):
            raise SpaceMismatch(f"the query is of the space {claimed}, and this index holds {space.id}")
    if tagged is None and given is None:
        raise SpaceMismatch(
            f"this array does not say which space its vectors are of, and the index holds {space.id}: "
            "take them from Producer.embed, or pass space=…"
        )
    require_width(queries, space.dimension, space.id)
    for index in map(int, np.flatnonzero(~is_unit(queries))):
        raise ValueError(f"queries must be of unit length, not {np.linalg.norm(queries[index].astype(np.float64)):g}")
