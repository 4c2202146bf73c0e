"""zero_copy_rgb: the same pixels, alive as long as they are used, and None where there is no view."""

import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench.image_samples import encoded, picture
from tests.support.project import PROJECT
from worker.images import resize
from worker.images.decode import Geometry, decode
from worker.images.resize import as_tensor
from worker.images.zero_copy import zero_copy_rgb


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (301, 450), (1000, 1500)])
def test_the_view_has_the_pixels_of_the_image(size):
    """Every pixel in its place, whatever the width."""
    image = picture(*size)
    view = zero_copy_rgb(image)
    assert view.shape == (1, 4, size[1], size[0])
    assert np.array_equal(view[0, :3].permute(1, 2, 0).numpy(), np.asarray(image))


def test_the_memory_outlives_the_image():
    """The tensor keeps the memory alive."""
    image = picture(400, 600)
    expected = np.asarray(image).copy()
    view = zero_copy_rgb(image)
    del image
    gc.collect()
    for seed in range(5):
        picture(400, 600, seed=seed)  # would reuse memory that was freed
    assert np.array_equal(view[0, :3].permute(1, 2, 0).numpy(), expected)


def test_images_without_a_view_give_none():
    """Other modes, and images that Pillow stores in several blocks (more than 16 MB)."""
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        assert zero_copy_rgb(Image.new(mode, (4, 4))) is None
    assert zero_copy_rgb(Image.new("RGB", (4000, 3000))) is None


@pytest.mark.parametrize("size", [(224, 224), (225, 450), (1000, 1500), (40, 600), (6000, 20)])
def test_decoding_gives_the_same_pixels_as_with_a_copy(monkeypatch, size):
    """To the last bit, resized or not."""
    data = encoded(picture(*size), "PNG")
    view = decode(data, Geometry(224, 224), name="x")
    monkeypatch.setattr(resize, "zero_copy_rgb", lambda image: None)
    assert torch.equal(view, decode(data, Geometry(224, 224), name="x"))
    assert view.is_contiguous()


@pytest.mark.slow
def test_memory_is_freed_with_the_view():
    """A hundred images of 3 MB, one after the other, do not add up; in a process whose peak is its own."""
    pytest.importorskip("resource")
    code = """
import resource
from bench.image_samples import picture
from worker.images.zero_copy import zero_copy_rgb
peak_kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = picture(800, 1000, seed=0)
for _ in range(20):
    zero_copy_rgb(image.copy())
before = peak_kib()
for _ in range(100):
    assert zero_copy_rgb(image.copy()) is not None
print(peak_kib() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 3200 / 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_have_the_strides_that_torch_takes_for_channels_last(mode):
    """Also over the one image: without that, torch resizes in another way, up to three times slower."""
    view = as_tensor(picture(30, 20).convert(mode))
    channels, height, width = view.shape[1:]
    assert view.stride() == (height * width * channels, 1, width * channels, channels)
