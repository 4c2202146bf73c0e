"""Image files as pixels of a bounded size, decoded under the rules for posters."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from producer.errors import UnreadablePoster
from worker.images.decode import DECODER_ERRORS, Limits, decode, exif_orientation, open_image
from worker.images.memory_budget import MemoryBudget
from worker.images.resize import Geometry

Pixels = npt.NDArray[np.uint8]


def bounded_pixels(data: bytes, box: tuple[int, int], limits: Limits, budget: MemoryBudget, *, name: str) -> Pixels:
    """An image as a viewer shows it: uint8 (height, width, 3), RGB.

    Args:
        data: the whole file.
        box: width and height that it does not exceed; images are never enlarged.
        name: the file, for the error.

    Raises:
        UnreadablePoster: as `decode` raises it.
    """
    tensor = decode(data, _size(data, limits, box), name=name, limits=limits, budget=budget)
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


def _size(data: bytes, limits: Limits, box: tuple[int, int]) -> Geometry:
    """The image's own aspect ratio, within the box, never enlarged."""
    try:
        with open_image(data, limits) as image:
            width, height = image.size
            if exif_orientation(image.info.get("exif")) >= 5:
                width, height = height, width
    except (UnreadablePoster, *DECODER_ERRORS):  # decode says what is wrong, if it finds it as well
        width, height = box
    scale = min(1.0, box[0] / width, box[1] / height)
    return Geometry(max(1, round(height * scale)), max(1, round(width * scale)), "squash")


def encoded(pixels: Pixels, format: str, **options: object) -> bytes:
    """uint8 (height, width, 3) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()
