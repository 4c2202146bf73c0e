"""From a file's bytes to RGB pixels at the model's size. Pillow decodes, torch resizes. Rules: docs/images.md."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from worker.colour import IntoSRGB, to_rgb
from worker.errors import UnreadablePoster

# Only these decoders are ever reached; their order is the order in which Pillow tries them.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # MPO comes with JPEG

# Draft decoding (a JPEG at 1/2, 1/4 or 1/8) stops at this multiple of the size that is needed: at 2 the
# cosine to the full decode stays above 0.9995, at 1 it does not (measured, docs/images.md).
DRAFT_MARGIN: Final = 2

# A resized image of more than this many times the model's area is cut to size while it is resized:
# a 1×5000 image would otherwise pass through 224×1,120,000 pixels.
LARGEST_DETOUR: Final = 8

ORIENTATION_TAG: Final = 0x0112  # Exif 2.32, table 4
TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# How other contents begin, so that the failure can name them.
SIGNATURES: Final = (
    (4, b"ftyphei", "HEIC is not decoded here: convert it, for example with the plug-in pillow-heif"),
    (4, b"ftyphev", "HEIC is not decoded here: convert it, for example with the plug-in pillow-heif"),
    (4, b"ftypmif1", "HEIF is not decoded here: convert it, for example with the plug-in pillow-heif"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL is not decoded here: convert it"),
    (0, b"\xff\x0a", "JPEG XL is not decoded here: convert it"),
    (0, b"8BPS", "Photoshop files are not decoded here: convert it"),
    (0, b"%!PS", "PostScript is not decoded here: convert it"),
    (0, b"%PDF", "PDF is not decoded here: convert it"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000 is not decoded here: convert it"),
)

# What Pillow's decoders raise on damaged files, found by fuzzing (tests/test_images_fuzz.py).
DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Warning,  # where the program that imports us turns warnings into errors
)


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


@dataclass(frozen=True)
class Limits:
    """What is refused from the header, before anything is decoded."""

    max_pixels: int = 100_000_000


def decode(data: bytes, geometry: Geometry, *, name: str, limits: Limits | None = None) -> torch.Tensor:
    """Decode an image file to the model's size.

    Args:
        data: the whole file; its content decides the format.
        name: the file, for the error.

    Returns:
        uint8 (3, height, width), RGB, contiguous, on the CPU.

    Raises:
        UnreadablePoster: unreadable, truncated, too-large or unsupported.
    """
    if not data:
        raise UnreadablePoster(name, "unreadable", "the file is empty")
    with _explained(name, data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        most = (limits or Limits()).max_pixels
        if width * height > most:
            raise UnreadablePoster(name, "too-large", f"it has {width}×{height} pixels, the limit is {most:,} in all")
        profile = image.info.get("icc_profile")
        if image.format in ("JPEG", "MPO"):
            scale = _scale(width, height, geometry)
            wanted = (math.ceil(width * scale * DRAFT_MARGIN), math.ceil(height * scale * DRAFT_MARGIN))
            if wanted < (width, height):
                image.draft(None, wanted)
        image.load()
        return _finish(image, geometry, profile, _orientation(image))


def fit(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    """The same for an image in memory, of any mode: uint8 (3, height, width).

    Raises:
        UnreadablePoster: a mode that has no meaning as colour, or pixels that cannot be loaded.
    """
    name = str(getattr(image, "filename", "") or "the image")
    with _explained(name, b""):
        image.load()
        return _finish(image, geometry, image.info.get("icc_profile"), _orientation(image))


def _finish(image: Image.Image, geometry: Geometry, profile: object, orientation: int) -> torch.Tensor:
    into_srgb = IntoSRGB.of(profile, image.mode)
    if into_srgb is not None and image.mode not in ("RGB", "RGBA"):
        image, into_srgb = into_srgb(image), None  # CMYK and grey have no RGB to correct later
    pixels = to_rgb(image)
    if orientation in TRANSPOSE:
        pixels = pixels.transpose(TRANSPOSE[orientation])
    sized = _resize(pixels, geometry)
    if into_srgb is not None:  # at the model's size it is a hundredth of the work, and no visible difference
        corrected = into_srgb(Image.fromarray(sized.permute(1, 2, 0).contiguous().numpy(), "RGB"))
        sized = _as_tensor(corrected).squeeze(0)
    return sized.expand(3, -1, -1).contiguous()


def _scale(width: int, height: int, geometry: Geometry) -> float:
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
    scale = _scale(width, height, geometry)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    """Resize, then cut or pad around the centre: uint8 (1 or 3, height, width)."""
    width, height = _resized(image.width, image.height, geometry)
    if width * height > LARGEST_DETOUR * geometry.width * geometry.height:
        return _resize_centre(image, width, height, geometry)
    source = _as_tensor(image)
    if (width, height) != image.size:
        source = functional.interpolate(source, (height, width), mode=geometry.interpolation, antialias=True)
    pixels = source.squeeze(0)
    pad_x, pad_y = max(0, geometry.width - width), max(0, geometry.height - height)
    if pad_x or pad_y:
        sides = (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2)
        pixels = functional.pad(pixels, sides, value=geometry.fill)
    left = round((pixels.shape[2] - geometry.width) / 2.0)
    top = round((pixels.shape[1] - geometry.height) / 2.0)
    return pixels[:, top : top + geometry.height, left : left + geometry.width]


def _resize_centre(image: Image.Image, width: int, height: int, geometry: Geometry) -> torch.Tensor:
    """Resize only the part that the cut keeps; Pillow reads the neighbours of the part for its filter."""
    left, top = round((width - geometry.width) / 2.0), round((height - geometry.height) / 2.0)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + geometry.width) * across, (top + geometry.height) * down)
    box = (max(0.0, box[0]), max(0.0, box[1]), min(float(image.width), box[2]), min(float(image.height), box[3]))
    resample = Image.Resampling.BICUBIC if geometry.interpolation == "bicubic" else Image.Resampling.BILINEAR
    return _as_tensor(image.resize((geometry.width, geometry.height), resample, box=box)).squeeze(0)


def _as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (1, channels, height, width), a view with the channels last, as the resize is fastest."""
    array = np.array(image)  # a copy: Pillow's memory must not be written through the tensor
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).unsqueeze(0)


def _orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 to 8; damaged Exif data counts as none."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


@contextmanager
def _explained(name: str, data: bytes) -> Iterator[None]:
    """Turn what decoders raise into UnreadablePoster with a word and a sentence."""
    try:
        yield
    except UnreadablePoster as error:
        raise UnreadablePoster(name, error.word, error.reason) from error.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePoster(name, "too-large", f"it has more pixels than can be allowed: {error}") from error
    except Image.UnidentifiedImageError as error:
        for offset, signature, reason in SIGNATURES:
            if data.startswith(signature, offset):
                raise UnreadablePoster(name, "unsupported", reason) from error
        raise UnreadablePoster(name, "unreadable", "its content is no image that this program reads") from error
    except DECODER_ERRORS as error:
        text = str(error) or type(error).__name__
        if "truncated" in text.lower() or isinstance(error, EOFError) or _is_short_riff(data):
            raise UnreadablePoster(name, "truncated", f"the file ends too early ({text})") from error
        raise UnreadablePoster(name, "unreadable", f"it is damaged ({text})") from error


def _is_short_riff(data: bytes) -> bool:
    """True for a WebP that ends before the length that its first bytes promise."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8
