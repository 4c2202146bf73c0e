"""JPEG markers (ITU T.81): how many scans a file has, and whether only its end marker is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

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
_WITHOUT_LENGTH: Final = frozenset((0x01, 0xD8))  # TEM, SOI
# Except stuffed bytes and restart markers. Without a repeat for fill bytes (FF FF … DA): the search would try each of
# them as a start, in quadratic time, and hold Python's lock: 400 kB of FF before a 00 froze the process for minutes.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FILLERS: Final = (b"", bytes(64), b"\xa5\x5a" * 32)  # that no decoder reads once all pixels are there


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
