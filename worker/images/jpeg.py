"""JPEG files: their markers (ITU T.81), and a decoder for the plain ones, which most posters are.

Pillow takes 0.3 ms of Python's lock to open and load a JPEG; libjpeg-turbo through simplejpeg a tenth of that, for the
same pixels. Whatever is not plain, or makes libjpeg-turbo complain, goes to Pillow, which then decides.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import simplejpeg
import torch

from worker.images.resize import LARGE_IMAGE_PIXELS
from worker.images.zero_copy import channels_last

# Encoders write progressive JPEGs in 3 to about 20 scans. A scan takes as few as 23 bytes and makes the decoder
# process all pixels, 60 ms for 100 megapixels: 100 kB of scans would occupy a thread for minutes.
MAX_SCANS: Final = 100
MAX_MARKERS: Final = 100 * MAX_SCANS  # a scan comes with a few tables, not with a hundred
# ITU T.81, table B.1
_START_OF_SCAN: Final = 0xDA
_SCAN_BYTES: Final = b"\xff\xda"
_END_OF_IMAGE: Final = 0xD9
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # except DHT, JPG, DAC
_SEQUENTIAL_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC9))
_PLAIN_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, with Huffman codes
# DHT, DQT, DRI, comments, and application segments without a meaning for Pillow
_IGNORED: Final = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF))
_PROGRESSIVE: Final = 0xC2
_JFIF_BYTES, _ADOBE_BYTES = 16, 14  # of their segments, by their standards
_WITHOUT_LENGTH: Final = frozenset((0x01, 0xD8))  # TEM, SOI
# Except stuffed bytes and restart markers. Without a repeat for fill bytes (FF FF … DA): the search would try each of
# them as a start, in quadratic time, and hold Python's lock: 400 kB of FF before a 00 froze the process for minutes.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FILLERS: Final = (b"", bytes(64), b"\xa5\x5a" * 32)  # that no decoder reads once all pixels are there
# Larger files, and those with more scans, go to Pillow, which can be interrupted between two blocks of 64 kB.
PLAIN_PIXELS: Final = LARGE_IMAGE_PIXELS
PLAIN_SCANS: Final = 20
SCRATCH_PIXELS: Final = 1_000_000  # what a thread keeps between two images: 4 MB


@dataclass(frozen=True, slots=True)
class PlainJpeg:
    """The headers of a plain JPEG: gray or of three colors, 8 bits, well-formed up to its first scan."""

    width: int
    height: int
    components: int  # 1 or 3
    progressive: bool
    exif: bytes | None
    profile: bytes | None  # ICC


def read_plain(data: bytes) -> PlainJpeg | None:
    """The headers of a plain JPEG; None for every other file, also one whose headers Pillow may take otherwise."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    exif: bytes | None = None
    profile: bytes | None = None
    frame = b""
    progressive, position, last = False, 2, len(data) - 4
    while position < last and data[position] == 0xFF:
        marker, at = data[position + 1], position + 4
        position += 2 + (data[position + 2] << 8 | data[position + 3])
        if position < at:
            return None
        if marker in _IGNORED:
            continue
        if marker in _PLAIN_FRAMES and not frame:
            frame, progressive = data[at:position], marker == _PROGRESSIVE
        elif marker == 0xE0 and (position - at >= _JFIF_BYTES - 2 or data[at : at + 4] != b"JFIF"):
            continue
        elif marker == 0xE1 and data[at : at + 6] == b"Exif\0\0" and exif is None:
            exif = data[at:position]
        elif marker == 0xE1 and data[at : at + 5] == b"http:":
            continue  # XMP
        elif marker == 0xE2 and data[at : at + 14] == b"ICC_PROFILE\0\1\1" and profile is None and not frame:
            profile = data[at + 14 : position]
        elif marker == 0xEE and position - at >= _ADOBE_BYTES - 2:
            continue
        elif marker == _START_OF_SCAN and len(frame) >= 9 and frame[0] == 8 and len(frame) == 6 + 3 * frame[5]:
            return _plain(data, frame, data[at], PlainJpeg(*_size(frame), frame[5], progressive, exif, profile))
        else:
            return None
    return None


def _size(frame: bytes) -> tuple[int, int]:
    return frame[3] << 8 | frame[4], frame[1] << 8 | frame[2]


