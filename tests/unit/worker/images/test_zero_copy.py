"""Pillow's memory, borrowed: the same pixels, alive as long as they are used, and nothing where it cannot be had."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from bench.image_samples import encoded, picture
from worker.images import resize
from worker.images.decode import Geometry, decode
from worker.images.zero_copy import zero_copy_rgb


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (301, 450), (1000, 1500)])
def test_the_pixels_are_the_images(size):
    """Every pixel, in its place, whatever the width."""
    image = picture(*size)
    borrowed = zero_copy_rgb(image)
    assert borrowed.shape == (1, 4, size[1], size[0])
    assert np.array_equal(borrowed[0, :3].permute(1, 2, 0).numpy(), np.asarray(image))


def test_the_memory_outlives_the_image():
    """A tensor that is still used keeps what it looks at."""
    image = picture(400, 600)
    expected = np.asarray(image).copy()
    borrowed = zero_copy_rgb(image)
    del image
    gc.collect()
    for seed in range(5):
        picture(400, 600, seed=seed)  # would take the place of memory that was let go of
    assert np.array_equal(borrowed[0, :3].permute(1, 2, 0).numpy(), expected)


def test_where_there_is_no_view_there_is_none():
    """Other modes, and images that Pillow holds in several pieces (more than 16 MB)."""
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        assert zero_copy_rgb(Image.new(mode, (4, 4))) is None
    assert zero_copy_rgb(Image.new("RGB", (4000, 3000))) is None


@pytest.mark.parametrize("size", [(224, 224), (225, 450), (1000, 1500), (40, 600), (6000, 20)])
def test_what_is_decoded_is_the_same_as_with_a_copy(monkeypatch, size):
    """To the last bit, resized or not."""
    data = encoded(picture(*size), "PNG")
    borrowed = decode(data, Geometry(224, 224), name="x")
    monkeypatch.setattr(resize, "zero_copy_rgb", lambda image: None)
    assert torch.equal(borrowed, decode(data, Geometry(224, 224), name="x"))
    assert borrowed.is_contiguous()


def test_memory_goes_back():
    """A hundred images of 3 MB, each let go of: the process does not grow by what they held."""
    resource = pytest.importorskip("resource")
    for seed in range(20):
        zero_copy_rgb(picture(800, 1000, seed=seed % 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(100):
        zero_copy_rgb(picture(800, 1000, seed=seed % 3))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100 * 3200 / 4
