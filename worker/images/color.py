"""Conversion of image modes to 8-bit RGB or gray, and of color profiles to sRGB."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from producer.errors import UnreadablePoster
from worker.images.png import MAX_PROFILE_BYTES

BACKGROUND: Final = (255, 255, 255)  # behind transparent pixels: white, as on paper and in most viewers
CACHED_PROFILES: Final = 64  # a collection comes from a few programs, and so has a few profiles
# A profile that moves no color by more than this is sRGB, whatever it is called; Little CMS rounds by one.
SAME_COLOR: Final = 1
# A profile that moves middle gray by more than this is applied before the resize: averages of its numbers are not
# averages of colors. Others are applied after it, a hundredth of the work without a visible difference.
FAR_FROM_SRGB: Final = 8
INVERTED: Final = "inverted"  # key in an image's `info`: 16-bit gray values whose 0 is white

# The color of the pixels in each of Pillow's modes, as ICC profiles call it; of others, a profile is ignored.
_SPACES: Final = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}
_COLOR_MODES: Final = {
    **dict.fromkeys(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"), "RGB"),
    **dict.fromkeys(("L", "LA", "La", "1", "I", "I;16", "I;16B", "I;16L", "I;16N"), "L"),
    "CMYK": "CMYK",
    "LAB": "LAB",
}


@dataclass(frozen=True)
class ToSrgb:
    """A transform to sRGB; threads may share it.

    Attributes:
        early: apply it at the original size, before the resize.
    """

    transform: ImageCms.ImageCmsTransform
    early: bool

    def apply(self, color: Image.Image) -> Image.Image:
        """An image without alpha, of the transform's mode, as RGB."""
        result = self.transform.apply(color)
        assert result is not None  # only with `imOut`
        return result


def to_rgb(image: Image.Image, to_srgb: ToSrgb | None = None) -> Image.Image:
    """Convert an image of any mode to RGB, or to L if it is gray.

    Transparency is composited on BACKGROUND; 16 bits are scaled, not clipped; CMYK without a profile as Pillow
    converts it.

    Args:
        image: loaded; `transparency` in its info is in the units of the pixels that Pillow gives.
        to_srgb: applied if it is to be applied early.

    Raises:
        UnreadablePoster: 32-bit integers or floating point, which have no defined color.
    """
    color, alpha = _split(image)
    if to_srgb is not None and to_srgb.early:
        color = to_srgb.apply(color)
    elif color.mode == "CMYK":
        color = color.convert("RGB")
    if alpha is None:
        return color
    # paste on an opaque background is four times as fast as alpha_composite
    background = Image.new(color.mode, color.size, BACKGROUND[: len(color.getbands())])
    background.paste(color, (0, 0), alpha)
    return background


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colors, in a mode of _SPACES or LAB, and the alpha."""
    mode, transparent = image.mode, image.info.get("transparency")
    if mode == "I":
        raise UnreadablePoster("", "unsupported", "its pixels are 32-bit numbers without a scale")
    if mode.startswith("I"):
        return _from_16_bits(image, transparent)
    if mode == "F":
        raise UnreadablePoster("", "unsupported", "its pixels are floating point numbers without a scale")
    if mode == "1":
        image, mode = image.convert("L"), "L"
    if mode == "L" and isinstance(transparent, int):
        return image, image.point([0 if value == transparent else 255 for value in range(256)])
    if mode in ("LA", "La"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if mode in ("RGBA", "PA", "RGBa") or (mode in ("RGB", "P") and transparent is not None):
        layer = image.convert("RGBA")
        return layer.convert("RGB"), layer.getchannel("A")
    if mode in ("RGB", "L", "CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


def _from_16_bits(image: Image.Image, transparent: object) -> tuple[Image.Image, Image.Image | None]:
    """`transparent`: the pixel value that a PNG declares transparent, if any."""
    values = np.asarray(image)
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.info.get(INVERTED):
        gray = 255 - gray
    alpha = None
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.fromarray(gray), alpha


_cached: OrderedDict[tuple[bytes, str], ToSrgb | None] = OrderedDict()  # by digest: profiles may have megabytes
_cache_lock = threading.Lock()


def has_alpha(image: Image.Image) -> bool:
    """Whether some of its pixels may be transparent."""
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def srgb_transform(profile: object, mode: str, *, translucent: bool = False) -> ToSrgb | None:
    """The transform from an ICC profile to sRGB for an image of this mode; None where it would change nothing.

    It is applied early to `translucent` images: a mixture with the background is one of colors, not of their numbers.

    A profile that is damaged or does not fit the image's mode is ignored, as browsers do.
    """
    color = _COLOR_MODES.get(mode)
    if color == "LAB":
        profile = b""  # the pixels are in the connection space
    elif color is None or not _fits(profile, color):
        return None
    assert isinstance(profile, bytes)
    key = hashlib.sha256(profile).digest(), color
    with _cache_lock:
        known, made = key in _cached, _cached.get(key)
        if known:
            _cached.move_to_end(key)
    if not known:
        made = _make_transform(profile, color)
        with _cache_lock:
            _cached[key] = made
            while len(_cached) > CACHED_PROFILES:
                _cached.popitem(last=False)
    return replace(made, early=True) if made and translucent else made


def _fits(profile: object, color: str) -> bool:
    return isinstance(profile, bytes) and 128 < len(profile) <= MAX_PROFILE_BYTES and profile[16:20] == _SPACES[color]


def _make_transform(profile: bytes, mode: str) -> ToSrgb | None:
    try:
        source = ImageCms.createProfile("LAB") if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
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
    if mode in ("CMYK", "LAB"):
        return ToSrgb(transform, early=True)
    before = _all_colors() if mode == "RGB" else Image.linear_gradient("L")
    result = transform.apply(before)
    assert result is not None  # only with `imOut`
    moved = np.abs(np.asarray(result).astype(int) - np.asarray(before.convert("RGB")).astype(int))
    if moved.max() <= SAME_COLOR:
        return None
    middle = Image.new(mode, (1, 1), (128,) * len(mode))
    gray = transform.apply(middle)
    assert gray is not None
    return ToSrgb(transform, early=bool(np.abs(np.asarray(gray).astype(int) - 128).max() > FAR_FROM_SRGB))


def _all_colors() -> Image.Image:
    """Every combination of 18 levels per channel."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3))
