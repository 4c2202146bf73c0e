"""From a decoded image to the model's size, as open_clip would; large images without a second full-size copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from worker.images.zero_copy import zero_copy_rgb

# A resized image of more than this many times the model's area is cut to size while it is resized:
# a 1×5000 image would otherwise pass through 224×1,120,000 pixels.
LARGEST_DETOUR: Final = 8
# Images of more pixels are shrunk in place before anything is converted or copied: first by a whole factor
# that leaves REDUCE_MARGIN times the size that is needed, then as all others. BAND_ROWS of that first result
# are made at a time, so that what has to be converted never lies in memory twice.
LARGE_PIXELS: Final = 6_000_000
REDUCE_MARGIN: Final = 4  # at 4 the cosine to the direct resize stays above 0.9999 (measured, docs/images.md)
BAND_ROWS: Final = 64


@dataclass(frozen=True)
class Geometry:
    """How a model wants its input, as open_clip's PreprocessCfg says.

    Attributes:
        height, width: pixels.
        resize_mode: ``shortest`` (fill, cut the rest), ``longest`` (fit, pad) or ``squash``.
        interpolation: ``bicubic`` or ``bilinear``, antialiased.
        fill: value of padded pixels, 0 to 255.
    """

    height: int
    width: int
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0


def shrink(
    image: Image.Image, geometry: Geometry, plain: Callable[[Image.Image], Image.Image], *, turned: bool
) -> Image.Image | None:
    """A large image, plain and of the size that resize would give it; None where that saves nothing."""
    wanted = _wanted_if_large(image, geometry, turned=turned)
    if wanted is None:
        return None
    factor = int(min(image.width / wanted[0], image.height / wanted[1]) / REDUCE_MARGIN)
    if factor < 2:
        return None
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        reduced = image.reduce(factor)
    else:
        size = math.ceil(image.width / factor), math.ceil(image.height / factor)
        reduced = Image.new("L", (1, 1))
        for top in range(0, image.height, BAND_ROWS * factor):
            bottom = min(image.height, top + BAND_ROWS * factor)
            band = plain(image.crop((0, top, image.width, bottom))).reduce(factor)
            if top == 0:
                reduced = Image.new(band.mode, size)
            reduced.paste(band, (0, top // factor))
    box = (0, 0, image.width / factor, image.height / factor)  # the last row and column may be partial ones
    return reduced.resize(wanted, _resample(geometry), box=box)


def shrink_webp(image: Image.Image, data: bytes, geometry: Geometry, *, turned: bool) -> Image.Image | None:
    """The same for a large, opaque, still WebP, which Pillow would hold four times while it decodes it."""
    wanted = _wanted_if_large(image, geometry, turned=turned)
    if wanted is None or image.mode != "RGB" or getattr(image, "is_animated", False):
        return None
    from torchvision.io import ImageReadMode, decode_webp  # takes 0.2 s to import, and large WebP are rare

    pixels = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB).unsqueeze(0)
    small = functional.interpolate(pixels, wanted[::-1], mode=geometry.interpolation, antialias=True)
    return Image.fromarray(small.squeeze(0).permute(1, 2, 0).contiguous().numpy())


def _wanted_if_large(image: Image.Image, geometry: Geometry, *, turned: bool) -> tuple[int, int] | None:
    """Width and height to shrink a large image to, before it is turned; None for all others."""
    if image.width * image.height <= LARGE_PIXELS:
        return None
    wanted = _resized(*(image.size[::-1] if turned else image.size), geometry)
    if wanted[0] * wanted[1] > LARGEST_DETOUR * geometry.width * geometry.height:
        return None
    return wanted[::-1] if turned else wanted


def _resample(geometry: Geometry) -> Image.Resampling:
    return Image.Resampling.BICUBIC if geometry.interpolation == "bicubic" else Image.Resampling.BILINEAR


def scale_to(width: int, height: int, geometry: Geometry) -> float:
    """The factor by which the image shrinks to the model's size, the larger one where they differ."""
    ratios = geometry.width / width, geometry.height / height
    return min(ratios) if geometry.resize_mode == "longest" else max(ratios)


def _resized(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Width and height before cutting or padding, rounded as torchvision and open_clip do."""
    if geometry.resize_mode == "squash":
        return geometry.width, geometry.height
    if geometry.resize_mode == "shortest" and geometry.width == geometry.height:
        side = geometry.width
        return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    scale = scale_to(width, height, geometry)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    """Resize, then cut or pad around the center: uint8 (1 or 3, height, width)."""
    width, height = _resized(image.width, image.height, geometry)
    if width * height > LARGEST_DETOUR * geometry.width * geometry.height:
        return _resize_center(image, width, height, geometry)
    source = as_tensor(image)
    if (width, height) != image.size:
        source = functional.interpolate(source, (height, width), mode=geometry.interpolation, antialias=True)
    pixels = source.squeeze(0)
    pad_x, pad_y = max(0, geometry.width - width), max(0, geometry.height - height)
    if pad_x or pad_y:
        sides = (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2)
        pixels = functional.pad(pixels, sides, value=geometry.fill)
    left = round((pixels.shape[2] - geometry.width) / 2.0)
    top = round((pixels.shape[1] - geometry.height) / 2.0)
    return pixels[:3, top : top + geometry.height, left : left + geometry.width]


def _resize_center(image: Image.Image, width: int, height: int, geometry: Geometry) -> torch.Tensor:
    """Resize only the part that the cut keeps; Pillow reads the neighbors of the part for its filter."""
    left, top = round((width - geometry.width) / 2.0), round((height - geometry.height) / 2.0)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + geometry.width) * across, (top + geometry.height) * down)
    box = (max(0.0, box[0]), max(0.0, box[1]), min(float(image.width), box[2]), min(float(image.height), box[3]))
    return as_tensor(image.resize((geometry.width, geometry.height), _resample(geometry), box=box)).squeeze(0)[:3]


def as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (1, channels, height, width), a view with the channels last, as the resize is fastest.

    RGB comes with a fourth channel that means nothing, as Pillow's memory has it; it must not be written to.
    """
    borrowed = zero_copy_rgb(image)
    if borrowed is not None:
        return borrowed
    array = np.array(image)  # a copy: Pillow's memory must not be written through the tensor
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).unsqueeze(0)
