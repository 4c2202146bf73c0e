"""bench.feed: its figures are of the pipeline, and its files are different contents of the same cost."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.feed import DRAWINGS, KINDS, WARM_UP, Calls, NoModel, measure, write


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "png"])
def test_it_measures_every_poster(tmp_path, name):
    """All rates are positive, and no time is under the lock that the pipeline did not take."""
    kind = replace(KINDS[name], width=64, height=96, count=24)
    found = measure(kind, tmp_path / "posters", NoModel(), 1, 16)
    assert 0 < found["locked_ms"] <= found["cpu_ms"]
    assert found["decoder_and_resize_ms"] > 0
    assert found["cores_8_per_s"] <= found["cores_32_per_s"] <= 1010 / found["locked_ms"]  # which is rounded
    assert found["simulated_16_threads_per_s"] > 0


def test_pngs_that_cost_the_same_have_different_contents(tmp_path):
    """An IDAT chunk cut elsewhere changes the file, not the picture."""
    names = write(replace(KINDS["png"], width=64, height=96, count=2 * DRAWINGS), tmp_path / "posters")
    first, same = ((tmp_path / "posters" / names[number]).read_bytes() for number in (0, DRAWINGS))
    assert first != same
    assert len({(tmp_path / "posters" / name).read_bytes() for name in names}) == WARM_UP + 2 * DRAWINGS
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in (first, same)]
    assert np.array_equal(*pixels)


def test_calls_that_release_the_lock_are_timed_and_put_back():
    """What decoding and reading take is counted, and nothing stays replaced."""
    before = Image._getdecoder
    buffer = io.BytesIO()
    Image.new("RGB", (500, 500), (9, 99, 199)).save(buffer, "PNG")
    calls = Calls(1)
    with calls.timed():
        Image.open(io.BytesIO(buffer.getvalue())).load()
    assert 0 < calls.seconds < 1
    assert Image._getdecoder is before
