"""Every variant of every format is shown as a viewer shows it, or refused with its reason: never a guess."""

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from producer.errors import UnreadablePoster
from tests.support.image_variants import variants
from worker.images.decode import Geometry, decode

MEAN, FAR, SHARE_OF_FAR = 4, 24, 0.01  # levels of 255: 5 bits, chroma at half the size, and Lab lose as much


def shown(data: bytes, height: int, width: int) -> np.ndarray:
    """int (height, width, 3)."""
    return decode(data, Geometry(height, width, "squash"), name="x").permute(1, 2, 0).numpy().astype(int)


def differs(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """More than encoders, rounding and the sampling of chroma explain."""
    apart = np.abs(ours - theirs)
    return bool(apart.mean() > MEAN or (apart.max(axis=2) > FAR).mean() > SHARE_OF_FAR)


@pytest.mark.filterwarnings("ignore")
def test_each_variant_is_right_or_unsupported():
    """Against the pixels that it was written from: about 500 files."""
    wrong, refused = [], Counter()
    for name, data, expected in variants():
        if expected is None:
            continue
        try:
            if differs(shown(data, *expected.shape[:2]), expected):
                wrong.append(name)
        except UnreadablePoster as error:
            refused[name.split()[0]] += 1
            if error.word != "unsupported":
                wrong.append(f"{name}: {error.word}: {error.reason}")
    assert not wrong
    assert set(refused) <= {"tiff", "bmp"}


LIBVIPS = (
    "vips autorot {0} {0}.1.v && vips colourspace {0}.1.v {0}.2.v srgb && vips cast {0}.2.v {0}.out.png[strip] uchar"
)
# Decided otherwise than libvips, as docs/images.md says: it ignores gamma, chromaticities, profiles of gray pictures
# and Exif data after the pixels, reads 32-bit BMP and unspecified samples of TIFF as alpha, and CMYK by its profile.
OTHERWISE = ("gAMA", "cHRM", "cICP", "after", "bmp 32", "extra 0", "cmyk", "ycbcr", "lab", "gif frame", "exif")


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore")
def test_an_independent_reader_shows_the_same(tmp_path: Path):
    """libvips (Debian: libvips-tools), for all variants without a profile."""
    try:
        subprocess.run(["vips", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs `vips` of libvips-tools")
    wrong = []
    for name, data, _ in variants():
        if any(word in name for word in (*OTHERWISE, "linear", "1.8", "p3", "swapped", "profile")):
            continue
        path = tmp_path / f"x.{name.split()[0].strip(',')}"
        path.write_bytes(data)
        done = subprocess.run(LIBVIPS.format(path), shell=True, capture_output=True, check=False)
        if done.returncode:
            continue
        with Image.open(f"{path}.out.png") as image:
            layer = image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, (0, 0), layer)
        try:
            if differs(shown(data, *layer.size[::-1]), np.asarray(ground).astype(int)):
                wrong.append(name)
        except UnreadablePoster as error:
            if error.word != "unsupported":
                wrong.append(f"{name}: {error}")
    assert not wrong
