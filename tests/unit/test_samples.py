"""The sample posters: they match the catalogue, have the documented formats, and are drawn by the script."""

import hashlib
import json
import subprocess
import sys

import pytest
from PIL import Image

from producer.collection.catalogue import read_catalogue
from producer.collection.scan import PosterScan
from producer.queue.messages import Poster
from tests.support.project import PROJECT

POSTERS = PROJECT / "posters"
FILES = sorted(path for path in POSTERS.rglob("*") if path.is_file())


def test_catalogue_and_folder_agree():
    """Every file has an entry and every entry a file, without problems."""
    catalogue = read_catalogue(PROJECT / "data" / "posters.json")
    assert not catalogue.count_problems()
    found = list(PosterScan(POSTERS, [], catalogue))
    assert all(isinstance(item, Poster) and item.size > 0 for item in found)
    assert {item.path for item in found} == {path.relative_to(POSTERS).as_posix() for path in FILES}
    assert {item.path for item in found} == {entry.file for entry in catalogue.entries()}
    assert all(entry.about.get("title") for entry in catalogue.entries())


def test_two_dozen_posters_of_every_documented_format():
    """JPEG, JFIF, PNG and WebP, less than a megabyte in total, in portrait format."""
    assert 20 <= len(FILES) <= 30
    assert sum(path.stat().st_size for path in FILES) < 1_000_000
    assert {path.suffix for path in FILES} >= {".jpg", ".jfif", ".png", ".webp"}
    assert (POSTERS / "steins_gate.png").is_file()
    for path in FILES:
        with Image.open(path) as image:
            image.load()
            assert image.format == {".jpg": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix]
            assert 0.4 < image.width / image.height < 1.0, path


def test_the_posters_are_distinct():
    """No two files have the same content; the copy of one is re-encoded."""
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in FILES}) == len(FILES)


@pytest.mark.slow
def test_the_script_draws_the_committed_posters(tmp_path):
    """The same names, and the same pixels except for differences between codec versions."""
    done = subprocess.run(
        [sys.executable, PROJECT / "examples" / "draw_posters.py", "--into", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    drawn = {path.relative_to(tmp_path / "posters") for path in (tmp_path / "posters").rglob("*") if path.is_file()}
    assert drawn == {path.relative_to(POSTERS) for path in FILES}
    written = json.loads((tmp_path / "data" / "posters.json").read_text(encoding="utf-8"))
    assert written == json.loads((PROJECT / "data" / "posters.json").read_text(encoding="utf-8"))
    for path in FILES:
        with Image.open(path) as ours, Image.open(tmp_path / "posters" / path.relative_to(POSTERS)) as new:
            small = [image.convert("RGB").resize((16, 24)).tobytes() for image in (ours, new)]
        assert max(abs(a - b) for a, b in zip(*small, strict=True)) < 24, path


@pytest.mark.slow
def test_a_larger_collection_has_no_two_posters_alike(tmp_path):
    """The same for the same seed, another for another."""
    draw = [sys.executable, PROJECT / "examples" / "draw_posters.py", "--more", "2"]
    for seed, folder in (("0", "a"), ("0", "b"), ("1", "c")):
        subprocess.run([*draw, "--seed", seed, "--into", tmp_path / folder], check=True)
    first, again, other = (
        [hashlib.sha256(path.read_bytes()).digest() for path in sorted((tmp_path / folder).iterdir())]
        for folder in "abc"
    )
    assert first == again
    assert len({*first, *other}) == 4
