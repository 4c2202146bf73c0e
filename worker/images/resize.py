"""Resize images as open_clip does; large ones without a second full-size copy in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from worker.images.zero_copy import channels_last, zero_copy_rgb

# If resizing before the crop would give more than this many times the model's area, only the crop is converted and
# resized: a 1×5000 image would otherwise become 224×1,120,000 pixels.
MAX_RESIZED_AREAS: Final = 8
FILTER_SUPPORT: Final = 4  # pixels of the result that antialiased filters read beyond it; bicubic: 2
# Larger images are shrunk before they are converted or copied: first by an integer factor that leaves
# REDUCE_MARGIN times the required size, then like all others. The first step works on bands of about BAND_PIXELS, so
# that a converted copy of the whole image is never in memory.
LARGE_IMAGE_PIXELS: Final = 6_000_000
REDUCE_MARGIN: Final = 4  # at 4 the cosine to the direct resize stays above 0.9999 (measured, docs/images.md)
BAND_PIXELS: Final = 500_000
CONVERTED_BYTES: Final = 16  # per pixel, of the copies that a conversion takes: RGBA and its background, or numbers


@dataclass(frozen=True)
class Geometry:
    """A model's input geometry in pixels, from open_clip's PreprocessCfg."""

    height: int
    width: int
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"  # fill and crop, fit and pad, or distort
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # antialiased
    fill: int = 0  # value of padding, 0 to 255


def shrink(
    image: Image.Image,
    geometry: Geometry,
    convert: Callable[[Image.Image], Image.Image],
    *,
    rotated: bool,
    is_converted: bool,
) -> Image.Image | None:
    """Convert and shrink a large or long image to the size that `resize` needs; None where that saves nothing.

    `is_converted`: `convert` would change nothing.
    """
    if _is_long(image, geometry, rotated=rotated):
        return _resize_crop(image, geometry, convert, rotated=rotated)
    target = target_if_large(image, geometry, rotated=rotated)
    if target is None:
        return None
    factor = int(min(image.width / target[0], image.height / target[1]) / REDUCE_MARGIN)
    if factor < 2:
        return None
    if is_converted:
        reduced = image.reduce(factor)
    else:
        size = math.ceil(image.width / factor), math.ceil(image.height / factor)
        rows = max(1, BAND_PIXELS // (image.width * factor))  # of the result
        reduced = Image.new("L", (1, 1))
        for top in range(0, image.height, rows * factor):
            bottom = min(image.height, top + rows * factor)
            band = convert(image.crop((0, top, image.width, bottom))).reduce(factor)
            if top == 0:
                reduced = Image.new(band.mode, size)
            reduced.paste(band, (0, top // factor))
    box = (0, 0, image.width / factor, image.height / factor)  # the last row and column may be partial
    return reduced.resize(target, Image.Resampling[geometry.interpolation.upper()], box=box)


def _is_long(image: Image.Image, geometry: Geometry, *, rotated: bool) -> bool:
    return is_long(*(image.size[::-1] if rotated else image.size), geometry)


def is_long(width: int, height: int, geometry: Geometry) -> bool:
    """Whether an image of this size, resized before the crop, would have far more pixels than the model uses."""
    width, height = _resized_size(width, height, geometry)
    return width * height > MAX_RESIZED_AREAS * geometry.width * geometry.height


def working_bytes(image: Image.Image, geometry: Geometry) -> int:
    """Memory that `shrink` and `resize` take beside an image of this mode and size, at most."""
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    pixels, reduced = float(image.width * image.height), 0.0
    if any(_is_long(image, geometry, rotated=rotated) for rotated in (False, True)):
        short, (low, high) = min(image.size), sorted((geometry.width, geometry.height))
        pixels = min(pixels, short * (short * high / low + 2 * FILTER_SUPPORT))
    elif pixels > LARGE_IMAGE_PIXELS:
        # the reduced image has less than twice REDUCE_MARGIN times the required width and height
        reduced = pixels * min(1, 2 * REDUCE_MARGIN * scale_to(image.width, image.height, geometry)) ** 2
        pixels = 0.0 if plain else max(BAND_PIXELS, 2.0 * image.width)
    return math.ceil(pixels * (4 if plain else CONVERTED_BYTES) + 4 * reduced)


def target_if_large(image: Image.Image, geometry: Geometry, *, rotated: bool) -> tuple[int, int] | None:
    """Width and height to shrink a large image to, before it is rotated; None for all others."""
    if image.width * image.height <= LARGE_IMAGE_PIXELS or _is_long(image, geometry, rotated=rotated):
        return None
    target = _resized_size(*(image.size[::-1] if rotated else image.size), geometry)
    return target[::-1] if rotated else target


def scale_to(width: int, height: int, geometry: Geometry) -> float:
    """The factor that scales the image to the model's size, as `resize_mode` defines it."""
    ratios = geometry.width / width, geometry.height / height
    return min(ratios) if geometry.resize_mode == "longest" else max(ratios)


