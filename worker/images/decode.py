"""Decode image files to RGB at the model's size: Pillow decodes (torchvision for large WebPs), torch resizes.

See docs/images.md.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from PIL import Image

from producer.errors import UnreadablePoster
from worker.images.bombs import MAX_SCANS, decoded_pixels, has_too_many_scans
from worker.images.color import srgb_transform, to_rgb
from worker.images.memory_budget import MemoryBudget
from worker.images.pillow_defaults import own_pillow_defaults
from worker.images.resize import Geometry, as_tensor, resize, scale_to, shrink
from worker.images.webp import shrink_webp

# The only formats accepted; Pillow tries them in this order.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # JPEG includes MPO
# Draft decoding (a JPEG at 1/2, 1/4 or 1/8) keeps at least this multiple of the required size: at 2 the cosine
# to the full decode stays above 0.9995, at 1 it does not (measured, docs/images.md).
DRAFT_MARGIN: Final = 2
# Memory while decoding, measured (docs/images.md); for other formats: Pillow's 4 bytes, and a fifth for bands.
BYTES_PER_PIXEL: Final = {"WEBP": 16, "AVIF": 10}
DEFAULT_BYTES_PER_PIXEL: Final = 5
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
# Signatures of formats that are not decoded, so that the error can name them: offset, bytes, reason.
SIGNATURES: Final = (
    (4, b"ftyphei", "HEIC is not supported: convert it, for example with pillow-heif"),
    (4, b"ftyphev", "HEIC is not supported: convert it, for example with pillow-heif"),
    (4, b"ftypmif1", "HEIF is not supported: convert it, for example with pillow-heif"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL is not supported: convert it"),
    (0, b"\xff\x0a", "JPEG XL is not supported: convert it"),
    (0, b"8BPS", "Photoshop (PSD) is not supported: convert it"),
    (0, b"%!PS", "PostScript is not supported: convert it"),
    (0, b"%PDF", "PDF is not supported: convert it"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000 is not supported: convert it"),
)
# What Pillow's decoders raise for damaged files, found by fuzzing (tests/unit/worker/images/test_fuzz.py).
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
    Warning,  # in programs that turn warnings into errors
)


@dataclass(frozen=True)
class Limits:
    """Limits that are checked on the header, before anything is decoded."""

    max_pixels: int = 100_000_000


def decode(
    data: bytes, geometry: Geometry, *, name: str, limits: Limits | None = None, budget: MemoryBudget | None = None
) -> torch.Tensor:
    """Decode an image file to the model's size.

    Args:
        data: the whole file; its content decides the format.
        name: the file, for the error.
        budget: reserved while the image is in memory at its original size.

    Returns:
        uint8 (3, height, width), RGB, contiguous, on the CPU.

    Raises:
        UnreadablePoster: unreadable, truncated, too-large or unsupported.
    """
    if not data:
        raise UnreadablePoster(name, "unreadable", "the file is empty")
    with (
        own_pillow_defaults(),
        _errors_translated(name, data),
        Image.open(io.BytesIO(data), formats=FORMATS) as image,
    ):
        width, height = image.size
        limit, pixels = (limits or Limits()).max_pixels, decoded_pixels(image)
        if pixels > limit:
            tiles = "" if width * height > limit else f" in tiles of {pixels:,}"
            raise UnreadablePoster(
                name, "too-large", f"it has {width}×{height} pixels{tiles}, the limit is {limit:,} in total"
            )
        profile = image.info.get("icc_profile")
        if image.format in ("JPEG", "MPO"):
            if has_too_many_scans(data):
                raise UnreadablePoster(name, "too-large", f"it has more than {MAX_SCANS} scans")
            scale = max(scale_to(width, height, geometry), scale_to(height, width, geometry))  # rotated or not
            needed = (math.ceil(width * scale * DRAFT_MARGIN), math.ceil(height * scale * DRAFT_MARGIN))
            if needed < (width, height):
                image.draft(None, needed)
                pixels = image.width * image.height
        per_pixel = BYTES_PER_PIXEL.get(image.format or "", DEFAULT_BYTES_PER_PIXEL)
        with budget.reserve(pixels * per_pixel) if budget else nullcontext():
            small = None
            if image.format == "WEBP":
                small = shrink_webp(image, data, geometry, rotated=orientation_of(image) >= 5)
            if small is None:
                image.load()
            # Read the orientation after the load: a PNG's Exif data may follow its pixels. Pillow would load
            # them to find it, and for a damaged file a second load would return without an error.
            return _finish(small or image, geometry, profile, orientation_of(image))


def fit(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    """Convert an image in memory, of any mode, to the model's size: uint8 (3, height, width), RGB.

    Raises:
        UnreadablePoster: its mode cannot be converted to color, or its pixels cannot be loaded.
    """
    name = str(getattr(image, "filename", "") or "the image")
    with own_pillow_defaults(), _errors_translated(name, b""):
        image.load()
        return _finish(image, geometry, image.info.get("icc_profile"), orientation_of(image))


def _finish(image: Image.Image, geometry: Geometry, profile: object, orientation: int) -> torch.Tensor:
    to_srgb = srgb_transform(profile, image.mode)

    def convert(part: Image.Image) -> Image.Image:  # CMYK by its profile, already before the resize
        return to_srgb.apply(part) if to_srgb and part.mode == "CMYK" else to_rgb(part)

    pixels = shrink(image, geometry, convert, rotated=orientation >= 5) or convert(image)
    if orientation in TRANSPOSE:
        pixels = pixels.transpose(TRANSPOSE[orientation])
    sized = resize(pixels, geometry)
    if to_srgb and image.mode != "CMYK":  # after the resize: a hundredth of the work without a visible difference
        corrected = to_srgb.apply(Image.fromarray(sized.permute(1, 2, 0).contiguous().numpy(), "RGB"))
        sized = as_tensor(corrected).squeeze(0)[:3]
    return sized.expand(3, -1, -1).contiguous()


def orientation_of(image: Image.Image) -> int:
    """The Exif orientation, 1 to 8, from 5 on with sides exchanged; damaged Exif data counts as none."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
        return int(value) if value in TRANSPOSE else 1
    except DECODER_ERRORS:
        return 1


@contextmanager
def _errors_translated(name: str, data: bytes) -> Iterator[None]:
    """Translate the decoders' exceptions to UnreadablePoster."""
    try:
        yield
    except UnreadablePoster as error:
        raise UnreadablePoster(name, error.word, error.reason) from error.__cause__
    except Image.UnidentifiedImageError as error:
        for offset, signature, reason in SIGNATURES:
            if data.startswith(signature, offset):
                raise UnreadablePoster(name, "unsupported", reason) from error
        raise UnreadablePoster(name, "unreadable", "its content is not an image of a supported format") from error
    except DECODER_ERRORS as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            reason = (
                "there was not enough memory to decode it: lower POSTERS_DECODE_THREADS or "
                "POSTERS_DECODE_MEMORY_BYTES, then `retry` the job"
            )
            raise UnreadablePoster(name, "internal", reason) from error
        text = str(error) or type(error).__name__
        if "truncated" in text.lower() or isinstance(error, EOFError) or _is_short_riff(data):
            raise UnreadablePoster(name, "truncated", f"the file ends too early ({text})") from error
        raise UnreadablePoster(name, "unreadable", f"it is damaged ({text})") from error


def _is_short_riff(data: bytes) -> bool:
    """Whether a WebP file is shorter than its header declares."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8
