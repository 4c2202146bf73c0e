"""Small files that mean endless work, told by their structure before anything is decoded. See docs/images.md."""

from __future__ import annotations

import re
from typing import Final

from PIL import Image

# Encoders write a progressive JPEG in 3 to about 20 scans. Each costs a walk over all of its pixels, 60 ms for
# 100 megapixels, and as few as 23 bytes: 100 kB of them would keep a thread busy for minutes.
MOST_SCANS: Final = 100
MOST_MARKERS: Final = 100 * MOST_SCANS  # a scan comes with a few tables, not with a hundred

_START_OF_SCAN: Final = b"\xff\xda"
_NEXT_MARKER: Final = re.compile(
    rb"\xff+[^\x00\xff\xd0-\xd7]"
)  # neither a stuffed byte nor a restart (ITU T.81, B.1.1)
_END_OF_IMAGE: Final = 0xD9
_WITHOUT_LENGTH: Final = frozenset((0x01, 0xD8))  # TEM, SOI

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15


def has_too_many_scans(data: bytes) -> bool:
    """True for a JPEG file with more than MOST_SCANS scans in its first picture."""
    if data.count(_START_OF_SCAN) <= MOST_SCANS:  # the bytes may stand elsewhere, too, but here it ends for nearly all
        return False
    scans, position = 0, 0
    for _ in range(MOST_MARKERS):
        found = _NEXT_MARKER.search(data, position)
        if found is None or data[found.end() - 1] == _END_OF_IMAGE:
            return False
        position, marker = found.end(), data[found.end() - 1]
        scans += marker == _START_OF_SCAN[1]
        if scans > MOST_SCANS:
            return True
        if marker not in _WITHOUT_LENGTH:  # its segment may hold anything, a thumbnail with scans of its own as well
            position += int.from_bytes(data[position : position + 2], "big")
    return True


def decoded_pixels(image: Image.Image) -> int:
    """How many pixels the decoder will hold: those of the image, or of a tile of a TIFF that is larger than it."""
    pixels = image.width * image.height
    if image.format != "TIFF":
        return pixels
    tags = getattr(image, "tag_v2", {})
    sides = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"its tiles have no size: {sides!r:.80}")
    return max(pixels, sides[0] * sides[1])