def _resized_size(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Width and height before crop or padding, rounded like torchvision and open_clip."""
    if geometry.resize_mode == "squash":
        return geometry.width, geometry.height
    if geometry.resize_mode == "shortest" and geometry.width == geometry.height:
        side = geometry.width
        return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    scale = scale_to(width, height, geometry)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(source: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Resize an image that `shrink` returned or left alone, then crop or pad.

    Args:
        source: uint8 (1, channels, height, width), as `as_tensor` gives it.

    Returns:
        uint8 (1 or 3, height, width), which may be a view of `source`.
    """
    before = source.shape[3], source.shape[2]
    width, height = _resized_size(*before, geometry)
    if (width, height) != before:
        source = functional.interpolate(source, (height, width), mode=geometry.interpolation, antialias=True)
    pad_x, pad_y = max(0, geometry.width - width), max(0, geometry.height - height)
    if pad_x or pad_y:
        sides = (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2)
        source = functional.pad(source, sides, value=geometry.fill)
    left = round((width + pad_x - geometry.width) / 2.0)
    top = round((height + pad_y - geometry.height) / 2.0)
    return source[0, :3, top : top + geometry.height, left : left + geometry.width]


def _resize_crop(
    image: Image.Image, geometry: Geometry, convert: Callable[[Image.Image], Image.Image], *, rotated: bool
) -> Image.Image:
    """The model's crop of a long image: only the part that it shows is converted and resized."""
    wanted = (geometry.height, geometry.width) if rotated else (geometry.width, geometry.height)
    resized = _resized_size(*(image.size[::-1] if rotated else image.size), geometry)
    low, high = [0.0, 0.0], [0.0, 0.0]  # the crop in pixels of the image, by axis
    part = [0, 0, 0, 0]  # it, with the pixels around it that the filter reads
    for axis, size in enumerate(resized[::-1] if rotated else resized):
        scale = image.size[axis] / size
        start = round((size - wanted[axis]) / 2.0)
        low[axis], high[axis] = max(0.0, start * scale), min(image.size[axis], (start + wanted[axis]) * scale)
        margin = FILTER_SUPPORT * max(1.0, scale)
        part[axis] = max(0, math.floor(low[axis] - margin))
        part[axis + 2] = min(image.size[axis], math.ceil(high[axis] + margin))
    box = (low[0] - part[0], low[1] - part[1], high[0] - part[0], high[1] - part[1])
    converted = convert(image.crop((part[0], part[1], part[2], part[3])))
    return converted.resize(wanted, Image.Resampling[geometry.interpolation.upper()], box=box)


def as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (1, channels, height, width), channels last, which is fastest to resize.

    RGB has a fourth, undefined channel, because it is a view of Pillow's memory; it must not be written to.
    """
    view = zero_copy_rgb(image)
    if view is not None:
        return view
    array = np.array(image)  # a copy: Pillow's memory must not be writable through the tensor
    return channels_last(torch.from_numpy(array.reshape(*array.shape[:2], -1)))
