"""HEIC and JPEG XL: shown as a viewer shows them, refused by their headers, named where their plugins are missing."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.image_samples import encoded, oriented, picture, translucent
from producer.errors import UnreadablePoster
from tests.support.plugin_images import (
    ANIMATED,
    COLOR,
    DISPLAY_P3,
    GRAY_ALPHA_16,
    PQ,
    box,
    heic,
    heic_of_10_bits,
    heic_whose_items_share_bytes,
    jxl,
    jxl_header,
    jxl_of_jpeg,
    with_code_points,
    with_size,
)
from worker.images import plugins
from worker.images.decode import Geometry, Limits, decode, open_image
from worker.images.profiles import PRIMARIES, SRGB_CURVE, make_profile

RGB = picture(120, 180)
P3 = make_profile(PRIMARIES[12], SRGB_CURVE)
FORMATS = pytest.mark.parametrize("make", [heic, jxl])


def shown(data: bytes, size: tuple[int, int] = RGB.size) -> np.ndarray:
    """int (height, width, 3)."""
    return decode(data, Geometry(*size[::-1], "squash"), name="x").permute(1, 2, 0).numpy().astype(int)


def apart(data: bytes, image: Image.Image) -> float:
    """Mean difference to what a viewer shows of an image, in levels of 255."""
    return float(np.abs(shown(data, image.size) - shown(encoded(image, "PNG"), image.size)).mean())


def failure(data: bytes, limits: Limits | None = None) -> UnreadablePoster:
    with pytest.raises(UnreadablePoster) as caught:
        decode(data, Geometry(32, 32), name="deep/bad.heic", limits=limits)
    assert caught.value.path == "deep/bad.heic"
    return caught.value


@FORMATS
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_each_mode_is_shown_as_a_viewer_shows_it(make, mode):
    """On white."""
    image = translucent().resize(RGB.size).convert(mode)
    assert apart(make(image, quality=95), image) < 2


def test_gray_of_16_bits_is_scaled():
    """The plugin's encoder takes such numbers for linear light, and says so in the file."""
    values = Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257)
    assert apart(heic(values, quality=95), RGB.convert("L")) < 2
    linear = encoded(RGB.convert("L"), "PNG", icc_profile=make_profile(None, (1.0,)))
    assert np.abs(shown(jxl(values, lossless=True)) - shown(linear)).mean() < 2


def test_gray_of_16_bits_with_alpha_is_scaled():
    """Its plugin gives the bytes of both under the mode of 8 bits, which has half as many."""
    down, across = np.mgrid[0:8, 0:8]
    opaque = 1 - 9000 * down / 65535
    expected = (8000 * across + 300 * down) / 257 * opaque + 255 * (1 - opaque)
    assert np.abs(shown(GRAY_ALPHA_16, (8, 8)) - expected[..., None]).max() < 2


def test_colors_of_10_bits_are_those_of_8():
    """As newer cameras write them."""
    assert apart(heic_of_10_bits(RGB), RGB) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_once(orientation):
    """HEIC and JPEG XL turn by properties of their own, and the Exif data beside them has no say."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    upright = oriented(RGB, orientation)
    assert apart(heic(RGB, quality=95, exif=tags.tobytes()), upright) < 2
    jpeg = encoded(RGB, "JPEG", quality=95, subsampling=0, exif=tags)
    data = jxl_of_jpeg(jpeg, *RGB.size)
    assert apart(data, upright) < 2
    with open_image(data, Limits()) as image:
        assert image.size == upright.size


def test_profiles_and_code_points_are_applied():
    """An ICC profile, a HEIC's code points, and those that libjxl says as a profile."""
    wide = encoded(RGB, "PNG", icc_profile=P3)
    assert np.abs(shown(wide) - shown(encoded(RGB, "PNG"))).mean() > 3, "the profile moves nothing"
    for data in (heic(RGB, quality=95, icc_profile=P3), with_code_points(heic(RGB, quality=95), 12, 13)):
        assert np.abs(shown(data) - shown(wide)).mean() < 2
    red = encoded(Image.new("RGB", (8, 8), COLOR), "PNG", icc_profile=P3)
    assert np.abs(shown(DISPLAY_P3, (8, 8)) - shown(red, (8, 8))).max() <= 1


@pytest.mark.parametrize("data", [PQ, with_code_points(heic(RGB), 9, 16), with_code_points(heic(RGB), 9, 18)])
def test_high_dynamic_range_is_unsupported(data):
    """How it looks depends on the screen."""
    error = failure(data)
    assert (error.word, "high dynamic range" in error.reason) == ("unsupported", True)


