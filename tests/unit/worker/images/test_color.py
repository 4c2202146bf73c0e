"""Colors are those that a viewer shows: a profile is known by what it does, whatever the mode and the container."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from bench.image_samples import encoded, picture, swapped_profile
from producer.errors import UnreadablePoster
from tests.support.image_variants import HEIGHT, PROFILES, WIDTH, on_white, pixels, png, png_chunk
from worker.images import color
from worker.images.color import srgb_transform
from worker.images.decode import Geometry, decode
from worker.images.profiles import PRIMARIES, SRGB_CURVE, SRGB_PRIMARIES, make_profile

SQUARE = Geometry(HEIGHT, WIDTH, "squash")
GRAY_LINEAR = make_profile(None, (1.0,))
LINEAR = PROFILES["linear"]


def shown(data: bytes) -> np.ndarray:
    """int (HEIGHT, WIDTH, 3)."""
    return decode(data, SQUARE, name="x").permute(1, 2, 0).numpy().astype(int)


def lighter(values: np.ndarray) -> np.ndarray:
    """Linear light as sRGB (IEC 61966-2-1), 0 to 255."""
    light = values / 255
    return np.round(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


RGBA = Image.fromarray(pixels())
RGB, GRAY = RGBA.convert("RGB"), RGBA.convert("L")
LA = RGBA.convert("LA")


@pytest.mark.parametrize(
    ("image", "format", "profile"),
    [
        (RGB, "PNG", LINEAR),
        (RGB, "TIFF", LINEAR),
        (RGBA, "PNG", LINEAR),
        (RGB.quantize(64), "PNG", LINEAR),
        (GRAY, "PNG", GRAY_LINEAR),
        (GRAY, "TIFF", GRAY_LINEAR),
        (LA, "PNG", GRAY_LINEAR),
    ],
    ids=lambda value: getattr(value, "mode", value if isinstance(value, str) else ""),
)
def test_linear_light_is_shown_as_srgb(image, format, profile):
    """By the formula; with transparency, the colors are converted first and then mixed with white."""
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    expected = on_white(lighter(np.asarray(image.convert("RGB"))), alpha)
    assert np.abs(shown(encoded(image, format, icc_profile=profile)) - expected).max() <= 2


def test_a_png_says_its_colors_in_four_ways():
    """Code points count before a profile, a profile before `sRGB`, that before gamma and chromaticities."""
    profile = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(PROFILES["p3"]))
    points, srgb = png_chunk(b"cICP", bytes([12, 13, 0, 1])), png_chunk(b"sRGB", b"\0")
    gamma = png_chunk(b"gAMA", struct.pack(">I", 100_000))
    wide = png_chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in PRIMARIES[12])))
    plain, p3, linear = shown(png(2, 8)), shown(png(2, 8, profile)), lighter(pixels()[..., :3])
    assert np.abs(p3 - plain).max() > 20
    assert np.abs(shown(png(2, 8, points)) - p3).max() <= 1
    assert np.abs(shown(png(2, 8, wide)) - p3).max() <= 1
    assert np.abs(shown(png(2, 8, gamma)) - linear).max() <= 2
    assert np.array_equal(shown(png(2, 8, gamma + profile)), p3)
    assert np.array_equal(shown(png(2, 8, gamma + wide + srgb)), plain)
    swapped = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(swapped_profile()))
    assert np.abs(shown(png(2, 8, swapped + points)) - p3).max() <= 1


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_unsupported(transfer):
    """How a viewer shows it depends on its screen."""
    with pytest.raises(UnreadablePoster) as caught:
        shown(png(2, 8, png_chunk(b"cICP", bytes([9, transfer, 0, 1]))))
    assert caught.value.word == "unsupported"
    assert "high dynamic range" in caught.value.reason


def test_the_code_points_of_an_avif_count():
    """They are a box of the file; Pillow writes those of sRGB."""
    data = encoded(RGB, "AVIF", quality=95)
    at = data.index(b"colrnclx") + 8
    p3 = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
    assert np.abs(shown(p3) - shown(data)).max() > 20
    with pytest.raises(UnreadablePoster, match="high dynamic range"):
        shown(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])


def test_a_profile_is_known_by_what_it_does():
    """sRGB under another name changes nothing, and anything under the name of sRGB does."""
    srgb = make_profile(SRGB_PRIMARIES, SRGB_CURVE)
    assert srgb_transform(srgb, "RGB") is None
    assert srgb_transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "P") is None
    assert srgb_transform(make_profile(None, SRGB_CURVE), "L") is None
    named = ImageCms.ImageCmsProfile(io.BytesIO(swapped_profile())).tobytes().replace(b"\0x\0R\0G\0B", b"\0s\0R\0G\0B")
    assert srgb_transform(named, "RGB") is not None


def test_a_profile_of_other_colors_is_ignored():
    """A gray profile in a color picture, and the reverse, as browsers do."""
    assert srgb_transform(GRAY_LINEAR, "RGB") is None
    assert srgb_transform(LINEAR, "L") is None
    assert srgb_transform(LINEAR, "CMYK") is None


@pytest.mark.parametrize("after", [False, True])
def test_a_long_profile_is_read_and_an_endless_one_passed_over(after):
    """Scanners write profiles of a megabyte; Pillow refuses the file."""
    long = bytearray(swapped_profile())
    long += os.urandom(1_300_000)
    long[:4] = struct.pack(">I", len(long))
    packed = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(long)))
    endless = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(swapped_profile() + bytes(20_000_000)))
    if after:  # where the specification does not want it
        assert np.array_equal(shown(png(2, 8, tail=endless)), shown(png(2, 8)))
        return
    swapped = shown(encoded(RGB, "PNG", icc_profile=swapped_profile()))
    assert np.array_equal(shown(png(2, 8, packed)), swapped)
    assert np.array_equal(shown(png(2, 8, endless)), shown(png(2, 8)))


def test_few_transforms_are_kept_and_no_profile():
    """A profile may have megabytes, and each file another one."""
    for number in range(color.CACHED_PROFILES + 20):
        assert srgb_transform(make_profile(None, (3.0 + number / 100,)), "L") is not None
    assert len(color._cached) == color.CACHED_PROFILES
    assert max(len(digest) for digest, _ in color._cached) == 32


@pytest.mark.parametrize("missing", [3, 8, 40, 200])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_than_its_end_is_truncated(missing, progressive):
    """Whatever is left of its last block; what is not in the file is not filled with gray."""
    data = encoded(picture(240, 360), "JPEG", quality=85, progressive=progressive)
    with pytest.raises(UnreadablePoster) as caught:
        decode(data[:-2][:-missing], SQUARE, name="x")
    assert caught.value.word == "truncated"


def test_a_progressive_jpeg_that_lacks_scans_is_truncated():
    """Cut between two of them, the rest is a whole picture, but a coarse one."""
    data = encoded(picture(240, 360), "JPEG", quality=85, progressive=True)
    for at in range(data.index(b"\xff\xda") + 2, len(data)):
        if data[at : at + 2] in (b"\xff\xc4", b"\xff\xda"):  # tables or a scan begin
            with pytest.raises(UnreadablePoster, match="truncated"):
                decode(data[:at], SQUARE, name="x")


def test_a_jpeg_of_which_only_the_end_is_missing_is_whole():
    """At reduced size as well, and where the model's crop leaves out the last rows."""
    for size in ((90, 60), (1000, 1600)):
        for progressive in (False, True):
            data = encoded(picture(*size), "JPEG", progressive=progressive)
            for cut in (1, 2):
                found = decode(data[:-cut], Geometry(224, 224), name="x")
                assert np.array_equal(found.numpy(), decode(data, Geometry(224, 224), name="x").numpy())
