"""Names of uploads: whatever a browser sends becomes a plain file name below `uploads`."""

import os
import sys

import pytest
from PIL import Image

from producer.errors import UnreadablePoster
from producer.files import WINDOWS_DEVICE
from producer.settings import load_settings
from producer.web.uploads import NAME_BYTES, check_image, safe_name
from tests.support.plugin_images import heic, with_size
from tests.support.served import jpeg

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = {
    "poster.jpg": "poster.jpg",
    "Poster.JPEG": "Poster.jpeg",
    "../../etc/passwd": "passwd.jpg",
    "C:\\Windows\\evil.jpg": "evil.jpg",
    "a\x00b\n.jpg": "a_b_.jpg",
    "<b>&amp;.jpg": "_b_&amp;.jpg",
    "gpj.\u202eexe.jpg": "gpj._exe.jpg",
    ".hidden.jpg": "hidden.jpg",
    "..": "poster.jpg",
    "": "poster.jpg",
    "trailing. .jpg": "trailing.jpg",
    "CON.jpg": "_CON.jpg",
    "-rf.jpg": "_-rf.jpg",
    "photo.png": "photo.jpg",
    "photo.svg": "photo.svg.jpg",
    "進撃.jpg": "進撃.jpg",
    "bad \udce9.jpg": "bad _.jpg",
}


@pytest.mark.parametrize(("given", "expected"), NAMES.items(), ids=map(ascii, NAMES))
def test_names_are_made_safe(given, expected):
    """Of a JPEG: its suffix says so, also where its name said something else."""
    assert safe_name(given, jpeg()) == expected


def test_a_name_is_short_enough_for_every_file_system():
    """In bytes, and without half a character."""
    name = safe_name("進" * 300 + ".png", PNG)
    assert len(os.fsencode(name)) <= NAME_BYTES + 4
    assert name.endswith("進.png")
    assert not WINDOWS_DEVICE.match(name)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b"\0\0\0\x1cftypheic", "IMG_0042.HEIC", "IMG_0042.heic"),
        (b"\0\0\0\x1cftypmif1", "scan.hif", "scan.hif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "poster.jxl", "poster.jxl"),
        (b"\xff\x0a", "poster.jpg", "poster.jxl"),
    ],
)
def test_pictures_of_phones_keep_their_suffix(data, name, expected):
    """HEIC and JPEG XL, which workers with the extra `formats` read."""
    assert safe_name(name, data) == expected


def test_an_upload_that_no_worker_here_reads_is_refused_with_the_way_out(monkeypatch):
    """By the engine, where it lacks the plugin; by its header where there are too many pixels."""
    data, settings = heic(Image.new("RGB", (64, 64))), load_settings(max_pixels=64 * 64)
    check_image(settings, data, "x.heic")
    with pytest.raises(UnreadablePoster, match="POSTERS_MAX_PIXELS"):
        check_image(settings, with_size(data, 65, 64), "x.heic")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(UnreadablePoster, match="the extra `formats`"):
        check_image(settings, b"\xff\x0a" + bytes(20), "x.jxl")
