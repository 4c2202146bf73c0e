"""Which posters need no work: their vectors are in the workers' space, and their files are as they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from producer.client import Producer
from producer.errors import PosterError, StoreError
from producer.queue.messages import Poster
from producer.vectors import store_exists

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore


ASK_AGAIN_S: Final = 2.0  # a worker that loads its model becomes ready, or comes back with another model


class UpToDateFilter:
    """Tells which posters' vectors are up to date, by size and modification time.

    Where the store cannot be seen from here, or no worker is ready to tell its space, it says of none
    that it is: the worker, which knows both, looks again. The store's current space would be a guess,
    and wrong on the day on which the model was changed.
    """

    def __init__(self, producer: Producer, notify: Callable[[str], None]) -> None:
        """`say` hears, once, why the store cannot be looked into."""
        self._producer, self._notify = producer, notify
        self._store: VectorStore | None = None
        self._space: str | None = None
        self._asked, self._told = -ASK_AGAIN_S, ""

    def __call__(self, posters: Sequence[Poster]) -> set[str]:
        """Of some posters, the ids of those that need no work."""
        if not self.is_known() or self._store is None or self._space is None:
            return set()
        try:
            rows = self._store.rows(self._space, [poster.id for poster in posters])
        except StoreError as error:
            self._tell(error)
            return set()
        return {p.id for p in posters if (row := rows.get(p.id)) and row.matches(p.size, p.mtime_ns)}

    def is_known(self) -> bool:
        """True when the workers' space is known, and the store can be seen or is still to be made."""
        if time.monotonic() - self._asked >= ASK_AGAIN_S:
            self._asked = time.monotonic()
            self._space = self._ask()
        return self._space is not None

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _ask(self) -> str | None:
        """Id of the space that the workers make; None while that, or the store, is out of reach."""
        try:
            space = self._producer.space()
            if self._store is None and store_exists(self._producer.settings.store):
                self._store = self._producer.store()
        except PosterError as error:
            self._tell(error)
            return None
        return space.id if space is not None else None

    def _tell(self, error: PosterError) -> None:
        text = f"cannot look into the store from here, the worker will: {error}"
        if text != self._told:
            self._notify(text)
        self._told = text