def _plain(data: bytes, frame: bytes, components_of_scan: int, found: PlainJpeg) -> PlainJpeg | None:
    if found.components not in (1, 3) or not 0 < found.width * found.height <= PLAIN_PIXELS:
        return None
    if found.progressive:
        return found if data.count(_SCAN_BYTES) <= PLAIN_SCANS else None
    return found if components_of_scan == found.components else None


class _Scratch(threading.local):
    """A thread's memory for the pixels of the last plain JPEG, which others of its size fill again.

    Mapping new memory and making tensors of it would take as long as a tenth of the decoding.
    """

    pixels = np.empty((0, 0, 4), np.uint8)
    tensor = torch.empty((1, 4, 0, 0), dtype=torch.uint8)


_scratch = _Scratch()


def decode_plain(data: bytes, width: int, height: int) -> torch.Tensor | None:
    """The pixels of a plain JPEG at this size: its own, or a half, a quarter or an eighth of it, rounded up.

    Returns:
        uint8 (1, 4, height, width), channels last, RGB and an undefined channel, until this thread decodes the next
        one; None where libjpeg-turbo so much as warns: of data that ends too early, has stray bytes, or codes that
        cannot be.
    """
    if _scratch.pixels.shape[:2] != (height, width):
        _scratch.pixels = np.empty((height, width, 4), np.uint8)
        _scratch.tensor = channels_last(torch.from_numpy(_scratch.pixels))
    tensor = _scratch.tensor
    try:
        found = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width, buffer=_scratch.pixels)
    except (ValueError, RuntimeError, MemoryError):
        return None
    finally:
        if width * height > SCRATCH_PIXELS:
            del _scratch.pixels, _scratch.tensor
    return tensor if found.shape == (height, width, 4) else None


def has_too_many_scans(data: bytes) -> bool:
    """Whether the first picture of a JPEG file has more than MAX_SCANS scans; ValueError above MAX_MARKERS."""
    scans = components = 0
    for marker, at in _segments(data):
        if marker in _SEQUENTIAL_FRAMES:
            components = data[at + 7]
        if marker != _START_OF_SCAN:
            continue
        if scans == 0 and (components == data[at + 2] or data.count(_SCAN_BYTES) <= MAX_SCANS):
            return False  # sequential, in one scan: the decoder reads no other; or too few markers to exceed the limit
        scans += 1
        if scans > MAX_SCANS:
            return True
    return False


def keeps_coefficients(data: bytes) -> bool:
    """Whether the decoder holds all coefficients of a JPEG at once: it is progressive, or a scan per component."""
    components = 0
    for marker, at in _segments(data):
        if marker in _FRAMES:
            if marker not in _SEQUENTIAL_FRAMES:
                return True
            components = data[at + 7]
        elif marker == _START_OF_SCAN:
            return components != data[at + 2]
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of the first picture, each with the position after it."""
    position = 0
    for _ in range(MAX_MARKERS):
        found = _NEXT_MARKER.search(data, position)
        if found is None or data[found.end() - 1] == _END_OF_IMAGE or found.end() + 8 > len(data):
            return
        position = found.end()
        yield data[position - 1], position
        if data[position - 1] not in _WITHOUT_LENGTH:  # skip it: it may be a thumbnail with scans of its own
            position += int.from_bytes(data[position : position + 2], "big")
    raise ValueError(f"more than {MAX_MARKERS} segments before its end")


def completions(data: bytes) -> list[bytes]:
    """Copies of a file whose end marker is missing, with different bytes before a new one; empty if scans are missing.

    Where all copies give the same picture, every pixel is in the file: a decoder that still needs data would take the
    bytes for some, and without any it fills the rest with gray.
    """
    if not _has_all_coefficients(data):
        return []
    body = data.removesuffix(b"\xff")
    return [body + filler + b"\xff\xd9" for filler in _FILLERS]


def _has_all_coefficients(data: bytes) -> bool:
    """Whether the scans that have begun give each coefficient of each component to its last bit."""
    missing: dict[int, set[int]] = {}
    for marker, at in _segments(data):
        if marker in _FRAMES:
            progressive = marker not in _SEQUENTIAL_FRAMES
            missing = {data[at + 8 + 3 * n]: set(range(64)) for n in range(data[at + 7])}
        elif marker == _START_OF_SCAN:
            scan = data[at + 3 : at + int.from_bytes(data[at : at + 2], "big")]
            components, (first, last, bits) = scan[:-3:2][: data[at + 2]], scan[-3:]
            if progressive and bits & 15:
                continue  # lower bits follow
            for component in components:
                missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())
