"""Mutated images: nothing but UnreadablePoster comes out, what decodes is what Pillow decodes, and none is costly.

``make fuzz CASES=100000`` runs as many cases as asked and prints the slowest and the fattest; ``make test`` runs a few
hundred. Time is the thread's processor time. Memory is the growth of the process's peak, which Linux resets on request.
"""

import io
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pillow_heif
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.image_samples import encoded, picture, swapped_profile, translucent
from producer.errors import UnreadablePoster
from tests.support.plugin_images import heic, jxl, jxl_of_jpeg
from worker.images import decode as decoding
from worker.images.decode import FORMATS, Geometry, Limits, decode, fit, open_image
from worker.images.memory_budget import partial_frame
from worker.images.plugins import load_with_plugin, plugin_format
from worker.images.png import SIGNATURE, read_png

CASES = int(os.environ.get("FUZZ_CASES", "200"))
SMALL = Geometry(32, 32)
SIZE = (60, 90)  # less than twice SMALL: a JPEG of this size is decoded in full
LIMITS = Limits(max_pixels=1_000_000)
MOST_S = 5  # of processor time, for files of at most MAX_RUN bytes
MOST_BYTES = 80_000_000  # 1 megapixel takes 21 MB at most; the rest is what the allocator keeps
MAX_RUN = 200_000


class Cost(NamedTuple):
    """What decoding a file took."""

    amount: float
    outcome: str
    data: bytes


costliest = {"seconds": Cost(0, "", b""), "bytes": Cost(0, "", b"")}


@pytest.fixture(scope="module", autouse=True)
def _print_the_costliest():
    """After the run."""
    yield
    for unit, cost in costliest.items():
        print(f"\nmost {unit}: {cost.amount:,.3f} for {len(cost.data):,} bytes {cost.data[:16]!r}: {cost.outcome:.80}")


def peak_bytes() -> int:
    """The peak of this process since `reset_peak`; 0 where the system does not tell."""
    with suppress(OSError):
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return 0


def reset_peak() -> int:
    """Let the peak begin anew with what is in use now, which is returned."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


SEEDS = [
    encoded(picture(*SIZE), "JPEG", quality=80),
    encoded(picture(*SIZE), "JPEG", quality=80, progressive=True, exif=Image.Exif()),
    encoded(picture(*SIZE).convert("CMYK"), "JPEG", progressive=True),
    encoded(picture(*SIZE), "JPEG", quality=80, subsampling=0, icc_profile=swapped_profile(), comment=b"a comment"),
    encoded(picture(*SIZE).convert("L"), "JPEG", restart_marker_blocks=4),
    encoded(picture(*SIZE), "PNG"),
    encoded(picture(*SIZE).quantize(16), "PNG", transparency=3),
    encoded(translucent().resize(SIZE), "PNG"),
    encoded(picture(*SIZE), "WEBP", quality=70),
    encoded(translucent().resize(SIZE), "WEBP", lossless=True),
    encoded(picture(*SIZE).quantize(16), "GIF"),
    encoded(picture(*SIZE), "BMP"),
    encoded(picture(*SIZE), "TIFF"),
    encoded(picture(*SIZE), "TIFF", compression="tiff_lzw"),
    encoded(picture(*SIZE), "TIFF", compression="jpeg"),
    encoded(picture(*SIZE), "TIFF", compression="tiff_deflate"),
    encoded(picture(*SIZE), "AVIF", quality=60),
    *(heic(image) for image in (picture(*SIZE), translucent().resize(SIZE))),
    heic(picture(*SIZE), icc_profile=swapped_profile(), tile_size=32),
    jxl(picture(*SIZE), quality=70),
    jxl(translucent().resize(SIZE), lossless=True, use_container=True),
    jxl_of_jpeg(encoded(picture(*SIZE), "JPEG", quality=80), *SIZE),
]


JPEGS = [seed for seed in SEEDS if seed.startswith(b"\xff\xd8")]


@st.composite
def mutated(draw, seeds=SEEDS):
    """A valid file with bytes changed, ranges removed, doubled or set, or its end cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        near_head = draw(st.booleans())
        place = place % 128 if near_head else place
        kind = draw(st.sampled_from(["flip", "set", "length", "cut", "double", "run", "end"]))
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
        elif kind == "run":  # what a scanner may try again at each byte
            part = bytes(data[place : place + draw(st.integers(1, 32))]) or b"\xff"
            data[place:place] = (part * MAX_RUN)[: draw(st.sampled_from([1000, MAX_RUN // 6]))]
        else:
            del data[place:]
    return bytes(data)


def outcome(data: bytes) -> torch.Tensor | UnreadablePoster:
    """The pixels, or why there are none; any other exception fails the test, and so does a costly file."""
    before, began = reset_peak(), time.thread_time()
    result: torch.Tensor | UnreadablePoster
    try:
        result = decode(data, SMALL, name="x.jpg", limits=LIMITS)
    except UnreadablePoster as error:
        result = error
    spent = {"seconds": time.thread_time() - began, "bytes": peak_bytes() - before}
    for unit, amount in spent.items():
        text = str(result) if isinstance(result, UnreadablePoster) else "decoded"
        costliest[unit] = max(costliest[unit], Cost(amount, text, data), key=lambda cost: cost.amount)
    assert spent["seconds"] < MOST_S
    assert spent["bytes"] < MOST_BYTES
    return result


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
    if plugin_format(data) == "HEIF":
        with open_image(data, LIMITS) as described:
            load_with_plugin(described)
        image = pillow_heif.read_heif(data).to_pillow()
        image.info = {"icc_profile": described.info.get("icc_profile")}
        assert torch.equal(ours, fit(image, SMALL))
        return
    if plugin_format(data) == "JXL":
        return  # decoded by one call; test_plugins.py compares what it gives
    png = read_png(data).data if data.startswith(SIGNATURE) else data
    with Image.open(io.BytesIO(png), formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO") and (image.size != SIZE or not data.endswith(b"\xff\xd9")):
            return  # may have been decoded at reduced scale, or completed, which test_decode.py compares
        if image.format == "GIF" and partial_frame(image):
            return  # drawn on white
        with open_image(data, LIMITS) as described:
            image.info |= described.info
        assert torch.equal(ours, fit(image, SMALL))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated(JPEGS))
def test_a_damaged_jpeg_decodes_or_fails_as_in_pillow(data):
    """The decoder of plain JPEGs gives Pillow's pixels, also at reduced scale, or leaves the file to Pillow."""
    for geometry in (SMALL, Geometry(12, 12)):
        plain = decoding._load_plain_jpeg(data, geometry, LIMITS, None) if data else None
        if plain is None:
            continue
        event("decoded")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "_load_plain_jpeg", lambda *arguments: None)
            assert torch.equal(plain.expand(3, -1, -1), decode(data, geometry, name="x.jpg", limits=LIMITS))
