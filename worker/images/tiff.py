"""Reader of TIFF directories (TIFF 6.0, section 2; BigTIFF), as far as limits and the Exif orientation need them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from PIL import Image

_TYPES_BY_BYTES: Final = {1: (1, 2, 6, 7), 2: (3, 8), 4: (4, 9, 11, 13), 8: (5, 10, 12, 16, 17, 18)}
TYPE_BYTES: Final = {kind: size for size, kinds in _TYPES_BY_BYTES.items() for kind in kinds}
RATIONALS: Final = frozenset((5, 10))
_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _LENGTH, _BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _SAMPLES_PER_PIXEL = 256, 257, 258, 259, 262, 277
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15
_PLANES, _CHROMA_SUBSAMPLING = 284, 530
_SHORT: Final = 3
# Pillow makes a Python object of each number in a tag that it reads, before any other limit applies: 100 MB of
# resolutions took 5 GB and minutes. A picture of 100 megapixels in tiles of 16×16 has 800,000 offsets and lengths.
MAX_TAG_NUMBERS: Final = 1_000_000
MAX_TAG_RATIONALS: Final = 10_000
_FEW: Final = 64  # such as the bits of each sample
_BYTE_TYPES: Final = frozenset((1, 2, 6, 7))  # these stay bytes
_SUB_DIRECTORIES: Final = (34665, 34853, 40965)  # Exif, GPS, interoperability: Pillow reads them whole


class Entry(NamedTuple):
    """A tag of a directory; its values are not read."""

    tag: int
    type: int
    values: int  # how many
    place: int  # of the values in the data


class Directory:
    """The first directory of a TIFF file or of Exif data; empty where the data is not a TIFF."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        self._big = bool(self._order) and 43 in (data[2:3] + data[3:4])
        self.entries: dict[int, Entry] = {}
        if not self._order:
            return
        try:
            (first,) = struct.unpack_from(self._order + ("Q" if self._big else "I"), data, 8 if self._big else 4)
            for entry in self._read(first):
                self.entries.setdefault(entry.tag, entry)
        except struct.error:
            pass

    def all_entries(self) -> Iterator[Entry]:
        """The entries of this directory and of those that describe it."""
        yield from self.entries.values()
        for tag in _SUB_DIRECTORIES:
            for place in self.integers(tag)[:1]:
                try:
                    yield from self._read(place)
                except struct.error:
                    continue

    def integers(self, tag: int) -> tuple[int, ...]:
        """The values of a tag of few unsigned integers; empty where it is absent, damaged, or anything else."""
        entry = self.entries.get(tag)
        if entry is None or entry.type not in _INTEGERS or entry.values > _FEW:
            return ()
        try:
            return struct.unpack_from(f"{self._order}{entry.values}{_INTEGERS[entry.type]}", self._data, entry.place)
        except struct.error:
            return ()

    def _read(self, place: int) -> Iterator[Entry]:
        head, form, inline = ("Q", "HHQ", 8) if self._big else ("H", "HHI", 4)
        if place >= len(self._data):
            return
        (count,) = struct.unpack_from(self._order + head, self._data, place)
        place += struct.calcsize("<" + head)
        step = struct.calcsize("<" + form) + inline
        for at in range(place, min(place + count * step, len(self._data) - step + 1), step):
            tag, kind, values = struct.unpack_from(self._order + form, self._data, at)
            behind = at + step - inline
            if values * TYPE_BYTES.get(kind, 0) > inline:
                (behind,) = struct.unpack_from(self._order + ("Q" if self._big else "I"), self._data, behind)
            yield Entry(tag, kind, values, behind)


def check_tags(directory: Directory) -> None:
    """Raise ValueError for a TIFF whose tags hold more numbers than any image needs."""
    numbers = rationals = 0
    for entry in directory.all_entries():
        numbers += 0 if entry.type in _BYTE_TYPES else entry.values
        rationals += entry.values if entry.type in RATIONALS else 0
    if numbers > MAX_TAG_NUMBERS or rationals > MAX_TAG_RATIONALS:
        raise ValueError(f"its tags hold {numbers:,} numbers")


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


def with_black_as_zero(data: bytes, directory: Directory) -> tuple[bytes, bool]:
    """The file with its 16-bit gray values declared as Pillow reads them, and whether they are inverted.

    Pillow ignores that 0 is white in one byte order, and refuses it in the other.
    """
    entry = directory.entries.get(_PHOTOMETRIC)
    samples = directory.integers(_SAMPLES_PER_PIXEL) or (1,)
    if entry is None or entry.type != _SHORT or (directory.integers(_PHOTOMETRIC), samples) != ((0,), (1,)):
        return data, False
    if directory.integers(_BITS_PER_SAMPLE) != (16,):
        return data, False
    black_is_zero = (1).to_bytes(2, "little" if data[:2] == b"II" else "big")
    return data[: entry.place] + black_is_zero + data[entry.place + 2 :], True


def unsupported_layout(data: bytes) -> str:
    """What a TIFF that Pillow does not identify stores, for a person; empty where its directory has no image."""
    directory = Directory(data)
    if not directory.integers(_WIDTH) or not directory.integers(_LENGTH):
        return ""
    bits, kind = directory.integers(_BITS_PER_SAMPLE)[:8] or (1,), directory.integers(_PHOTOMETRIC)[:1] or (0,)
    compression = directory.integers(_COMPRESSION)[:1] or (1,)
    return f"photometric interpretation {kind[0]}, {'+'.join(map(str, bits))} bits, compression {compression[0]}"


def wrong_in_pillow(image: Image.Image) -> str:
    """Why an open TIFF would not be shown as it is meant, found against libvips; empty for all others."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits, in_planes = tags.get(_BITS_PER_SAMPLE, ()), tags.get(_PLANES) == 2
    raw = image.info.get("compression") == "raw"
    if image.mode == "I" or bits[:1] == (12,):
        return "its pixels are numbers of 12, 32 or signed 16 bits"
    if in_planes and len(bits) > 1 and image.mode in ("L", "LA", "La", "P", "PA"):
        return "its gray values and its transparency are stored in planes"
    if in_planes and raw and bits[:1] == (16,):
        return "its 16-bit colors are stored in planes without compression"
    if raw and image.mode == "YCbCr" and tags.get(_CHROMA_SUBSAMPLING, (2, 2)) != (1, 1):
        return "its chroma is stored at a reduced size without compression"
    return ""
