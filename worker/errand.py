"""``python -m worker.errand``: what a producer needs torch or Pillow for, done in a process of its own.

The producer never imports them; it starts this module, writes a request to its input, and reads an answer
from its output, both one object of JSON (producer/errands.py):

    {"errand": "embed", "settings": {…}, "files": [path, …]}
        → {"space": id, "vectors": [base64 of little-endian float32, or [word, reason] …]}
    {"errand": "pictures", "settings": {…}, "files": [[root or null, path] …], "side": pixels}
        → {"pictures": [base64 of a WebP, or [word, reason] …]}
    → {"error": [name of the error, text]} where nothing can be done
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from PIL import Image

from worker.budget import MemoryBudget
from worker.errors import PosterError, UnreadablePoster
from worker.files import read_file
from worker.images import FORMATS, ORIENTATION_TAG, Limits, decode
from worker.resizing import Geometry
from worker.settings import Settings, load_settings

WEBP_QUALITY: Final = 80  # about 20 kB for a poster of 320×480
TURNED: Final = frozenset((5, 6, 7, 8))  # Exif orientations that exchange width and height


def embed(settings: Settings, request: Mapping[str, Any]) -> dict[str, Any]:
    """The vectors of files, wherever they lie; nothing is stored."""
    from worker.clip_embedder import CLIPEmbedder  # pictures do without open_clip, two seconds sooner

    embedder = CLIPEmbedder.from_settings(settings)
    result = embedder.embed_paths(request["files"])
    vectors: list[Any] = [None] * len(request["files"])
    for row, index in enumerate(result.indices):
        vectors[index] = base64.b64encode(result.vectors[row].astype("<f4").tobytes()).decode()
    for index, failure in result.failures.items():
        vectors[index] = [failure.word, failure.reason]
    return {"space": embedder.space.id, "vectors": vectors}


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


ERRANDS: Final[Mapping[str, Callable[[Settings, Mapping[str, Any]], dict[str, Any]]]] = {
    "embed": embed,
    "pictures": pictures,
}


def main() -> None:
    """Do one errand. What libraries print goes to stderr, and so cannot spoil the answer."""
    answer_to = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("root").setLevel(logging.ERROR)  # open_clip warns there that untrained weights are not trained
    request = json.load(sys.stdin)
    try:
        answer = ERRANDS[request["errand"]](load_settings(**request["settings"]), request)
    except PosterError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    with answer_to:
        json.dump(answer, answer_to)


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


if __name__ == "__main__":
    main()
