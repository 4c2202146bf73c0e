"""Screenshots: the picture between bars of one color, with or without captions in them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from producer.errors import UnreadablePoster
from producer.settings import Settings
from worker.images.decode import Limits
from worker.images.memory_budget import shared_budget
from worker.renditions.bounded import Pixels, bounded_pixels, encoded

SIDE: Final = 1600  # pixels of the longer side: between the bars remains more than any model sees
TOLERANCE: Final = 12  # of 255, by which a pixel of a bar differs from its color: compression
BAR_SHARE: Final = 0.6  # of a line in a bar that has its color: the rest is a caption, or icons
MIN_BARS: Final = 0.04  # of height or width; less is a frame that the picture may have
MIN_PICTURE: Final = 0.2  # of height and width: otherwise it is a drawing on a plain ground


def without_bars(data: bytes, settings: Settings) -> bytes | None:
    """The picture between the bars, as a PNG file; None where there are no bars, or no image."""
    limits, budget = Limits.from_settings(settings), shared_budget(settings.decode_memory_bytes)
    try:
        pixels = bounded_pixels(data, (SIDE, SIDE), limits, budget, name="")
    except UnreadablePoster:  # embedding it reports the reason
        return None
    top, bottom = _between_bars(pixels)
    height, width = pixels.shape[:2]
    if (bottom - top) < MIN_PICTURE * height:
        return None
    left, right = _between_bars(pixels[top:bottom].transpose(1, 0, 2))
    if (right - left) < MIN_PICTURE * width:
        return None
    if height - (bottom - top) < MIN_BARS * height and width - (right - left) < MIN_BARS * width:
        return None
    return encoded(np.ascontiguousarray(pixels[top:bottom, left:right]), "PNG")


def _between_bars(pixels: Pixels) -> tuple[int, int]:
    """The first row below the upper bar, and the first of the lower bar."""
    top = _bar_rows(pixels)
    return top, max(top, len(pixels) - _bar_rows(pixels[::-1]))


def _bar_rows(pixels: Pixels) -> int:
    """How many rows from the first one on belong to a bar."""
    color = np.median(pixels[0], axis=0)
    same: npt.NDArray[np.bool_] = (np.abs(pixels.astype(np.int16) - color) <= TOLERANCE).all(axis=2)
    inside = np.flatnonzero(same.mean(axis=1) < BAR_SHARE)
    return int(inside[0]) if len(inside) else 0
