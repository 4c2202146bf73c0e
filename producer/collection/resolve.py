"""A file as the queue names it: with the id that the catalogue gives it, and as it is now."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from producer.collection.catalogue import Catalogue, read_catalogue, require_catalogue
from producer.collection.paths import inside_root, poster_id
from producer.collection.scan import other_file, whose_id
from producer.errors import ConfigurationError
from producer.files import modified_ns
from producer.queue.messages import Poster
from producer.settings import Settings


class PosterResolver:
    """Knows the posters root and the catalogue; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        """Reads the catalogue on first use."""
        self._settings = settings
        self._catalogue: Catalogue | None = None
        self._reading = threading.Lock()

    def poster(self, path: str | Path) -> Poster:
        """A file as the queue names it: with the catalogue's id, and as it is now.

        Raises:
            ConfigurationError: it lies outside the posters root, its id belongs to another file, or the catalogue
                cannot be read.
        """
        root = Path(os.path.realpath(self._settings.root))
        relative = inside_root(root, path)
        key = poster_id(relative)
        catalogue = self._known_catalogue()
        place, owner = catalogue.at([key]).get(key), catalogue.of([key]).get(key)
        identity = place.id if place is not None else key
        other = other_file(os.path.join(root, ""), relative, place, owner)
        if other is not None:
            raise ConfigurationError(f"{relative} cannot be embedded: {whose_id(identity, other)}")
        try:
            stat = os.stat(root / relative)
        except OSError:  # not visible from here; the worker decides
            return Poster(identity, relative)
        return Poster(identity, relative, stat.st_size, modified_ns(stat))

    def _known_catalogue(self) -> Catalogue:
        """The catalogue as it is now: read on first use, and again when its file has changed.

        One that is away for a moment would give its posters other ids: an error, until it is back.
        """
        with self._reading:
            before = self._catalogue
            if before is not None and not before.is_outdated():
                return before
            found = read_catalogue(self._settings.catalogue)
            if before is not None:
                require_catalogue(self._settings, found, before)
            self._catalogue = found
            return found
