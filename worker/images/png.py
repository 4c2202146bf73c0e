"""PNG chunks: what describes the colors, and the file without what has nothing to do with its pixels.

PNG specification, third edition, sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image

from producer.errors import UnreadablePoster
from worker.images.profiles import profile_of_code_points, profile_of_gamma

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE_BYTES: Final = 4_000_000  # real ones have 500 bytes to 2 MB; unpacked no further
# Only these reach Pillow, which refuses a file for a damaged or long text, profile or animation beside the pixels.
_FOR_PIXELS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
TRANSPARENT_16: Final = "transparent color of 16 bits"  # key in an image's `info`
_COLOR_BIT: Final = 2  # of the color type
_DESCRIPTIONS: Final = frozenset((b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf"))


@dataclass
class PngFile:
    """A PNG file as Pillow is to read it, and the first valid chunk of each kind that describes its pixels."""

    data: bytes
    chunks: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def is_srgb(self) -> bool:
        """Whether the file says that its colors are sRGB."""
        return len(self.chunks.get(b"sRGB", b"")) == 1

    @property
    def exif(self) -> bytes | None:
        """Exif data."""
        return self.chunks.get(b"eXIf")

    @property
    def profile(self) -> bytes | None:
        """The ICC profile; None where there is none, or one that is damaged or too long."""
        name, _, packed = self.chunks.get(b"iCCP", b"").partition(b"\0")
        if not name or packed[:1] != b"\0":
            return None
        unpacking = zlib.decompressobj()
        try:
            profile = unpacking.decompress(packed[1:], MAX_PROFILE_BYTES)
        except zlib.error:
            return None
        return profile if unpacking.eof else None

    @property
    def transparent(self) -> tuple[int, ...] | None:
        """The gray value or the color that is transparent, in the units of the file; None for others and palettes."""
        body, values = self.chunks.get(b"tRNS", b""), {0: 1, 2: 3}.get(self.data[25], 0)
        if not values or len(body) < 2 * values:
            return None
        mask = (1 << self.data[24]) - 1  # higher bits do not count
        return tuple(value & mask for value in struct.unpack_from(f">{values}H", body))

    @property
    def gamma(self) -> float | None:
        """The exponent of the encoding, such as 1/2.2."""
        body = self.chunks.get(b"gAMA", b"")
        return int.from_bytes(body, "big") / 100_000 if len(body) == 4 and any(body) else None

    @property
    def chromaticities(self) -> tuple[float, ...] | None:
        """x and y of white, red, green and blue."""
        body = self.chunks.get(b"cHRM", b"")
        return tuple(value / 100_000 for value in struct.unpack(">8I", body)) if len(body) == 32 else None

    @property
    def code_points(self) -> tuple[int, int, int, int] | None:
        """Primaries, transfer function, matrix and range by ITU-T H.273."""
        body = self.chunks.get(b"cICP", b"")
        return (body[0], body[1], body[2], body[3]) if len(body) == 4 else None


def read_png(data: bytes) -> PngFile:
    """Check and sort the chunks of a PNG; anything else is returned as it is.

    Raises:
        ValueError: the checksum of a chunk with pixels, palette or transparency is wrong.
    """
    file = PngFile(data)
    if not data.startswith(SIGNATURE):
        return file
    view = memoryview(data)  # slices of bytes would copy the pixels
    kept: list[bytes | memoryview] = [SIGNATURE]
    position, complete = len(SIGNATURE), True
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        wanted = kind in _FOR_PIXELS
        if wanted or (kind in _DESCRIPTIONS and kind not in file.chunks):
            intact = (
                end <= len(data) and zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big") == view[end - 4 : end]
            )
            if wanted and end <= len(data) and not intact:
                raise ValueError(f"wrong checksum in its chunk {kind.decode('ascii')}")
            if wanted:
                kept.append(view[position:end])
            if intact and kind not in (b"IDAT", b"IEND"):
                file.chunks.setdefault(kind, data[position + 8 : end - 4])
        complete = complete and wanted
        position = end
        if kind == b"IEND":
            break
    if not complete or position != len(data):
        file.data = b"".join(kept)
    return file


def describe(image: Image.Image, png: PngFile) -> None:
    """Add to the `info` of an open PNG what its chunks say: `icc_profile`, `exif`, `transparency`.

    The order of precedence is that of section 4.3 of the specification.

    Raises:
        UnreadablePoster: colors of high dynamic range, or in a video signal's range.
    """
    gray = not png.data[25] & _COLOR_BIT
    profile = png.profile
    if png.code_points is not None:
        primaries, transfer, matrix, full_range = png.code_points
        if matrix != 0 or full_range != 1:
            raise UnreadablePoster("", "unsupported", "its colors are those of a video signal: convert it to sRGB")
        profile = profile_of_code_points(primaries, transfer, gray=gray)
    elif profile is None and not png.is_srgb:
        profile = profile_of_gamma(png.gamma, png.chromaticities, gray=gray)
    image.info["icc_profile"], image.info["exif"] = profile, png.exif
    if png.transparent is not None:
        bits = png.data[24]
        values = tuple(value * 255 // ((1 << bits) - 1) for value in png.transparent) if bits < 8 else png.transparent
        if bits == 16 and not gray:  # Pillow keeps the upper 8 bits of the pixels
            image.info.pop("transparency", None)
            image.info[TRANSPARENT_16] = values
        else:
            image.info["transparency"] = values[0] if gray else values


def mask_of_16_bits(image: Image.Image, lower: Image.Image, transparent: tuple[int, ...]) -> Image.Image:
    """The alpha of RGB pixels of 16 bits, of which Pillow keeps 8: the upper and the lower half in an image each."""
    upper_half, lower_half = (np.asarray(half) for half in (image, lower))
    wanted = np.array(transparent)
    same = (upper_half == wanted >> 8).all(axis=2) & (lower_half == wanted & 255).all(axis=2)
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))
