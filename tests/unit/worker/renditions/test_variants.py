"""Variants of a poster as people send it."""

import io

import numpy as np
import pytest
from PIL import Image

from bench.image_samples import encoded, picture
from producer.errors import UnreadablePoster
from producer.settings import load_settings
from worker.renditions.variants import variants

POSTER = picture(400, 600, seed=3)


def made(seed=0, data=None, **settings):
    data = encoded(POSTER, "PNG") if data is None else data
    files = variants(data, load_settings(**settings), np.random.default_rng(seed), name="a.png")
    return {name: np.asarray(Image.open(io.BytesIO(file))).astype(int) for name, file in files.items()}, files


def test_the_same_seed_gives_the_same_files():
    """Byte for byte; another seed cuts elsewhere."""
    first, again, other = made(1)[1], made(1)[1], made(2)[1]
    assert first == again
    assert first["crop 40 %"] != other["crop 40 %"]


def test_each_variant_is_what_its_name_says():
    """Sizes, brightness, bars, what is covered, and which way it looks."""
    pixels, files = made()
    original = np.asarray(POSTER).astype(int)
    shapes = {name: variant.shape[:2] for name, variant in pixels.items()}
    assert shapes["quality 30"] == (600, 400)
    assert len(files["quality 30"]) < len(encoded(POSTER, "JPEG", quality=85))
    assert shapes["240 pixels"] == (240, 160)
    assert [shapes[f"crop {share} %"] for share in (5, 20, 40)] == [(570, 380), (480, 320), (360, 240)]
    assert np.ptp(pixels["screenshot"][100:140]) < 8  # a bar
    assert pixels["darker"].mean() < original.mean() < pixels["brighter"].mean()
    assert np.ptp(pixels["gray"], axis=2).max() < 8
    assert np.abs(np.diff(pixels["blurred"], axis=1)).max() < 0.7 * np.abs(np.diff(original, axis=1)).max()
    covered = (np.abs(pixels["sticker"] - original).max(axis=2) > 40).mean()
    assert 0.04 < covered < 0.12
    assert 0.005 < (np.abs(pixels["watermark"] - original).max(axis=2) > 40).mean() < 0.1
    assert shapes["turned 3°"] > (600, 400)
    assert np.abs(pixels["mirrored"][:, ::-1] - original).mean() < 4
    corners = pixels["photograph"][[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1)
    assert np.ptp(corners) > 10  # one wall, and light that falls off across it


def test_hostile_files_fail_as_posters_do():
    """The limits of the settings hold."""
    with pytest.raises(UnreadablePoster, match=r"a\.png: too-large"):
        made(max_pixels=1000)
    with pytest.raises(UnreadablePoster, match=r"a\.png: unreadable"):
        made(data=b"no picture")


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (2400, 3)])
def test_the_smallest_and_longest_images_have_variants(size):
    """No variant needs a minimum size."""
    assert all(pixels.size for pixels in made(data=encoded(picture(*size), "PNG"))[0].values())
