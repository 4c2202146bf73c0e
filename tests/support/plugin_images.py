"""HEIC and JPEG XL files: written by the plugins that read them, by libjxl's `cjxl`, or damaged by hand."""

from __future__ import annotations

import base64
import io
import struct

import pillow_heif
from PIL import Image
from pillow_jxl import Encoder

pillow_heif.register_heif_opener()
COLOR = (200, 60, 30)  # of cjxl's pictures
ANIMATED = base64.b64decode(
    "/wpBBAFYUFwSCAigAgAAYABLGIsVwkmC5QUkABjyi/jCAAAAAAAAAAAICKBCAABkAEsYixXCSUNivYAEAKP4vo0UAAAAAAAAAAA="
)
PQ = base64.b64decode("/wpBBBCQR484HAAAAAACCAIBAFwASxiLFcJJguUFIgAY8os4AAAAAAAAAAA=")
GRAY_ALPHA_16 = base64.b64decode(
    "AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAAJanhsbAoAAAB0anhsY/8KQfCjKC4ECAgQAHgBSxiTjoODSTCiRoxBiEJrijG4ETEG"
    "szE/cAYAyv+ggw466IHfoIMOumVZlmVZlmVZlmVZlmVZlmVZlmVZlmVZlmVZCiSWZVmWZVmWZVmWZVmWZVmWf+EeUBQF4H1RFA=="
)  # 8000 x + 300 y, opaque by 65535 - 9000 y
DISPLAY_P3 = base64.b64decode("/wpBQEAmNwIIAgEAXABLGIsVwkmC5QUiABjyizgAAAAAAAAAAA==")


def heic(image: Image.Image, **options: object) -> bytes:
    """The image as a HEIC; `exif` turns it by libheif's own properties."""
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", **options)
    return buffer.getvalue()


def heic_of_10_bits(image: Image.Image) -> bytes:
    """Colors of 10 bits, as newer cameras write them."""
    buffer = io.BytesIO()
    wide = b"".join(struct.pack("<H", 257 * value) for value in image.convert("RGB").tobytes())
    pillow_heif.encode("RGB;16", image.size, wide, buffer, quality=95, chroma=444)
    return buffer.getvalue()


def jxl(image: Image.Image, **options: object) -> bytes:
    """The image as a JPEG XL."""
    buffer = io.BytesIO()
    image.save(buffer, "JXL", **options)
    return buffer.getvalue()


def jxl_of_jpeg(data: bytes, width: int, height: int) -> bytes:
    """A JPEG XL from which the JPEG can be rebuilt, turned as its Exif data says."""
    return bytes(Encoder(mode="RGB", quality=90)(data, width, height, jpeg_encode=True))


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A HEIC whose header says another size than its picture has."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def with_code_points(data: bytes, primaries: int, transfer: int) -> bytes:
    """A HEIC with other code points (ITU-T H.273)."""
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def jxl_header(width: int, height: int) -> bytes:
    """The first bytes of a codestream of this size, and none of its picture."""
    bits = 0b11 << 1 | (height - 1) << 3 | 0b11 << 36 | (width - 1) << 38 | 1 << 68  # sizes of 30 bits, all as usual
    return b"\xff\x0a" + bits.to_bytes(16, "little")


def box(kind: bytes, body: bytes) -> bytes:
    """A box of ISO 14496-12."""
    return struct.pack(">I", 8 + len(body)) + kind + body


def heic_whose_items_share_bytes(count: int, size: int) -> bytes:
    """Exif data of `size` bytes, `count` times in the table of items, once in the file."""
    whole = heic(Image.new("RGB", (64, 64)), quality=50)
    boxes = {}
    at = whole.index(b"meta") + 8
    while whole[at - 4 : at + 4] and at < whole.index(b"mdat") - 4:
        length = int.from_bytes(whole[at : at + 4], "big")
        boxes[whole[at + 4 : at + 8]] = whole[at : at + length]
        at += length
    picture = whole[whole.index(b"mdat") + 4 :]
    ids = range(2, 2 + count)
    entry = box(b"infe", b"\2\0\0\0" + struct.pack(">HH", 1, 0) + b"hvc1\0")
    entries = b"".join(box(b"infe", b"\2\0\0\0" + struct.pack(">HH", number, 0) + b"Exif\0") for number in ids)
    info = box(b"iinf", bytes(4) + struct.pack(">H", 1 + count) + entry + entries)
    links = b"".join(box(b"cdsc", struct.pack(">HHH", number, 1, 1)) for number in ids)
    head = len(whole[: whole.index(b"meta") - 4])

    def meta(start: int) -> bytes:
        places = [(1, start, len(picture)), *((number, start + len(picture), size) for number in ids)]
        rows = b"".join(struct.pack(">HHHII", number, 0, 1, *place) for number, *place in places)
        table = box(b"iloc", bytes(4) + b"\x44\x00" + struct.pack(">H", 1 + count) + rows)
        rest = boxes[b"hdlr"] + boxes[b"pitm"] + table + info + box(b"iref", bytes(4) + links) + boxes[b"iprp"]
        return box(b"meta", bytes(4) + rest)

    start = head + len(meta(0)) + 8
    return whole[:head] + meta(start) + box(b"mdat", picture + bytes(size))
