"""From a file's bytes to RGB pixels at the model's size. Pillow decodes, torch resizes. Rules: docs/images.md."""

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
from worker.images.bombs import MOST_SCANS, decoded_pixels, has_too_many_scans
from worker.images.color import IntoSRGB, to_rgb
from worker.images.memory_budget import MemoryBudget
from worker.images.resize import Geometry, as_tensor, resize, scale_to, shrink, shrink_webp

# Only these decoders are ever reached; their order is the order in which Pillow tries them.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # MPO comes with JPEG
# Draft decoding (a JPEG at 1/2, 1/4 or 1/8) stops at this multiple of the size that is needed: at 2 the
# cosine to the full decode stays above 0.9995, at 1 it does not (measured, docs/images.md).
DRAFT_MARGIN: Final = 2
# What an image holds while it is decoded, measured (docs/images.md); others: Pillow's 4 and a fifth for bands.
BYTES_PER_PIXEL: Final = {"WEBP": 16, "AVIF": 10}
BYTES_PER_PIXEL_OTHERS: Final = 5
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
class Limits:
    """What is refused from the header, before anything is decoded."""

    max_pixels: int = 100_000_000


def decode(
    data: bytes, geometry: Geometry, *, name: str, limits: Limits | None = None, budget: MemoryBudget | None = None
) -> torch.Tensor:
    """Decode an image file to the model's size.

    Args:
        data: the whole file; its content decides the format.
        name: the file, for the error.
        budget: held while the image is in memory at its own size.

    Returns:
        uint8 (3, height, width), RGB, contiguous, on the CPU.

    Raises:
        UnreadablePoster: unreadable, truncated, too-large or unsupported.
    """
    if not data:
        raise UnreadablePoster(name, "unreadable", "the file is empty")
    with _explained(name, data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        most, held = (limits or Limits()).max_pixels, decoded_pixels(image)
        if held > most:
            tiles = "" if width * height > most else f" in tiles of {held:,}"
            raise UnreadablePoster(
                name, "too-large", f"it has {width}×{height} pixels{tiles}, the limit is {most:,} in all"
            )
        profile = image.info.get("icc_profile")
        if image.format in ("JPEG", "MPO"):
            if has_too_many_scans(data):
                raise UnreadablePoster(name, "too-large", f"it is drawn in more than {MOST_SCANS} scans")
            scale = max(scale_to(width, height, geometry), scale_to(height, width, geometry))  # turned or not
            wanted = (math.ceil(width * scale * DRAFT_MARGIN), math.ceil(height * scale * DRAFT_MARGIN))
            if wanted < (width, height):
                image.draft(None, wanted)
                held = image.width * image.height
        per_pixel = BYTES_PER_PIXEL.get(image.format or "", BYTES_PER_PIXEL_OTHERS)
        with budget.hold(held * per_pixel) if budget else nullcontext():
            small = None
            if image.format == "WEBP":
                small = shrink_webp(image, data, geometry, turned=_orientation(image) >= 5)
            if small is None:
                image.load()
            # After the load: a PNG's Exif data may stand behind its pixels. Pillow would load them to look for
            # it, and of a damaged file a second load would return without an error.
            return _finish(small or image, geometry, profile, _orientation(image))


def fit(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    """The same for an image in memory, of any mode: uint8 (3, height, width).

    Raises:
        UnreadablePoster: a mode that has no meaning as color, or pixels that cannot be loaded.
    """
    name = str(getattr(image, "filename", "") or "the image")
    with _explained(name, b""):
        image.load()
        return _finish(image, geometry, image.info.get("icc_profile"), _orientation(image))


def _finish(image: Image.Image, geometry: Geometry, profile: object, orientation: int) -> torch.Tensor:
    into_srgb = IntoSRGB.of(profile, image.mode)
    first = None
    if into_srgb is not None and image.mode not in ("RGB", "RGBA"):
        first, into_srgb = into_srgb, None  # CMYK has no RGB to correct later

    def plain(part: Image.Image) -> Image.Image:
        return to_rgb(first(part) if first else part)

    pixels = shrink(image, geometry, plain, turned=orientation >= 5) or plain(image)
    if orientation in TRANSPOSE:
        pixels = pixels.transpose(TRANSPOSE[orientation])
    sized = resize(pixels, geometry)
    if into_srgb is not None:  # at the model's size it is a hundredth of the work, and no visible difference
        corrected = into_srgb(Image.fromarray(sized.permute(1, 2, 0).contiguous().numpy(), "RGB"))
        sized = as_tensor(corrected).squeeze(0)[:3]
    return sized.expand(3, -1, -1).contiguous()


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
    """True for a WebP that ends before the length that its first bytes promise."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8
