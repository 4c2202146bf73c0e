"""Headers of uploads: what is wrong is said as for a poster, with its name."""

import io

import pytest
from PIL import Image

from producer.errors import UnreadablePoster
from producer.settings import Settings
from worker.renditions.thumbnails import check_header


def encoded(format):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "max_pixels", "word"),
    [
        (encoded("PNG"), 1199, "too-large"),
        (encoded("WEBP")[:-9], 10_000, "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"no header", 10_000, "unreadable"),
        (b"%PDF-1.7", 10_000, "unsupported"),
    ],
)
def test_what_is_wrong_with_a_header_has_its_word(data, max_pixels, word):
    """The words that a worker would give; the decoders' own exceptions do not come through."""
    with pytest.raises(UnreadablePoster, match=r"^sent\.png: ") as raised:
        check_header(Settings(max_pixels=max_pixels), data, "sent.png")
    assert raised.value.word == word


def test_a_good_header_passes():
    """At exactly the limit."""
    check_header(Settings(max_pixels=1200), encoded("PNG"), "sent.png")
