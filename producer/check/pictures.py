"""Compare the pictures of posters: decoded by the engine under the rules for posters, compared by OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from producer.check.geometry import CLEAR_POINTS, DIFFERENT, SIDE, Comparison, Features, Pixels, Query, features
from producer.collection.catalogue import Catalogue
from producer.collection.resolve import existing_file
from producer.errors import ConfigurationError, UnreadablePoster
from producer.files import read_file
from producer.host import engine_required
from producer.settings import Settings

if TYPE_CHECKING:
    from worker.images.memory_budget import MemoryBudget


def can_compare() -> bool:
    """Whether the engine and OpenCV are installed here; imports neither."""
    try:
        with engine_required():
            return find_spec("cv2") is not None
    except ConfigurationError:
        return False


class PictureCheck:
    """Compares images with posters of a collection; keeps nothing."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        """Raise ConfigurationError where the engine or OpenCV is not installed."""
        with engine_required():
            from worker.images.memory_budget import shared_budget
        self._settings, self._catalogue = settings, catalogue
        self._budget: MemoryBudget = shared_budget(settings.decode_memory_bytes)

    def candidates(self, image: Path, posters: Sequence[str]) -> dict[str, Comparison]:
        """Compare an image from anywhere with one poster after the other, until one clearly shows the same picture.

        A poster whose file is gone or damaged is different.
        """
        query = Query(self._pixels(None, str(image)))
        found: dict[str, Comparison] = {}
        for poster in posters:
            found[poster] = compared = self._compare(query, poster)
            if compared.same and compared.points >= CLEAR_POINTS:
                break
        return found

    def with_poster(self, first: str, others: Sequence[str]) -> dict[str, Comparison]:
        """Compare a poster with others."""
        name = existing_file(self._settings.root, first, self._catalogue)
        if name is None:
            return dict.fromkeys(others, DIFFERENT)
        try:
            query = Query(self._pixels(self._settings.root, name))
        except (UnreadablePoster, OSError):
            return dict.fromkeys(others, DIFFERENT)
        return {poster: self._compare(query, poster) for poster in others}

    def _compare(self, query: Query, poster: str) -> Comparison:
        found = self.features_of(poster)
        return query.compare(found) if found else DIFFERENT

    def features_of(self, poster: str) -> Features | None:
        """The features of a poster; None where its file is gone or damaged."""
        name = existing_file(self._settings.root, poster, self._catalogue)
        try:
            return features(self._pixels(self._settings.root, name)) if name is not None else None
        except (UnreadablePoster, OSError):
            return None

    def _pixels(self, root: Path | None, name: str) -> Pixels:
        from worker.images.decode import Limits
        from worker.renditions.bounded import bounded_pixels

        settings = self._settings
        data = read_file(name, root=root.resolve() if root else None, max_bytes=settings.max_file_bytes).data
        return bounded_pixels(data, (SIDE, SIDE), Limits.from_settings(settings), self._budget, name=name)
