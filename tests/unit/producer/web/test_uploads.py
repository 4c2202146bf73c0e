"""Names of uploads: whatever a browser sends becomes a plain file name below `uploads`."""

import os

import pytest

from producer.files import WINDOWS_DEVICE
from producer.web.uploads import NAME_BYTES, safe_name
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