def test_an_animated_jpeg_xl_is_unsupported(monkeypatch):
    """Its plugin would decode every frame and give the last one; its header is enough to know."""
    monkeypatch.setattr(plugins.JxlImageFile, "load", lambda self: pytest.fail("decoded"))
    assert failure(ANIMATED).word == "unsupported"


@FORMATS
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_a_failure_and_never_half_a_picture(make, share):
    """Cut anywhere."""
    data = make(RGB)
    assert failure(data[: int(len(data) * share)]).word in ("truncated", "unreadable")


def test_a_box_that_ends_too_early_is_truncated():
    """Where the file says how long it is, the word is the one that suggests to copy it again."""
    assert failure(heic(RGB)[:-200]).word == "truncated"
    data = jxl_of_jpeg(encoded(RGB, "JPEG", quality=95), *RGB.size)
    assert failure(data[: int(0.6 * len(data))]).word == "truncated"


@pytest.mark.parametrize(
    "data",
    [
        jxl_header(10_001, 10_000),
        jxl_header(2**30, 2**30),
        box(b"JXL ", b"\r\n\x87\n") + box(b"jxlp", bytes(4) + jxl_header(20_000, 30_000)),
        with_size(heic(RGB), 10_001, 10_000),
        with_size(heic(RGB), 60_000, 60_000),
    ],
)
def test_too_many_pixels_are_refused_by_the_header(data, monkeypatch):
    """Before a pixel is decoded: the setting is named."""
    monkeypatch.setattr(plugins, "load_with_plugin", lambda image: pytest.fail("decoded"))
    error = failure(data)
    assert (error.word, "POSTERS_MAX_PIXELS" in error.reason) == ("too-large", True)


@FORMATS
def test_the_limit_is_a_setting(make):
    """One pixel more is refused; the exact number is not."""
    data = make(picture(80, 96))
    assert failure(data, Limits(max_pixels=80 * 96 - 1)).word == "too-large"
    decode(data, Geometry(32, 32), name="x", limits=Limits(max_pixels=80 * 96))


def peak_bytes() -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("size", [(64, 64), (4000, 3001)])
def test_a_picture_of_another_size_than_announced_is_damaged(size):
    """A small header before a large picture is refused by libheif before it takes the memory."""
    data = with_size(heic(Image.new("RGB", (4000, 3000)), quality=10), *size)
    failure(with_size(heic(RGB), 64, 64))  # what is loaded once is not this file's
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    assert failure(data).word == "unreadable"
    if size == (64, 64):
        assert peak_bytes() - before < 20_000_000


def test_items_that_share_bytes_are_refused():
    """900 times the same megabyte would be read 900 times when the file is opened: 2 GB for a file of 1 MB."""
    error = failure(heic_whose_items_share_bytes(900, 1_000_000))
    assert (error.word, "claim" in error.reason) == ("unreadable", True)
    decode(heic_whose_items_share_bytes(1, 1000), Geometry(32, 32), name="x")


def test_boxes_beside_the_picture_are_never_unpacked():
    """A JPEG XL's metadata may be packed by Brotli, and may rebuild a JPEG: libjxl is given the codestream alone."""
    bare = jxl(RGB, quality=95)
    whole = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"brob", b"Exif" + bytes(1000))
    whole += box(b"jbrd", bytes(1000)) + box(b"jxlp", bytes(4) + bare[:500])
    whole += box(b"jxlp", b"\x80\0\0\1" + bare[500:])
    assert np.array_equal(shown(whole), shown(bare))


@pytest.mark.parametrize(
    ("module", "data", "name"),
    [("pillow_heif", heic(RGB), "pip install pillow-heif"), ("pillow_jxl", jxl(RGB), "pip install pillow-jxl-plugin")],
)
def test_a_missing_plugin_is_named(module, data, name, monkeypatch):
    """With the extra that brings it; every other format is read as before."""
    plugins._heif_plugin.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    error = failure(data)
    assert error.word == "unsupported"
    assert "the extra `formats`" in error.reason
    assert error.reason.endswith(name)
    decode(encoded(RGB, "AVIF"), Geometry(32, 32), name="x")


def test_a_file_that_is_heif_or_avif_goes_to_the_right_decoder():
    """`mif1` names the container alone; the list behind it says AVIF where Pillow reads it itself."""
    avif = encoded(RGB, "AVIF")
    head = avif.index(b"ftyp") + 4
    assert plugins.plugin_format(avif[:head] + b"mif1" + avif[head + 4 :]) is None
    data = heic(RGB)
    general = data[:8] + b"mif1" + data[12:]
    assert plugins.plugin_format(general) == "HEIF"
    assert np.array_equal(shown(general), shown(data))


def test_images_of_the_host_program_are_left_to_it():
    """Pillow opens a HEIC for whoever asks it to; our own list of formats does not grow."""
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(heic(RGB)), formats=("JPEG", "AVIF"))
