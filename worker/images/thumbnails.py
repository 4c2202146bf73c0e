"""worker.images.decode.thumbnails"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from PIL import Image

from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.settings import Settings
from worker.images.decode import FORMATS, ORIENTATION_TAG, Limits, decode
from worker.images.memory_budget import MemoryBudget
from worker.images.resize import Geometry

WEBP_QUALITY: Final = 80  # about 20 kB for a poster of 320×480
TURNED: Final = frozenset((5, 6, 7, 8))  # Exif orientations that exchange width and height


def pictures(settings: Settings, request: Mapping[str, Any]) -> dict[str, Any]:
    """Small pictures of files, decoded under the rules for posters, so that they show what the model sees."""
    side, budget = int(request["side"]), MemoryBudget(settings.decode_memory_bytes)

    def draw(file: Sequence[str]) -> str | list[str]:
        try:
            return base64.b64encode(_small(file[0], file[1], side, settings, budget)).decode()
        except UnreadablePoster as error:
            return [error.word, error.reason]
        except OSError as error:
            return ["unreadable", str(error)]

    with ThreadPoolExecutor(settings.decode_threads or os.cpu_count()) as pool:
        return {"pictures": list(pool.map(draw, request["files"]))}


def _small(root: str | None, path: str, side: int, settings: Settings, budget: MemoryBudget) -> bytes:
    data = read_file(path, root=Path(root) if root else None, max_bytes=settings.max_file_bytes).data
    pixels = decode(data, _shape(data, side), name=path, limits=Limits(settings.max_pixels), budget=budget)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "WEBP", quality=WEBP_QUALITY, method=2)
    return buffer.getvalue()


def _shape(data: bytes, side: int) -> Geometry:
    """Of the picture's own shape, no side longer than `side`, none longer than it is."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION_TAG) in TURNED:
                width, height = height, width
    except Exception:  # noqa: BLE001 - whatever is wrong with it, decode says it in its own words
        width = height = side
    scale = min(1.0, side / max(width, height))
    return Geometry(max(1, round(height * scale)), max(1, round(width * scale)), "squash")
