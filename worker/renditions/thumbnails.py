"""Thumbnails of image files as WebP, for HTML pages."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.host import usable_cores
from producer.settings import Settings
from worker.images.decode import Limits, errors_translated, open_image
from worker.images.memory_budget import shared_budget
from worker.renditions.bounded import bounded_pixels, encoded

WEBP_QUALITY: Final = 80  # about 20 kB for a poster of 320×480


def thumbnails(
    settings: Settings, files: Sequence[tuple[Path | None, str]], box: tuple[int, int]
) -> list[bytes | None]:
    """A WebP of each file, decoded under the rules for posters, so that it shows what the model sees.

    Args:
        files: ``(posters root, path relative to it)``, or ``(None, path)`` for a file outside.
        box: width and height that no thumbnail exceeds, pixels; images are never enlarged.

    Returns:
        None where the file is missing or cannot be decoded.
    """
    limits, budget = Limits.from_settings(settings), shared_budget(settings.decode_memory_bytes)

    def thumbnail(file: tuple[Path | None, str]) -> bytes | None:
        root, path = file
        try:
            data = read_file(path, root=root.resolve() if root else None, max_bytes=settings.max_file_bytes).data
            pixels = bounded_pixels(data, box, limits, budget, name=path)
        except (UnreadablePoster, OSError):
            return None
        return encoded(pixels, "WEBP", quality=WEBP_QUALITY, method=2)

    with ThreadPoolExecutor(settings.decode_threads or usable_cores()) as pool:
        return list(pool.map(thumbnail, files))


def check_header(settings: Settings, data: bytes, name: str) -> None:
    """Raise UnreadablePoster, with the name, for an image whose header says too many pixels, or nothing readable."""
    with errors_translated(name, data), open_image(data, Limits.from_settings(settings)):
        pass
