"""Conversion of image modes to 8-bit RGB or gray, and of color profiles to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from producer.errors import UnreadablePoster

BACKGROUND: Final = (255, 255, 255)  # behind transparent pixels: white, as on paper and in most viewers
CACHED_PROFILES: Final = 64  # a collection comes from a few programs, and so has a few profiles
MAX_PROFILE_BYTES: Final = 4_000_000  # real ones have 500 bytes to 2 MB (CMYK)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, or to L if it is gray.

    Transparency is composited on BACKGROUND; 16 bits are scaled, not clipped; CMYK as Pillow converts it.

    Raises:
        UnreadablePoster: 32-bit integers beyond 16 bits, or floating point, which have no defined color.
    """
    mode = image.mode
    if mode in ("RGB", "L") and "transparency" not in image.info:
        return image
    if mode == "1":
        return image.convert("L")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or (mode in ("RGB", "L", "P") and "transparency" in image.info):
        # paste on an opaque background is four times as fast as alpha_composite
        layer, background = image.convert("RGBA"), Image.new("RGB", image.size, BACKGROUND)
        background.paste(layer, (0, 0), layer)
        return background
    if mode.startswith("I"):
        return _from_16_bits(image, image.info.get("transparency"))
    if mode == "F":
        raise UnreadablePoster("", "unsupported", "its pixels are floating point numbers without a scale")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, transparent: object) -> Image.Image:
    """`transparent`: the pixel value that a PNG declares transparent, if any."""
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UnreadablePoster("", "unsupported", "its pixels are 32-bit numbers without a scale")
    gray = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        gray[values == transparent] = BACKGROUND[0]
    return Image.fromarray(gray)


def srgb_transform(profile: object, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an embedded ICC profile to sRGB, without alpha; None where it would change nothing.

    A profile that is damaged or does not fit the image's mode is ignored, as browsers do. Threads may share it.
    """
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE_BYTES:
        return None
    source = {"RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}.get(mode)
    return _transform(profile, source) if source else None


@lru_cache(maxsize=CACHED_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # without NOCACHE, threads would share Little CMS' cache of the last pixel
            flags=ImageCms.Flags.NOCACHE | ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
