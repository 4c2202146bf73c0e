"""PosterResolver: turns a path into the Poster that is queued, with the catalogue's id."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from producer.collection.catalogue import Catalogue, open_catalogue
from producer.collection.paths import inside_root, poster_id
from producer.collection.scan import id_conflict, other_file, poster_of
from producer.errors import ConfigurationError
from producer.queue.messages import Poster
from producer.settings import Settings


class PosterResolver:
    """Finds the ids of single files, by the posters root and the catalogue; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        """The catalogue is read on first use."""
        self._settings = settings
        self._catalogue: Catalogue | None = None
        self._lock = threading.Lock()

    def poster(self, path: str | Path) -> Poster:
        """The Poster for a file: its id, and its size and time as they are now.

        Raises:
            ConfigurationError: it lies outside the posters root, its id belongs to another file, or the catalogue
                cannot be read.
        """
        root = os.path.realpath(self._settings.root)
        relative, top = inside_root(Path(root), path), os.path.join(root, "")
        key = poster_id(relative)
        catalogue = self._current_catalogue()
        entry, owner = catalogue.by_file([key]).get(key), catalogue.by_id([key]).get(key)
        identity = entry.id if entry is not None else key
        other = other_file(top, relative, entry, owner)
        if other is not None:
            raise ConfigurationError(f"{relative} cannot be embedded: {id_conflict(identity, other)}")
        return poster_of(top, relative, identity)

    def _current_catalogue(self) -> Catalogue:
        """The catalogue as it is now: read on first use, and again when its file has changed.

        Without its file its posters would get other ids: that is an error until the file is back.
        """
        with self._lock:
            before = self._catalogue
            if before is not None and before.is_current():
                return before
            self._catalogue = open_catalogue(self._settings, before)
            return self._catalogue
