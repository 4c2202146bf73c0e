"""Thumbnails of image files as WebP, for HTML pages."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from PIL import Image

from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.host import usable_cores
from producer.settings import Settings
from worker.images.decode import Limits, decode, exif_orientation, open_image
from worker.images.memory_budget import MemoryBudget
from worker.images.resize import Geometry

WEBP_QUALITY: Final = 80  # about 20 kB for a poster of 320×480


def thumbnails(settings: Settings, files: Sequence[tuple[Path | None, str]], side: int) -> list[bytes | None]:
    """A WebP of each file, decoded under the rules for posters, so that it shows what the model sees.

    Args:
        files: ``(posters root, path relative to it)``, or ``(None, path)`` for a file outside.
        side: of the longer side, pixels; images are never enlarged.

    Returns:
        None where the file is missing or cannot be decoded.
    """
    limits, budget = Limits.from_settings(settings), MemoryBudget(settings.decode_memory_bytes)

    def thumbnail(file: tuple[Path | None, str]) -> bytes | None:
        root, path = file
        try:
            data = read_file(path, root=root.resolve() if root else None, max_bytes=settings.max_file_bytes).data
            size = _thumbnail_size(data, limits, side)
            pixels = decode(data, size, name=path, limits=limits, budget=budget)
        except (UnreadablePoster, OSError):
            return None
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "WEBP", quality=WEBP_QUALITY, method=2)
        return buffer.getvalue()

    with ThreadPoolExecutor(settings.decode_threads or usable_cores()) as pool:
        return list(pool.map(thumbnail, files))


def _thumbnail_size(data: bytes, limits: Limits, side: int) -> Geometry:
    """The image's own aspect ratio, no side longer than `side`, never enlarged."""
    try:
        with open_image(data, limits) as image:
            width, height = image.size
            if exif_orientation(image.info.get("exif")) >= 5:
                width, height = height, width
    except Exception:  # noqa: BLE001 - whatever is wrong with the file, decode reports it
        width = height = side
    scale = min(1.0, side / max(width, height))
    return Geometry(max(1, round(height * scale)), max(1, round(width * scale)), "squash")
