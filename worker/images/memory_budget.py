"""A limit in bytes on the memory that several threads use at the same time, and what a decoder takes of it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from PIL import Image, ImageFile

from worker.images.jpeg import PlainJpeg, keeps_coefficients
from worker.images.png import TRANSPARENT_16
from worker.images.resize import Geometry, target_if_large
from worker.images.webp import is_plain

# What decoding takes, measured as the growth of a process (tests/unit/worker/images/test_memory_budget.py).
BASE_BYTES: Final = 2_000_000  # tables and buffers of any decoder
ROW_POINTER_BYTES: Final = 8  # Pillow keeps a pointer per row: of a picture one pixel wide, two thirds
STORED_BYTES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # others: 4 per pixel
_BITS_PER_SAMPLE, _ORIENTATION, _ROWS_PER_STRIP = 258, 274, 278  # TIFF 6.0, section 8
TILE_BYTES: Final = 500  # Python objects per strip or tile of a TIFF
WEBP_CANVAS_BYTES: Final = 12  # per pixel beside the picture: two canvases of libwebp's animation decoder, and a copy
WEBP_LOSSLESS_BYTES: Final = 5
WEBP_RGB_BYTES: Final = 3  # per pixel: torchvision's, in place of the picture
# Beside the picture: the planes of the decoder, their conversion, and the copies that a plugin makes.
BYTES_PER_PIXEL: Final = {"AVIF": 8, "HEIF": 5, "JXL": 4}
JPEG_ROW_BYTES: Final = 200  # per pixel of width: buffers of a few rows of blocks


def stored_bytes(image: Image.Image) -> int:
    """Memory of the decoded pixels in Pillow, whose rows are aligned to 4 bytes."""
    row = -(-image.width * STORED_BYTES.get(image.mode, 4) // 4) * 4
    return image.height * (row + ROW_POINTER_BYTES)


def partial_frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The box of a GIF's first frame, before it is loaded, if the frame is smaller than the canvas."""
    box = image.tile[0].extents if isinstance(image, ImageFile.ImageFile) and image.tile else None
    return box if image.format == "GIF" and box != (0, 0, *image.size) else None


def decoder_bytes(image: Image.Image, data: bytes, geometry: Geometry) -> int:
    """Memory that the decoder of an open image takes beside the pixels, at its peak; before a JPEG's `draft`."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        return _jpeg_bytes(image, data)
    if image.format == "WEBP":
        lossless = WEBP_LOSSLESS_BYTES if b"VP8L" in data[:4096] else 0
        if is_plain(image) and target_if_large(image, geometry, rotated=False):
            return pixels * (WEBP_RGB_BYTES + lossless) + len(data) - stored_bytes(image)
        return pixels * (WEBP_CANVAS_BYTES + lossless)
    if image.format in BYTES_PER_PIXEL:
        return pixels * BYTES_PER_PIXEL[image.format]
    if image.format == "TIFF":
        return _tiff_bytes(image)
    if image.format == "PNG" and TRANSPARENT_16 in image.info:
        return 40 * pixels  # decoded twice, and compared as numbers
    if partial_frame(image) is not None:
        return pixels * 4 + image.height * ROW_POINTER_BYTES  # drawn on a canvas
    row = image.width * len(image.getbands()) * 2  # of a file with 16 bits
    run_length = image.format == "BMP" and image.info.get("compression") in (1, 2)
    copy = len(data) if image.format == "PNG" else 0  # without what has nothing to do with its pixels
    return 3 * row + (2 * pixels if run_length else 0) + copy


def _jpeg_bytes(image: Image.Image, data: bytes) -> int:
    """All coefficients, of 2 bytes, if several scans give them; else those of a few rows."""
    layers = getattr(image, "layer", [])
    if not layers or not keeps_coefficients(data):
        return JPEG_ROW_BYTES * image.width
    down, across = (max(1, *(layer[n] for layer in layers)) for n in (1, 2))
    blocks = sum(
        math.ceil(image.height * layer[1] / (8 * down)) * math.ceil(image.width * layer[2] / (8 * across))
        for layer in layers
    )
    return JPEG_ROW_BYTES * image.width + 2 * 64 * blocks


def plain_jpeg_bytes(jpeg: PlainJpeg, pixels: int) -> int:
    """Memory of a plain JPEG decoded to that many pixels of 4 bytes, with all coefficients if it is progressive."""
    coefficients = 2 * jpeg.components * (jpeg.width + 31) * (jpeg.height + 31) if jpeg.progressive else 0
    return JPEG_ROW_BYTES * jpeg.width + coefficients + 4 * pixels


def _tiff_bytes(image: Image.Image) -> int:
    """A strip, which libtiff decompresses as a whole, and the pixels again when Pillow turns them."""
    tags = getattr(image, "tag_v2", {})
    turned = stored_bytes(image) if tags.get(_ORIENTATION, 1) != 1 else 0
    if image.info.get("compression") == "raw":
        return turned + TILE_BYTES * len(getattr(image, "tile", ()))
    rows, bits = tags.get(_ROWS_PER_STRIP), tags.get(_BITS_PER_SAMPLE, (1,))
    rows = min(rows, image.height) if isinstance(rows, int) else image.height
    pixel = max(1, sum(bits) / 8) if isinstance(bits, tuple) and len(bits) > 1 else 4
    return turned + math.ceil(rows * image.width * pixel)


class MemoryBudget:
    """Lets threads reserve `limit_bytes` in total; a thread waits until its amount is available, in order of arrival.

    Otherwise an upload that needs most of the budget would wait for as long as a batch keeps reserving small amounts.

    An amount above the whole budget is granted when nothing else is reserved: rejecting large images is
    the task of other limits, and waiting would never end.
    """

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` must be positive."""
        if limit_bytes < 1:
            raise ValueError(f"the budget must be at least 1 byte, not {limit_bytes}")
        self._limit, self._reserved = limit_bytes, 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def reserve(self, amount_bytes: int) -> Iterator[None]:
        """Reserve bytes for the duration of the block. Blocks must not be nested: threads could deadlock."""
        with self._changed:
            turn = object()
            self._waiting.append(turn)
            try:
                self._changed.wait_for(
                    lambda: (
                        self._waiting[0] is turn
                        and (self._reserved == 0 or self._reserved + amount_bytes <= self._limit)
                    )
                )
                self._reserved += amount_bytes
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= amount_bytes
                self._changed.notify_all()


@cache
def shared_budget(limit_bytes: int) -> MemoryBudget:
    """The one budget of that size of this process: a server decodes for many callers at once."""
    return MemoryBudget(limit_bytes)
