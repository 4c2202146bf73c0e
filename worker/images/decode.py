"""Decode image files to RGB at the model's size: Pillow decodes (libjpeg-turbo plain JPEGs), torch resizes.

See docs/images.md.
"""

from __future__ import annotations

import io
import math
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageFile

from producer.errors import UnreadablePoster
from producer.settings import Settings
from worker.images.color import BACKGROUND, INVERTED, ToSrgb, has_alpha, srgb_transform, to_rgb
from worker.images.jpeg import MAX_SCANS, completions, decode_plain, has_too_many_scans, read_plain
from worker.images.memory_budget import (
    BASE_BYTES,
    MemoryBudget,
    decoder_bytes,
    partial_frame,
    plain_jpeg_bytes,
    stored_bytes,
)
from worker.images.pillow_defaults import own_pillow_defaults
from worker.images.plugins import load_with_plugin, open_with_plugin, plugin_format
from worker.images.png import SIGNATURE, TRANSPARENT_16, describe, mask_of_16_bits, read_png
from worker.images.profiles import avif_profile, profile_of_gamma
from worker.images.resize import Geometry, as_tensor, is_long, resize, scale_to, shrink, working_bytes
from worker.images.tiff import (
    Directory,
    check_tags,
    decoded_pixels,
    unsupported_layout,
    with_black_as_zero,
    wrong_in_pillow,
)
from worker.images.webp import shrink_webp, webp_size

