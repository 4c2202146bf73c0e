"""Detection of decompression bombs by file structure, before anything is decoded. See docs/images.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from PIL import Image

# Encoders write progressive JPEGs in 3 to about 20 scans. A scan takes as few as 23 bytes and makes the decoder
# process all pixels, 60 ms for 100 megapixels: 100 kB of scans would occupy a thread for minutes.
MAX_SCANS: Final = 100
MAX_MARKERS: Final = 100 * MAX_SCANS  # a scan comes with a few tables, not with a hundred
# ITU T.81, table B.1
_START_OF_SCAN: Final = 0xDA
_SCAN_BYTES: Final = b"\xff\xda"
_END_OF_IMAGE: Final = 0xD9
_SEQUENTIAL_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC9))
_WITHOUT_LENGTH: Final = frozenset((0x01, 0xD8))  # TEM, SOI
# Except stuffed bytes and restart markers. Without a repeat for fill bytes (FF FF … DA): the search would try each of
# them as a start, in quadratic time, and hold Python's lock: 400 kB of FF before a 00 froze the process for minutes.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15


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


def decoded_pixels(image: Image.Image) -> int:
    """Pixels that the decoder holds: of the image, or of a larger TIFF tile; ValueError for an invalid tile size."""
    pixels = image.width * image.height
    if image.format != "TIFF":
        return pixels
    tags = getattr(image, "tag_v2", {})
    sides = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"its tiles have an invalid size: {sides!r:.80}")
    return max(pixels, sides[0] * sides[1])
