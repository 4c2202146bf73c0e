"""What a caller may give as an image, and what the waiting time may be."""

import io
import math

import numpy as np
import pytest
import torch

from bench.image_samples import encoded, picture
from producer.errors import UnreadablePoster
from producer.queue.workers import FAILED, LOADING, READY, STORE, WAITING, WEIGHTS, Announcement, why_no_answer
from producer.requests.images import image_bytes
from worker.images.decode import Geometry, decode, fit

DATA = encoded(picture(60, 90), "PNG")


def test_bytes_paths_and_files_are_taken(tmp_path):
    """A file from its beginning, as Pillow reads it, also after a framework has looked at it."""
    path = tmp_path / "a.png"
    path.write_bytes(DATA)
    assert image_bytes(path, "") == (DATA, str(path))
    assert image_bytes(path, "upload") == (DATA, "upload")
    file = io.BytesIO(DATA)
    file.read(100)
    for image in (DATA, bytearray(DATA), memoryview(DATA), file, path.open("rb")):
        with image if hasattr(image, "close") else io.BytesIO():
            assert image_bytes(image, "") == (DATA, "the image")
    with pytest.raises(UnreadablePoster, match="missing"):
        image_bytes(tmp_path / "none.png", "")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_pillow_image_arrives_as_it_is(mode, rotated):
    """The worker sees what `preprocess` sees: pixels, transparency, orientation and profile; or both refuse."""
    source = picture(60, 90).convert("L" if mode == "I;16" else mode)
    image = source.convert("I").convert("I;16") if mode == "I;16" else source
    if rotated:
        image.getexif()[0x0112] = 6
    if mode == "P":
        image.info["transparency"] = 3
    data, _ = image_bytes(image, "")
    geometry = Geometry(64, 64)
    try:
        seen = fit(image, geometry)
    except UnreadablePoster as refused:
        with pytest.raises(UnreadablePoster, match=refused.word):
            decode(data, geometry, name="a")
    else:
        assert torch.equal(decode(data, geometry, name="a"), seen)


class Upload:
    """What an asynchronous framework gives."""

    def __init__(self):
        self.file = io.BytesIO(DATA)

    async def read(self):
        return DATA


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (["a.jpg"], "not list"),
        ("a.jpg", r"not str 'a\.jpg'; a path must be a pathlib\.Path"),
        (None, "not NoneType"),
        (np.zeros((3, 3)), "not ndarray"),
        (io.StringIO("x"), "not StringIO"),
        (Upload(), r"not Upload; .*pass \.file or the bytes"),
    ],
)
def test_anything_else_is_a_type_error(image, text):
    """It names the type, and the way out."""
    with pytest.raises(TypeError, match=f"an image must be bytes.*{text}"):
        image_bytes(image, "")


@pytest.mark.parametrize(
    ("state", "fields", "text"),
    [
        (READY, {"requests": "image"}, "w is busy"),
        (READY, {"requests": "image", "fault": "its card hangs"}, "w is ready, but its card hangs"),
        (READY, {"requests": "image", "unloaded_since": "1e9"}, "w had unloaded its model, and is loading it again"),
        (READY, {}, "w is of an older version, which knows no requests: update the workers first"),
        (LOADING, {"stage": WEIGHTS}, "w is starting, and its weights are being located or downloaded"),
        (LOADING, {"stage": "model"}, "w is starting, and is loading its model"),
        (LOADING, {"stage": STORE, "reason": "disk full"}, "w is waiting: disk full"),
        (WAITING, {"reason": "GPU in use"}, "w is waiting: GPU in use"),
        (FAILED, {"reason": "no weights"}, "w cannot start: no weights"),
    ],
)
def test_a_worker_that_does_not_answer_says_why(state, fields, text):
    """Loading, waiting or busy: three different things to do."""
    assert why_no_answer([Announcement("w/1/x", state, fields)]).startswith(text)
    assert why_no_answer([]) == "no worker is alive any more"


@pytest.mark.parametrize("timeout", [math.nan, "5", True, [5]])
def test_a_timeout_is_a_number_or_none(timeout):
    """None and inf have no end."""
    from producer.on_demand import deadline

    with pytest.raises(TypeError, match="timeout must be a number of seconds, or None"):
        deadline(timeout)
    assert deadline(None) == deadline(math.inf) == math.inf
    assert deadline(np.float32(5)) < math.inf
