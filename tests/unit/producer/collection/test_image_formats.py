"""Image formats: whatever a worker decodes, the client side recognizes as an image, by its content."""

import io

import pytest
from PIL import Image

from producer.collection.image_formats import EXTENSIONS_OF, media_type
from worker.images.decode import FORMATS, decode
from worker.images.resize import Geometry


def encoded(format, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, format, **options)
    return buffer.getvalue()


def with_brands(data, major, *compatible):
    """The same file with other brands, as other programs write them."""
    brands = b"".join(compatible).ljust(len(data[16 : int.from_bytes(data[:4], "big")]), b"\0")
    return data[:8] + major + data[12:16] + brands + data[16 + len(brands) :]


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_that_workers_read_is_recognized(format):
    """A format that is added to the worker's alone fails here."""
    kind = media_type(encoded(format))
    assert kind == f"image/{format.lower()}"
    assert kind in EXTENSIONS_OF


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded("TIFF", big_tiff=True), "image/tiff"),
        (with_brands(encoded("AVIF"), b"mif1", b"avif"), "image/avif"),
        (encoded("AVIF", save_all=True, append_images=[Image.new("RGB", (8, 8))]), "image/avif"),  # brand avis
    ],
)
def test_rarer_forms_are_recognized(data, kind):
    """Each of them is one that a worker decodes: an upload of it must not be refused, or get a wrong suffix."""
    assert media_type(data) == kind
    assert decode(data, Geometry(8, 8), name="x").shape == (3, 8, 8)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypisom\0\0\0\0isommp42", b"plain text"]
)
def test_what_is_no_image_is_not(data):
    """A sound, a film, a text, a stump."""
    assert media_type(data) is None
