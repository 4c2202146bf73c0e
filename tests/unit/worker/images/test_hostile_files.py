"""Hostile files: time and memory stay in proportion to the file and to the size that its header declares."""

import struct
import time
import zlib
from contextlib import suppress

import pytest
from PIL import Image

from bench.image_samples import encoded, picture
from producer.errors import UnreadablePoster
from tests.support.plugin_images import box, heic, jxl
from worker.images.decode import Geometry, Limits, decode

SMALL = Geometry(32, 32)
JPEG, PNG = encoded(picture(60, 90), "JPEG"), encoded(picture(60, 90), "PNG")
PROGRESSIVE = encoded(picture(60, 90), "JPEG", progressive=True)
HEIC = heic(picture(60, 90))
JXL = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"jxlc", jxl(picture(60, 90)))
IN_SCAN = PROGRESSIVE.index(b"\xff\xda") + 200


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(tag: int, kind: int, values: int, body: bytes) -> bytes:
    """8×8 gray pixels, and a tag of that many values, which begin at `body`."""
    size = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    size += [(277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    entries = sorted([*(entry for entry in size if entry[0] != tag), (tag, kind, values, 134)])
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4) + body


HOSTILE = {
    "jpeg, fill bytes before a stuffed one": lambda n: JPEG[:-2] + b"\xff" * n + b"\0" + JPEG[-2:],
    "jpeg, the same within a scan": lambda n: PROGRESSIVE[:IN_SCAN] + b"\xff" * n + b"\0" + PROGRESSIVE[IN_SCAN:],
    "jpeg, fill bytes": lambda n: JPEG[:2] + b"\xff" * n + JPEG[2:],
    "jpeg, stuffed bytes": lambda n: JPEG[:2] + b"\xff\0" * (n // 2) + JPEG[2:],
    "jpeg, comments": lambda n: JPEG[:2] + b"\xff\xfe\0\2" * (n // 4) + JPEG[2:],
    "jpeg, Exif in parts": lambda n: JPEG[:2] + b"\xff\xe1\0\x08Exif\0\0" * (n // 10) + JPEG[2:],
    "png, empty chunks": lambda n: PNG[:33] + chunk(b"prVt", b"") * (n // 12) + PNG[33:],
    "png, empty pixels": lambda n: PNG[:33] + chunk(b"IDAT", b"") * (n // 12) + PNG[33:],
    "gif, comments": lambda n: b"GIF89a\4\0\4\0\0\0\0" + b"!\xfe\x01a\0" * (n // 5) + b";",
    "bmp, run lengths": lambda n: (
        (
            b"BM"
            + struct.pack("<IHHI", n + 54, 0, 0, 54)
            + struct.pack("<IiiHHIIIIII", 40, 5000, 5000, 1, 8, 1, *[0] * 5)
        )[:54]
        + b"\1\1" * (n // 2)
    ),
    "tiff, resolutions": lambda n: tiff(282, 5, n // 8, bytes(range(1, 251)) * (n // 250)),
    "tiff, strips": lambda n: tiff(273, 4, n // 4, bytes(range(1, 251)) * (n // 250)),
    "heic, boxes": lambda n: HEIC[:28] + b"\0\0\0\x08free" * (n // 8) + HEIC[28:],
    "heic, locations": lambda n: HEIC[:28] + box(b"meta", bytes(4) + box(b"iloc", b"\0\0\0\0\0\0\xff\xff" + bytes(n))),
    "jpeg xl, boxes": lambda n: JXL[:32] + b"\0\0\0\x08free" * (n // 8) + JXL[32:],
    "jpeg xl, parts": lambda n: JXL[:32] + box(b"jxlp", bytes(4)) * (n // 12) + JXL[32:],
    "avif, boxes": lambda n: encoded(picture(60, 90), "AVIF")[:32] + b"\0\0\0\x08free" * (n // 8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_time_of_a_hostile_file_is_linear(make):
    """400 kB take at most a second; the search for JPEG markers was quadratic, and took minutes."""
    data = make(400_000)
    began = time.thread_time()
    with suppress(UnreadablePoster):
        decode(data, SMALL, name="x")
    assert time.thread_time() - began < 1


def test_an_image_that_takes_too_long_is_too_large():
    """Decoders that read blocks are stopped between them; the reason names the setting."""
    data = PNG[:33] + chunk(b"IDAT", b"") * 200_000 + PNG[33:]
    with pytest.raises(UnreadablePoster) as caught:
        decode(data, SMALL, name="slow.png", limits=Limits(max_seconds=0.2))
    assert (caught.value.path, caught.value.word) == ("slow.png", "too-large")
    assert "more than 0.2 s (POSTERS_DECODE_TIME_LIMIT_S)" in caught.value.reason


def webp_header(width: int, height: int) -> bytes:
    """46 bytes of a lossless, transparent WebP; its pixels are missing."""
    bits = (width - 1) | (height - 1) << 14 | 1 << 28
    body = b"WEBPVP8L" + struct.pack("<IBI", 26, 0x2F, bits) + bytes(21)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_a_webp_is_measured_by_its_header(monkeypatch):
    """Before the decoder reserves its canvases: it is not opened at all."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for data in (webp_header(16383, 10900), webp_header(10001, 10000)):
        with pytest.raises(UnreadablePoster, match="POSTERS_MAX_PIXELS"):
            decode(data, SMALL, name="x")


def test_numbers_in_tags_are_bounded():
    """A TIFF's tags become a Python object per number; more than any image needs are refused unread."""
    for tag, kind, values in ((273, 4, 1_000_001), (282, 5, 10_001)):
        with pytest.raises(UnreadablePoster, match="numbers"):
            decode(tiff(tag, kind, values, b""), SMALL, name="x")


def test_a_limit_above_pillows_own_works():
    """And the error quotes ours."""
    wide = Image.new("1", (20_000, 10_000))
    data = encoded(wide, "PNG", compress_level=1)
    assert decode(data, SMALL, name="x", limits=Limits(max_pixels=200_000_000)).shape == (3, 32, 32)
    with pytest.raises(UnreadablePoster, match=r"it has 20000×10000 pixels, the limit is 100,000,000"):
        decode(data, SMALL, name="x")
