"""Pillow's global settings: ours while an image is decoded, the host program's before and after."""

import io
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image, ImageFile

from bench.image_samples import encoded, picture
from producer.errors import UnreadablePoster
from worker.images.decode import Geometry, Limits, decode, fit
from worker.images.pillow_defaults import own_pillow_defaults

CLIP = Geometry(64, 64)


@pytest.fixture
def host(monkeypatch):
    """A program that takes truncated files, limits Pillow to 10,000 pixels, and makes every warning an error."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        yield
        assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 10_000)
        assert warnings.filters == before


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
def test_a_truncated_file_fails_whatever_the_host_program_tolerates(host, kind):
    """Pillow would fill up the rest with gray, and the vector would be another picture's."""
    data = encoded(picture(90, 130), kind)
    with pytest.raises(UnreadablePoster) as caught:
        decode(data[: len(data) // 2], CLIP, name="cut")
    assert caught.value.word in ("truncated", "unreadable")


def test_a_truncated_image_of_the_host_program_fails_as_well(host):
    """An image that was opened and not loaded yet, as preprocess takes it."""
    data = encoded(picture(60, 90), "PNG")
    with pytest.raises(UnreadablePoster, match="truncated"), Image.open(io.BytesIO(data[: len(data) // 2])) as image:
        fit(image, CLIP)


@pytest.mark.slow
def test_only_our_limit_of_pixels_decides(host):
    """Neither a lower one of the host program, nor, for a higher one of ours, the one that Pillow comes with."""
    assert decode(encoded(picture(90, 130), "PNG"), CLIP, name="a").shape == (3, 64, 64)
    large = encoded(Image.new("1", (20_000, 20_000)), "PNG")  # more than twice Pillow's own 89 million
    with pytest.raises(UnreadablePoster, match="the limit is 100,000,000"):
        decode(large, CLIP, name="a")
    assert decode(large, CLIP, name="a", limits=Limits(400_000_000)).shape == (3, 64, 64)


def test_a_warning_of_pillow_is_no_failure(host):
    """An animation with a damaged control chunk: Pillow warns, and shows the default picture."""
    data = encoded(picture(90, 130), "PNG")
    head, rest = data[:33], data[33:]  # signature and IHDR
    chunk = b"acTL" + bytes(8)
    animated = head + (8).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + rest
    assert torch.equal(decode(animated, CLIP, name="a"), decode(data, CLIP, name="a"))


def test_threads_share_the_settings(host):
    """Ours hold until the last thread is done, and the host program's are back afterwards."""
    barrier = threading.Barrier(4)

    def use(number):
        with own_pillow_defaults():
            barrier.wait(10)
        for _ in range(50):
            with own_pillow_defaults():
                assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (False, None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))


def test_what_the_host_program_sets_meanwhile_stays(monkeypatch):
    """Its choice is newer than the value that was put aside."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with own_pillow_defaults():
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = True, 7
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 7)
