"""Every mode that an image can have, turned into RGB or gray of 8 bits; color profiles into sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from producer.errors import UnreadablePoster

GROUND: Final = (255, 255, 255)  # what shows through transparent pixels: white, as on paper and in most viewers
PROFILES_KEPT: Final = 64  # collections come from a few programs, and so with a few profiles
LARGEST_PROFILE_BYTES: Final = 4_000_000  # real ones have 500 bytes to 2 MB (CMYK)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any mode into RGB, or L where the image is gray.

    Transparency is composited on GROUND; 16 bits are scaled, not clipped; CMYK as Pillow converts it.

    Raises:
        UnreadablePoster: 32-bit whole numbers beyond 16 bits, or floating point: no color by themselves.
    """
    mode = image.mode
    if mode in ("RGB", "L"):
        if "transparency" not in image.info:
            return image
        return _on_ground(image.convert("RGBA"))
    if mode == "1":
        return image.convert("L")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or (mode == "P" and "transparency" in image.info):
        return _on_ground(image.convert("RGBA"))
    if mode.startswith("I"):
        return _from_16_bits(image, image.info.get("transparency"))
    if mode == "F":
        raise UnreadablePoster("", "unsupported", "its pixels are floating point numbers without a scale")
    return image.convert("RGB")


def _on_ground(image: Image.Image) -> Image.Image:
    ground = Image.new("RGB", image.size, GROUND)
    ground.paste(image, (0, 0), image)  # on an opaque ground, four times as fast as alpha_composite
    return ground


def _from_16_bits(image: Image.Image, transparent: object) -> Image.Image:
    """`transparent`: the value that PNG calls see-through, if it names one."""
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UnreadablePoster("", "unsupported", "its pixels are 32-bit numbers without a scale")
    gray = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        gray[values == transparent] = GROUND[0]
    return Image.fromarray(gray)


class IntoSRGB:
    """Turns pixels of one embedded ICC profile into sRGB. Safe to share between threads."""

    def __init__(self, transform: ImageCms.ImageCmsTransform) -> None:
        """Made by `of`."""
        self._transform = transform

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image of the same size; alpha is kept aside by the caller."""
        corrected = ImageCms.applyTransform(image, self._transform)
        assert corrected is not None  # only an in-place transform returns nothing
        return corrected

    @staticmethod
    def of(profile: object, mode: str) -> IntoSRGB | None:
        """The transform for an image's profile; None where it would change nothing or cannot be read.

        A profile that does not fit the image's mode, or is damaged, is ignored, as browsers do.
        """
        if not isinstance(profile, bytes) or not 128 < len(profile) <= LARGEST_PROFILE_BYTES:
            return None
        source = {"RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}.get(mode)
        return _transform(profile, source) if source else None


@lru_cache(maxsize=PROFILES_KEPT)
def _transform(profile: bytes, mode: str) -> IntoSRGB | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return IntoSRGB(
            ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                mode,
                "RGB",
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                # without NOCACHE, Little CMS shares the last pixel between threads
                flags=ImageCms.Flags.NOCACHE | ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
