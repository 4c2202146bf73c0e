"""A file as the queue names it: with the id that the catalogue gives it, and as it is now."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from producer.catalogue import Catalogue, read_catalogue
from producer.folders import inside_root, poster_id
from worker.files import modified_ns
from worker.messages import Poster
from worker.settings import Settings


class Naming:
    """Knows the posters root and the catalogue; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        """Reads the catalogue on first use."""
        self._settings = settings
        self._catalogue: Catalogue | None = None
        self._reading = threading.Lock()

    def poster(self, path: str | Path) -> Poster:
        """A file as the queue names it: with the catalogue's id, and as it is now.

        Raises:
            ConfigurationError: it lies outside the posters root, or the catalogue cannot be read.
        """
        root = Path(os.path.realpath(self._settings.root))
        relative = inside_root(root, path)
        key = poster_id(relative)
        place = self._known_catalogue().at([key]).get(key)
        identity = place.id if place is not None else key
        try:
            stat = os.stat(root / relative)
        except OSError:  # not visible from here; the worker decides
            return Poster(identity, relative)
        return Poster(identity, relative, stat.st_size, modified_ns(stat))

    def _known_catalogue(self) -> Catalogue:
        """The catalogue as it is now: read on first use, and again when its file has changed."""
        with self._reading:
            if self._catalogue is None or self._catalogue.is_outdated():
                self._catalogue = read_catalogue(self._settings.catalogue)
            return self._catalogue
