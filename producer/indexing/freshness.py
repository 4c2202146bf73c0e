"""UpToDateFilter: posters whose vectors are in the workers' space and whose files have not changed since."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from producer.client import Producer
from producer.errors import PosterError, StoreError
from producer.queue.messages import Poster
from producer.vectors import store_exists
from producer.vectors.base import VectorStore

REFRESH_S: Final = 2.0  # a worker that loads its model becomes ready, or returns with another model


class UpToDateFilter:
    """Finds the posters whose vectors are up to date, by size and modification time.

    None are, where the store is unreachable from here or no worker is ready and has a space: the worker,
    which knows both, decides then. The store's current space would be a guess, and wrong when the model
    has just been changed.
    """

    def __init__(self, producer: Producer, notify: Callable[[str], None]) -> None:
        """`notify` is called, once per reason, when the store is unreachable."""
        self._producer, self._notify = producer, notify
        self._store: VectorStore | None = None
        self._space: str | None = None
        self._refreshed_s, self._reported = -REFRESH_S, ""

    def __call__(self, posters: Sequence[Poster]) -> set[str]:
        """The ids of those posters that are up to date."""
        if not self.is_known() or self._store is None or self._space is None:
            return set()
        try:
            rows = self._store.rows(self._space, [poster.id for poster in posters])
        except StoreError as error:
            self._report(error)
            return set()
        return {p.id for p in posters if (row := rows.get(p.id)) and row.matches(p.size, p.mtime_ns)}

    def is_known(self) -> bool:
        """True when the workers' space is known, and the store is reachable or does not exist yet."""
        if time.monotonic() - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = time.monotonic()
            self._space = self._read_space()
        return self._space is not None

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _read_space(self) -> str | None:
        """Id of the space that the workers fill, and open the store; None while either is unreachable."""
        try:
            space = self._producer.space()
            if self._store is None and store_exists(self._producer.settings.store):
                self._store = self._producer.store()
        except PosterError as error:
            self._report(error)
            return None
        return space.id if space is not None else None

    def _report(self, error: PosterError) -> None:
        text = f"the store is unreachable from here, so the worker decides what is up to date: {error}"
        if text != self._reported:
            self._notify(text)
        self._reported = text
