"""Mutated images: nothing but UnreadablePoster comes out, and what decodes is what Pillow decodes.

``make fuzz CASES=100000`` runs as many cases as asked; ``make test`` runs a few hundred.
"""

import io
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.image_samples import encoded, picture, translucent
from producer.errors import UnreadablePoster
from worker.images.decode import FORMATS, Geometry, Limits, decode, fit

CASES = int(os.environ.get("FUZZ_CASES", "200"))
SMALL = Geometry(32, 32)
SIZE = (60, 90)  # less than twice SMALL: a JPEG of this size is decoded in full
LIMITS = Limits(max_pixels=1_000_000)

SEEDS = [
    encoded(picture(*SIZE), "JPEG", quality=80),
    encoded(picture(*SIZE), "JPEG", quality=80, progressive=True, exif=Image.Exif()),
    encoded(picture(*SIZE), "PNG"),
    encoded(picture(*SIZE).quantize(16), "PNG", transparency=3),
    encoded(translucent().resize(SIZE), "PNG"),
    encoded(picture(*SIZE), "WEBP", quality=70),
    encoded(translucent().resize(SIZE), "WEBP", lossless=True),
    encoded(picture(*SIZE).quantize(16), "GIF"),
    encoded(picture(*SIZE), "BMP"),
    encoded(picture(*SIZE), "TIFF"),
    encoded(picture(*SIZE), "TIFF", compression="tiff_lzw"),
    encoded(picture(*SIZE), "AVIF", quality=60),
]


@st.composite
def mutated(draw):
    """A valid file with bytes changed, ranges removed, doubled or set, or its end cut off."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        near_head = draw(st.booleans())
        place = place % 128 if near_head else place
        kind = draw(st.sampled_from(["flip", "set", "length", "cut", "double", "end"]))
        if kind == "flip" and data:
            data[place % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[place % len(data)] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "length":
            data[place : place + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"]))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        else:
            del data[place:]
    return bytes(data)


def outcome(data: bytes) -> torch.Tensor | UnreadablePoster:
    """The pixels, or why there are none; any other exception fails the test."""
    try:
        return decode(data, SMALL, name="x.jpg", limits=LIMITS)
    except UnreadablePoster as error:
        return error


@pytest.mark.filterwarnings("ignore")  # Pillow comments on damaged files; what counts is what comes out
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_a_damaged_file_is_a_named_failure_or_exactly_what_pillow_sees(data):
    """No other exception, ever; and a file that decodes gives the pixels of Pillow's strict load."""
    ours = outcome(data)
    if isinstance(ours, UnreadablePoster):
        assert ours.path == "x.jpg"
        assert ours.reason
        return
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO") and image.size != SIZE:
            return  # may have been decoded at reduced scale, which test_images.py compares
        assert torch.equal(ours, fit(image, SMALL))
