"""Plain JPEGs bypass Pillow, with its pixels; all others are left to it."""

import io
from contextlib import contextmanager

import pytest
import torch
from PIL import Image, ImageCms

from bench.image_samples import encoded, picture, sample, swapped_profile
from producer.errors import UnreadablePoster
from worker.images import decode as decoding
from worker.images.decode import Geometry, Limits, decode
from worker.images.jpeg import read_plain
from worker.images.profiles import SRGB_PRIMARIES, make_profile

SMALL = Geometry(32, 32)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = Image.Exif()
EXIF[0x010F] = "a camera"
PLAIN = {
    "baseline": encoded(picture(), "JPEG"),
    "4:4:4": encoded(picture(), "JPEG", subsampling=0),
    "4:2:2": encoded(picture(), "JPEG", subsampling=1),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "gray": encoded(picture().convert("L"), "JPEG"),
    "odd size": encoded(picture().resize((131, 77)), "JPEG"),
    "restart markers": encoded(picture(), "JPEG", restart_marker_blocks=2),
    "comment": encoded(picture(), "JPEG", comment=b"printed in 1974"),
    "profile of other primaries": encoded(picture(), "JPEG", icc_profile=swapped_profile()),
    "sRGB profile": encoded(picture(), "JPEG", icc_profile=SRGB),
    "Exif upright": encoded(picture(), "JPEG", exif=EXIF),
    "XMP": encoded(picture(), "JPEG", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"),
    "Adobe RGB components": encoded(picture(), "JPEG", keep_rgb=True),
}
BASELINE = PLAIN["baseline"]


@contextmanager
def _refused(*arguments):
    raise AssertionError("Pillow was asked")
    yield


def by_pillow(data: bytes, geometry: Geometry) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_load_plain_jpeg", lambda *arguments: None)
        return decode(data, geometry, name="x.jpg")


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(
    "geometry", [SMALL, Geometry(12, 12), Geometry(100, 60, "longest"), Geometry(48, 48, "squash")]
)
def test_a_plain_jpeg_has_pillows_pixels_without_pillow(monkeypatch, kind, geometry):
    """At full and at reduced size."""
    expected = by_pillow(PLAIN[kind], geometry)
    monkeypatch.setattr(decoding, "open_image", _refused)
    assert torch.equal(decode(PLAIN[kind], geometry, name="x.jpg"), expected)


@pytest.mark.parametrize(
    "data",
    [
        *(sample(name).data for name in ("jpeg cmyk", "jpeg arithmetic", "mpo", "jpeg exif 6")),
        encoded(
            picture(), "JPEG", icc_profile=make_profile(SRGB_PRIMARIES, (1.0,))
        ),  # it moves colors far, and so before the resize
        BASELINE[:-2],  # only the end marker is missing
        BASELINE[: len(BASELINE) // 2],
        BASELINE[:2] + b"stray bytes" + BASELINE[2:],
        BASELINE[:2] + b"\xff\xff" + BASELINE[2:],
        BASELINE.replace(b"\xff\xda", b"\xff\xda\0", 1),
        encoded(Image.new("RGB", (3001, 2000)), "JPEG"),
        encoded(Image.new("RGB", (8, 3000)), "JPEG"),
        BASELINE[:3],
        b"\xff\xd8\xff\xe0\0\0JFIF",
        encoded(picture(), "PNG"),
    ],
)
def test_what_is_not_plain_is_left_to_pillow(data):
    """Nothing but None, whatever is wrong with it."""
    assert decoding._load_plain_jpeg(data, SMALL, Limits(), None) is None


def test_a_damaged_scan_fails_or_decodes_as_in_pillow():
    """What libjpeg-turbo only warns of is decided by Pillow, as before."""
    damaged = bytearray(PLAIN["4:4:4"])
    damaged[len(damaged) // 2 : len(damaged) // 2 + 2] = b"\xff\xd3"  # a restart marker where none can be
    assert read_plain(bytes(damaged)) is not None
    assert decoding._load_plain_jpeg(bytes(damaged), SMALL, Limits(), None) is None
    assert torch.equal(decode(bytes(damaged), SMALL, name="x.jpg"), by_pillow(bytes(damaged), SMALL))


def test_the_limit_of_pixels_holds():
    """The error is Pillow's path's."""
    with pytest.raises(UnreadablePoster, match="POSTERS_MAX_PIXELS"):
        decode(BASELINE, SMALL, name="x.jpg", limits=Limits(max_pixels=100))


@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_memory_is_reserved_for_it(kind):
    """At least four bytes per decoded pixel, and the coefficients of a progressive one."""
    reserved = []

    class Budget:
        @contextmanager
        def reserve(self, amount):
            reserved.append(amount)
            yield

    decode(PLAIN[kind], SMALL, name="x.jpg", budget=Budget())
    with Image.open(io.BytesIO(PLAIN[kind])) as image:
        pixels = image.width * image.height
    assert len(reserved) == 1
    assert reserved[0] > pixels * (4 if kind == "baseline" else 10) / 16
