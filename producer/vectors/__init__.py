"""Vector stores: one protocol, kept in SQLite or Redis."""

from __future__ import annotations

from pathlib import Path

from producer.errors import ConfigurationError
from producer.settings import PRIVATE
from producer.vectors.base import VectorStore


def store_exists(url: str) -> bool:
    """False for a store that opening it would create: a SQLite file that does not exist."""
    scheme, _, path = url.partition(":")
    return scheme != "sqlite" or Path(path).exists()


def open_store(url: str, mode: str = PRIVATE) -> VectorStore:
    """Open ``sqlite:PATH`` or ``redis://…``; creates what is not there.

    Args:
        url: settings.store.
        mode: settings.store_mode, the permissions of a new SQLite file.

    Raises:
        ConfigurationError: the URL is none of these.
        StoreError: it cannot be opened; the text says why and what to do.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from producer.vectors.sqlite import SQLiteStore

        return SQLiteStore(rest, mode)
    if scheme in ("redis", "rediss", "unix"):
        from producer.vectors.redis import RedisStore

        return RedisStore(url)
    raise ConfigurationError(f"POSTERS_STORE must be sqlite:PATH or redis://…, not {url!r}")
