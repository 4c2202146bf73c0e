"""PosterResolver: turns paths into the posters that are queued, with the catalogue's ids."""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from producer.collection.catalogue import Catalogue, open_catalogue
from producer.collection.paths import inside_root, poster_id
from producer.collection.scan import PosterScan, id_conflict, other_file, poster_of, unsent
from producer.errors import BadMessage, ConfigurationError, UnreadablePoster
from producer.queue.messages import Poster, check_path, shown
from producer.queue.progress import Failure
from producer.settings import Settings


class PosterResolver:
    """Finds the posters that paths mean, by the posters root and the catalogue; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        """The catalogue is read on first use."""
        self._settings = settings
        self._catalogue: Catalogue | None = None
        self._lock = threading.Lock()

    def poster(self, path: str | Path) -> Poster:
        """The Poster for a file: its id, and its size and time as they are now.

        Raises:
            ConfigurationError: it cannot be a poster (no path, outside the posters root, a folder), its id belongs to
                another file, or the catalogue cannot be read.
        """
        try:
            root, relative = self._locate(path)
            if os.path.isdir(root / relative):
                raise UnreadablePoster(os.fspath(path), "unsupported", "it is a folder, not a poster")
            return self._identify(root, relative)
        except UnreadablePoster as error:
            raise ConfigurationError(f"{error.path} cannot be embedded: {error.reason}") from None

    def posters(self, paths: Iterable[object]) -> Iterator[Poster | Failure]:
        """The posters of files and folders, lazily; a Failure for each path that cannot be sent.

        A folder means the posters in it, at any depth, as a PosterScan finds them.

        Raises:
            ConfigurationError: the catalogue cannot be read, or the posters root has become empty.
        """
        for number, path in enumerate(paths, 1):
            try:
                root, relative = self._locate(path)
                if os.path.isdir(root / relative):
                    scan = PosterScan(
                        root, [root / relative], self.catalogue(), with_problems=False, exclude=self._settings.exclude
                    )
                    yield from scan
                else:
                    yield self._identify(root, relative)
            except UnreadablePoster as error:
                yield unsent(error, number)

    def catalogue(self) -> Catalogue:
        """The catalogue as it is now: read on first use, and again when its file has changed.

        Without its file its posters would get other ids: that is an error until the file is back.
        """
        with self._lock:
            before = self._catalogue
            if before is not None and before.is_current():
                return before
            self._catalogue = open_catalogue(self._settings, before)
            return self._catalogue

    def _locate(self, path: object) -> tuple[Path, str]:
        """The posters root, symbolic links resolved, and the path relative to it; UnreadablePoster if it has none."""
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        try:
            name = check_path(text)
        except BadMessage as error:
            raise UnreadablePoster(shown(text), "unsupported", f"no file can be called that: {error}") from None
        root = Path(os.path.realpath(self._settings.root))
        try:
            return root, check_path(inside_root(root, name) or ".")
        except ConfigurationError as error:
            raise UnreadablePoster(name, "outside-root", str(error)) from None
        except BadMessage as error:
            raise UnreadablePoster(name, "unsupported", f"below the posters root, its {error}") from None

    def _identify(self, root: Path, relative: str) -> Poster:
        """The Poster for a file; UnreadablePoster if its id belongs to another one."""
        key, top = poster_id(relative), os.path.join(root, "")
        catalogue = self.catalogue()
        entry, owner = catalogue.by_file([key]).get(key), catalogue.by_id([key]).get(key)
        identity = entry.id if entry is not None else key
        other = other_file(top, relative, entry, owner)
        if other is not None:
            raise UnreadablePoster(relative, "unsupported", id_conflict(identity, other))
        return poster_of(top, relative, identity)


def existing_file(root: Path, poster: str, catalogue: Catalogue) -> str | None:
    """The path of a poster below the root, by its id; None when it does not exist.

    Without a catalogue entry, an id is the file's path after NFC, with non-UTF-8 bytes as ``%XX``; the possible
    originals are tried in turn.
    """
    return next((name for name in _names(poster, catalogue) if os.path.isfile(root / name)), None)


def _names(poster: str, catalogue: Catalogue) -> Iterator[str]:
    entry = catalogue.by_id([poster]).get(poster)
    if entry is not None:
        yield entry.file
        return
    if os.path.isabs(poster) or ".." in Path(poster).parts:
        return  # an id from a catalogue, not a path below the root
    yield poster
    yield unicodedata.normalize("NFD", poster)  # as macOS writes names
    if "%" in poster:  # as poster_id writes a byte that is not UTF-8
        yield re.sub("%([89A-F][0-9A-F])", lambda found: chr(0xDC00 + int(found[1], 16)), poster)
