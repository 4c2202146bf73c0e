"""A picture of a map: the posters as dots, denser where there are more; a PNG with a transparent ground."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np

from producer.map.poster_map import SIDE, PosterMap

COLOR: Final = (207, 92, 64)  # as the pages' accent, between that of the light ones and that of the dark ones
MARGIN: Final = 8
DOTS_LARGE: Final = 3000  # up to so many posters are drawn as squares of 5 pixels, more as squares of 3


def picture(shown: PosterMap, width: int) -> bytes:
    """A PNG of `width` times `width` pixels."""
    at = MARGIN + shown.square.astype(np.int64) * (width - 1 - 2 * MARGIN) // SIDE
    reach = 2 if len(at) <= DOTS_LARGE else 1
    alpha = np.zeros((width, width))
    steps = range(-reach, reach + 1)
    for right in steps:
        for down in steps:
            alpha += np.bincount((at[:, 1] + down) * width + at[:, 0] + right, minlength=width * width).reshape(
                alpha.shape
            )
    pixels = np.empty((width, width, 4), np.uint8)
    pixels[..., :3] = COLOR
    pixels[..., 3] = 255 * (1 - 0.45**alpha)
    return _png(pixels)


def _png(pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> bytes:
    """RGBA pixels (height, width, 4) as a PNG (W3C, "Portable Network Graphics"), every line unfiltered."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
