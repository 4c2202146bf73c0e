"""HEIC and JPEG XL, which Pillow decodes with plugins alone: pillow-heif and pillow-jxl-plugin, the extra `formats`.

Both plugins are told as little as possible, and checked: libheif gets one thread and no thumbnails, libjxl the
codestream alone, without the boxes beside it. Sources: ISO/IEC 23008-12 and 14496-12 (HEIF), 18181-1 and -2 (JPEG XL).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO, Final, Literal, NoReturn

import numpy as np
from PIL import ImageFile

from producer.collection.image_formats import JXL_CODESTREAM, media_type
from producer.errors import UnreadablePoster
from worker.images.profiles import check_code_points_in, profile_of_code_points

Kind = Literal["HEIF", "JXL"]
KINDS: Final[dict[str, Kind]] = {"image/heic": "HEIF", "image/jxl": "JXL"}  # by media type
# Bytes that a HEIF file's items may claim, as a multiple of the file: items that share bytes would be read, or decoded,
# once each, a thousand times the file.
MOST_CLAIMED: Final = 2
PACKAGES: Final[dict[Kind, tuple[str, str]]] = {
    "HEIF": ("HEIC", "pillow-heif"),
    "JXL": ("JPEG XL", "pillow-jxl-plugin"),
}
HEADER_BYTES: Final = 64  # of a JPEG XL codestream, more than its size and what follows it take
_SIZE_BITS: Final = (9, 13, 18, 30)
_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height


def plugin_format(data: bytes) -> Kind | None:
    """The format of a file that takes a plugin, by its first bytes; None for all others."""
    return KINDS.get(media_type(data) or "")


def open_with_plugin(kind: Kind, data: bytes, file: BinaryIO) -> ImageFile.ImageFile:
    """The image of a file of this format, not decoded yet; its size is that of its header, turned as it is shown.

    Raises:
        UnreadablePoster: the plugin is not installed, or the header is damaged or says what is not supported.
    """
    try:
        return _open_heif(data, file) if kind == "HEIF" else JxlImageFile(file)
    except ImportError as error:
        name, package = PACKAGES[kind]
        reason = f"{name} takes the extra `formats`, which is not installed where it was read: pip install {package}"
        raise UnreadablePoster("", "unsupported", reason) from error
    except SyntaxError as error:
        _refuse(error)


def load_with_plugin(image: ImageFile.ImageFile) -> None:
    """Decode an image of `open_with_plugin`; `info` has its profile afterwards.

    Raises:
        UnreadablePoster: it is damaged, has another size than its header says, or colors without a rule.
    """
    announced = image.size
    try:
        image.load()
    except (ValueError, RuntimeError, OSError) as error:
        _refuse(error)
    if image.size != announced:
        sizes = " and ".join(f"{width}×{height}" for width, height in (announced, image.size))
        raise UnreadablePoster("", "unreadable", f"it is damaged (its header and its picture differ in size: {sizes})")
    if image.format == "HEIF" and "icc_profile" not in image.info and (points := image.info.get("nclx_profile")):
        codes = points["color_primaries"], points["transfer_characteristics"]
        image.info["icc_profile"] = profile_of_code_points(*codes, gray=image.mode in ("L", "I;16"))
    elif image.format == "JXL":
        check_code_points_in(image.info["icc_profile"])
        if image.info["icc_profile"][16:20] == b"CMYK":
            raise UnreadablePoster("", "unsupported", "its colors are CMYK, of which the decoder leaves out the black")


def _refuse(error: Exception) -> NoReturn:
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("Unsupported"):
        raise UnreadablePoster("", "unsupported", f"its decoder does not support it ({text})") from error
    if "end of file" in text.lower() or "outside of file bounds" in text:
        raise UnreadablePoster("", "truncated", f"the file ends too early ({text})") from error
    raise UnreadablePoster("", "unreadable", f"it is damaged ({text})") from error


@cache
def _heif_plugin() -> Any:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return pillow_heif.HeifImageFile


def _open_heif(data: bytes, file: BinaryIO) -> ImageFile.ImageFile:
    plugin = _heif_plugin()
    if _claimed_bytes(data) > MOST_CLAIMED * len(data):
        raise UnreadablePoster("", "unreadable", "it is damaged (its items claim more bytes than there are)")
    image: ImageFile.ImageFile = plugin(file)
    image.info.pop("exif", None)  # libheif turns the picture by its own properties, and Exif data has no say
    return image


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box of ISO 14496-12; an end beyond the file is given as it is."""
    while at + 8 <= end:
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or end - at
        if size < head:
            return
        yield kind, at + head, at + size
        at += size