# The only formats accepted, beside those that take a plugin; Pillow tries them in this order.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # JPEG includes MPO
# Draft decoding (a JPEG at 1/2, 1/4 or 1/8) keeps at least this multiple of the required size: at 2 the cosine
# to the full decode stays above 0.9995, at 1 it does not (measured, docs/images.md).
DRAFT_MARGIN: Final = 2
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
LOWER_BITS: Final = "RGB;16L"  # Pillow's unpacker of which gives the lower half of PNG's 16 bits
# Signatures of formats that are not decoded, so that the error can name them: offset, bytes, reason.
SIGNATURES: Final = (
    (0, b"8BPS", "Photoshop (PSD) is not supported: convert it"),
    (0, b"%!PS", "PostScript is not supported: convert it"),
    (0, b"%PDF", "PDF is not supported: convert it"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000 is not supported: convert it"),
)
UNKNOWN_LAYOUT: Final = "unknown raw mode"  # how Pillow's error for samples that it cannot unpack begins
FEW_PIXELS: Final = "not enough image data"  # Pillow's error for a BMP whose run lengths skip a row, too
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
    """Limits of one image.

    Attributes:
        max_pixels: checked on the header, before anything is decoded.
        max_seconds: of this thread's processor time: an overloaded or suspended machine makes no image too large.
    """

    max_pixels: int = 100_000_000
    max_seconds: float = 30

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits that the settings give."""
        return cls(settings.max_pixels, settings.decode_time_limit_s)


class _TimedFile(io.BytesIO):
    """A file in memory that cannot be read once the time of its image is over.

    Most of Pillow's decoders read blocks of 64 kB in a loop, which nothing else can interrupt.
    """

    def __init__(self, data: bytes, max_seconds: float) -> None:
        super().__init__(data)
        self._max_seconds, self._until = max_seconds, time.thread_time() + max_seconds
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1  # headers are read byte by byte, for which a look at the clock is too much
        if (self._reads % 64 == 0 or not size or size > 64) and time.thread_time() > self._until:
            reason = f"decoding it takes more than {self._max_seconds:g} s (POSTERS_DECODE_TIME_LIMIT_S)"
            raise UnreadablePoster("", "too-large", reason)
        return super().read(size)


def decode(
    data: bytes,
    geometry: Geometry,
    *,
    name: str,
    limits: Limits | None = None,
    budget: MemoryBudget | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode an image file to the model's size.

    Args:
        data: the whole file; its content decides the format.
        name: the file, for the error.
        budget: reserved while the image is in memory at its original size.
        out: filled and returned instead of a new tensor.

    Returns:
        uint8 (3, height, width), RGB, contiguous, on the CPU.

    Raises:
        UnreadablePoster: unreadable, truncated, too-large or unsupported.
    """
    if not data:
        raise UnreadablePoster(name, "unreadable", "the file is empty")
    limits = limits or Limits()
    with errors_translated(name, data):
        pixels = _load_plain_jpeg(data, geometry, limits, budget)
        return _copied(_load_any(data, geometry, limits, budget) if pixels is None else pixels, geometry, out)


def _copied(pixels: torch.Tensor, geometry: Geometry, out: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 (3, height, width) in memory of its own, of (1 or 3, height, width)."""
    if out is None:
        out = torch.empty((3, geometry.height, geometry.width), dtype=torch.uint8)
    return out.copy_(pixels)


def _load_any(data: bytes, geometry: Geometry, limits: Limits, budget: MemoryBudget | None) -> torch.Tensor:
    try:
        return _decode(data, geometry, limits, budget)
    except OSError as error:
        # A JPEG of which only the end marker is missing is whole. Compared as a whole: the model's crop may not
        # show where the pixels end.
        copies = completions(data) if data.startswith(b"\xff\xd8") and "truncated" in str(error) else []
        whole = Geometry(geometry.height, geometry.width, "squash")
        pictures = [_decode(copy, whole, limits, budget) for copy in copies]
        if not pictures or not all(torch.equal(pictures[0], other) for other in pictures):
            raise
        return _decode(copies[0], geometry, limits, budget)


def _load_plain_jpeg(
    data: bytes, geometry: Geometry, limits: Limits, budget: MemoryBudget | None
) -> torch.Tensor | None:
    """A plain JPEG at the model's size; None for everything that Pillow is to decode, or to refuse."""
    jpeg = read_plain(data)
    if jpeg is None or jpeg.width * jpeg.height > limits.max_pixels or exif_orientation(jpeg.exif) != 1:
        return None
    to_srgb = srgb_transform(jpeg.profile, "RGB" if jpeg.components == 3 else "L") if jpeg.profile else None
    least = _draft_size(jpeg.width, jpeg.height, geometry)
    parts = min(jpeg.width // least[0], jpeg.height // least[1])
    parts = next(number for number in (8, 4, 2, 1) if number <= max(1, parts))  # as Pillow's `draft` chooses
    width, height = -(-jpeg.width // parts), -(-jpeg.height // parts)
    if (to_srgb is not None and (to_srgb.early or jpeg.components == 1)) or is_long(width, height, geometry):
        return None
    with budget.reserve(BASE_BYTES + plain_jpeg_bytes(jpeg, width * height)) if budget else nullcontext():
        pixels = decode_plain(data, width, height)
        return None if pixels is None else _colored(resize(pixels, geometry), to_srgb)


def _draft_size(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Width and height that a JPEG of this size is to keep at least when it is decoded at a reduced size."""
    scale = max(scale_to(width, height, geometry), scale_to(height, width, geometry))  # rotated or not
    return math.ceil(width * scale * DRAFT_MARGIN), math.ceil(height * scale * DRAFT_MARGIN)


def _decode(data: bytes, geometry: Geometry, limits: Limits, budget: MemoryBudget | None) -> torch.Tensor:
    with open_image(data, limits) as image:
        return _load(image, data, geometry, budget)


@contextmanager
def open_image(data: bytes, limits: Limits) -> Iterator[ImageFile.ImageFile]:
    """The image of a file, not loaded yet, within the limits; raises what Pillow raises, or UnreadablePoster.

    Its `info` says what is known of its colors and orientation, whatever the format: `icc_profile`, `exif`, and
    `transparency` in the units of Pillow's pixels.
    """
    with own_pillow_defaults():
        _check_pixels(*webp_size(data), limits)
        info: dict[str | tuple[int, int], object] = {}
        png = read_png(data) if data.startswith(SIGNATURE) else None
        if png is not None:
            data = png.data
        elif data[:2] in (b"II", b"MM"):
            directory = Directory(data)
            check_tags(directory)
            data, info[INVERTED] = with_black_as_zero(data, directory)
        file, plugin = _TimedFile(data, limits.max_seconds), plugin_format(data)
        with open_with_plugin(plugin, data, file) if plugin else Image.open(file, formats=FORMATS) as image:
            _check_pixels(*image.size, limits, decoded_pixels(image))
            image.info |= info
            if png is not None:
                describe(image, png)
            yield image


def _check_pixels(width: int, height: int, limits: Limits, decoded: int = 0) -> None:
    """`decoded`: pixels that the decoder holds, if more."""
    if max(width * height, decoded) > limits.max_pixels:
        tiles = f" in tiles of {decoded:,}" if width * height <= limits.max_pixels else ""
        reason = f"it has {width}×{height} pixels{tiles}, the limit is {limits.max_pixels:,} (POSTERS_MAX_PIXELS)"
        raise UnreadablePoster("", "too-large", reason)


def _load(image: ImageFile.ImageFile, data: bytes, geometry: Geometry, budget: MemoryBudget | None) -> torch.Tensor:
    """Decode an open image within the budget, at reduced size if that is enough."""
    width, height = image.size
    if problem := wrong_in_pillow(image):
        raise UnreadablePoster("", "unsupported", problem)
    if image.format == "AVIF" and not image.info.get("icc_profile"):
        image.info["icc_profile"] = avif_profile(data)
    needed_bytes = BASE_BYTES + decoder_bytes(image, data, geometry)
    if image.format in ("JPEG", "MPO"):
        if has_too_many_scans(data):
            raise UnreadablePoster("", "too-large", f"it has more than {MAX_SCANS} scans")
        needed = _draft_size(width, height, geometry)
        if needed < (width, height):
            image.draft(None, needed)
    needed_bytes += stored_bytes(image) + working_bytes(image, geometry)
    orientation = exif_orientation(image.info.get("exif"))
    with budget.reserve(needed_bytes) if budget else nullcontext():
        if plugin_format(data):
            load_with_plugin(image)
        to_srgb = srgb_transform(image.info.get("icc_profile"), image.mode, translucent=has_alpha(image))
        if image.format == "WEBP" and not (to_srgb and to_srgb.early):
            small = shrink_webp(image, data, geometry, rotated=orientation >= 5)
            if small is not None:
                return _finish(small, geometry, to_srgb, orientation)
        return _finish(_loaded(image, data), geometry, to_srgb, orientation)


def _loaded(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The image with its pixels, as a viewer shows them."""
    frame, color = partial_frame(image), image.info.pop(TRANSPARENT_16, None)
    image.load()
    if frame is not None:
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(to_rgb(image.crop(frame)), frame[:2])
        return canvas
    if color is not None:
        with Image.open(io.BytesIO(read_png(data).data), formats=("PNG",)) as lower:
            lower.tile = [tile._replace(args=LOWER_BITS) for tile in lower.tile]
            lower.load()
            image.putalpha(mask_of_16_bits(image, lower, color))
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # an alpha channel that nobody filled in, as Windows and browsers treat it
    if image.format == "PNG" and image.mode == "RGBA" and not data[25] & 2:
        return image.convert("LA")  # gray of 16 bits, which Pillow gives as RGBA
    return image


def fit(image: Image.Image, geometry: Geometry) -> torch.Tensor:
    """Convert an image in memory, of any mode, to the model's size: uint8 (3, height, width), RGB.

    Raises:
        UnreadablePoster: its mode cannot be converted to color, or its pixels cannot be loaded.
    """
    name = str(getattr(image, "filename", "") or "the image")
    with errors_translated(name, b""), own_pillow_defaults():
        image.load()
        profile = image.info.get("icc_profile")
        if image.format == "PNG" and not profile and "srgb" not in image.info:
            gray = image.mode in ("1", "L", "LA", "I;16")
            profile = profile_of_gamma(image.info.get("gamma"), image.info.get("chromaticity"), gray=gray)
        to_srgb = srgb_transform(profile, image.mode, translucent=has_alpha(image))
        return _copied(_finish(image, geometry, to_srgb, orientation_of(image)), geometry)


def _finish(image: Image.Image, geometry: Geometry, to_srgb: ToSrgb | None, orientation: int) -> torch.Tensor:
    """uint8 (1 or 3, height, width), a view."""

    def convert(part: Image.Image) -> Image.Image:
        return to_rgb(part, to_srgb)

    early = to_srgb is not None and to_srgb.early
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info and not early
    pixels = shrink(image, geometry, convert, rotated=orientation >= 5, is_converted=plain) or convert(image)
    if orientation in TRANSPOSE:
        pixels = pixels.transpose(TRANSPOSE[orientation])
    return _colored(resize(as_tensor(pixels), geometry), None if early else to_srgb)


def _colored(sized: torch.Tensor, to_srgb: ToSrgb | None) -> torch.Tensor:
    """uint8 (1 or 3, height, width) in sRGB, of the same in the colors of a profile."""
    if to_srgb is not None:
        colors = np.ascontiguousarray(sized.permute(1, 2, 0).numpy())
        corrected = to_srgb.apply(Image.fromarray(colors.squeeze(2) if colors.shape[2] == 1 else colors))
        sized = as_tensor(corrected).squeeze(0)[:3]
    return sized


def exif_orientation(exif: object) -> int:
    """The orientation in Exif data, 1 to 8, from 5 on with sides exchanged; damaged or absent data counts as 1."""
    if not isinstance(exif, bytes):
        return 1
    values = Directory(exif.removeprefix(b"Exif\0\0")).integers(ORIENTATION_TAG)
    return values[0] if values[:1] and values[0] in TRANSPOSE else 1


def orientation_of(image: Image.Image) -> int:
    """The Exif orientation of an image in memory, whose program may have changed it."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
        return int(value) if value in TRANSPOSE else 1
    except DECODER_ERRORS:
        return 1


@contextmanager
def errors_translated(name: str, data: bytes) -> Iterator[None]:
    """Decoders' exceptions in the block as UnreadablePoster, with the name and a reason."""
    try:
        yield
    except UnreadablePoster as error:
        raise UnreadablePoster(name, error.word, error.reason) from error.__cause__
    except Image.UnidentifiedImageError as error:
        for offset, signature, reason in SIGNATURES:
            if data.startswith(signature, offset):
                raise UnreadablePoster(name, "unsupported", reason) from error
        if layout := unsupported_layout(data):
            raise UnreadablePoster(name, "unsupported", f"no decoder for this kind of TIFF: {layout}") from error
        raise UnreadablePoster(name, "unreadable", "its content is not an image of a supported format") from error
    except DECODER_ERRORS as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            reason = (
                "there was not enough memory to decode it: lower POSTERS_DECODE_THREADS or "
                "POSTERS_DECODE_MEMORY_BYTES, then `retry` the job"
            )
            raise UnreadablePoster(name, "internal", reason) from error
        text = str(error) or type(error).__name__
        if text.startswith(UNKNOWN_LAYOUT) and (layout := unsupported_layout(data)):
            raise UnreadablePoster(name, "unsupported", f"no decoder for this kind of TIFF: {layout}") from error
        if text == FEW_PIXELS and data[:2] == b"BM":
            reason = "its run lengths leave out pixels, which the decoder does not support, or end too early"
            raise UnreadablePoster(name, "unsupported", reason) from error
        if "truncated" in text.lower() or isinstance(error, EOFError) or _is_short_riff(data):
            raise UnreadablePoster(name, "truncated", f"the file ends too early ({text})") from error
        raise UnreadablePoster(name, "unreadable", f"it is damaged ({text})") from error


def _is_short_riff(data: bytes) -> bool:
    """Whether a WebP file is shorter than its header declares."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8