def _claimed_bytes(data: bytes) -> int:
    """How many bytes the items of a HEIF file claim to have, by its table of locations; 0 where there is none."""
    meta = next(((at, end) for kind, at, end in _boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        return 0
    locations = [(at, end) for kind, at, end in _boxes(data, meta[0] + 4, min(meta[1], len(data))) if kind == b"iloc"]
    return sum(_lengths_in(data[at:end], len(data)) for at, end in locations)


def _lengths_in(table: bytes, file_bytes: int) -> int:
    """The sum of the lengths in an `iloc` box; what it says no more of counts as nothing, and libheif refuses it."""
    if len(table) < 8:
        return 0
    version, sizes = table[0], [table[4] >> 4, table[4] & 15, table[5] >> 4, table[5] & 15]
    offset, length, base, index = sizes
    wide = 4 if version >= 2 else 2
    at, total = 6 + wide, 0
    for _ in range(int.from_bytes(table[6:at], "big")):
        at += wide + (2 if version else 0) + 2 + base
        extents, at = int.from_bytes(table[at : at + 2], "big"), at + 2
        for _ in range(extents):
            at += (index if version else 0) + offset
            total += int.from_bytes(table[at : at + length], "big") or file_bytes
            at += length
            if at > len(table):
                return total
        if at > len(table):
            return total
    return total


class JxlImageFile(ImageFile.ImageFile):
    """A JPEG XL whose header alone is read until it is loaded; pillow-jxl-plugin decodes where it opens.

    Attributes:
        format: as Pillow's plugin calls it.
    """

    format = "JXL"

    def _open(self) -> None:
        from pillow_jxl import Decoder

        assert self.fp is not None
        self._decode, self._codestream = Decoder(num_threads=0), _codestream(self.fp.read())
        self._size, self._mode = _jxl_size(self._codestream), "RGBA"  # of 4 bytes a pixel, as most modes

    def load(self) -> Any:
        """Decode; the mode and the profile are known afterwards."""
        if self._codestream:
            try:
                _, info, data, profile, _ = self._decode(self._codestream)
            except RuntimeError as error:  # whose text says how to build the decoder
                raise ValueError("or it ends too early") from error
            self._codestream = b""
            if self.size != (info.width, info.height):
                raise ValueError(f"its header says {self.size}, its picture has {(info.width, info.height)}")
            self._mode, self.info["icc_profile"] = info.mode, profile
            if info.mode in ("F", "F;16"):
                raise UnreadablePoster("", "unsupported", "its pixels are floating point numbers without a scale")
            if info.mode == "LA" and len(data) == 4 * info.width * info.height:  # of 16 bits, which Pillow has not
                data = (np.frombuffer(data, "<u2") >> 8).astype(np.uint8).tobytes()
            self.load_prepare()
            self.frombytes(data)
        return super().load()


def _codestream(data: bytes) -> bytes:
    """A JPEG XL without the boxes around it: metadata, and what rebuilds the JPEG it was made of."""
    if data.startswith(JXL_CODESTREAM):
        return data
    parts = []
    for kind, at, end in _boxes(data, 0, len(data)):
        if kind not in (b"jxlc", b"jxlp"):
            continue
        if end > len(data):
            raise UnreadablePoster("", "truncated", "the file ends too early (within its picture)")
        parts.append(data[at if kind == b"jxlc" else at + 4 : end])
    return b"".join(parts)


def _jxl_size(codestream: bytes) -> tuple[int, int]:
    """Width and height that a JPEG XL is shown at, by its header.

    Raises:
        UnreadablePoster: it is none, or animated: the plugin would decode all frames, and give the last.
    """
    if not codestream.startswith(JXL_CODESTREAM) or len(codestream) < 4:
        raise UnreadablePoster("", "truncated", "the file ends too early (before its picture)")
    bits = _Bits(codestream[2:HEADER_BYTES])
    width, height = bits.size()
    if bits.take(1) or not bits.take(1):  # all is as usual; or at least what follows
        return width, height
    orientation = bits.take(3)  # Exif's, less one
    if bits.take(1):
        bits.size()  # at which it is to be shown
    if bits.take(1) or bits.take(1):  # a preview; an animation
        raise UnreadablePoster("", "unsupported", "an animated JPEG XL, or one with a preview, is not supported")
    return (height, width) if orientation >= 4 else (width, height)


class _Bits:
    """The bits of a JPEG XL header, lowest first."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        """The next bits as a number; zeros beyond the end."""
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value

    def size(self) -> tuple[int, int]:
        """Width and height (SizeHeader)."""
        is_small = self.take(1)
        height = self._side(is_small)
        ratio = self.take(3)
        if ratio:
            across, down = _RATIOS[ratio - 1]
            return height * across // down, height
        return self._side(is_small), height

    def _side(self, is_small: int) -> int:
        return 8 * (self.take(5) + 1) if is_small else 1 + self.take(_SIZE_BITS[self.take(2)])
