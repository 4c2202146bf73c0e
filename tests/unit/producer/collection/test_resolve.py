"""A file gets the same id from a backend as from `index`, and never the id of another file."""

import json
import sys

import pytest

from producer.collection.catalogue import read_catalogue
from producer.collection.resolve import PosterResolver
from producer.collection.scan import PosterScan
from producer.errors import ConfigurationError
from producer.queue.messages import Poster
from producer.settings import load_settings


@pytest.fixture
def root(tmp_path):
    for name in ("2024/x.jpg", "poster.jpg", "plain.jpg"):
        path = tmp_path / "posters" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "posters"


@pytest.fixture
def resolver(root):
    """Make one with a catalogue of these entries."""

    def make(*entries):
        path = root.parent / "posters.json"
        path.write_text(json.dumps(entries))
        return PosterResolver(load_settings(root=root, catalogue=path))

    return make


def refused(root, resolver):
    """The files that it refuses; they must be those that a search refuses."""
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.jpg")]
    catalogue = read_catalogue(root.parent / "posters.json")
    found = {item.path for item in PosterScan(root, [], catalogue) if not isinstance(item, Poster)}
    by_name = set()
    for file in files:
        try:
            resolver.poster(root / file)
        except ConfigurationError:
            by_name.add(file)
    assert by_name == found
    return found


def test_a_file_whose_path_is_the_id_of_another_is_refused(root, resolver):
    """Its vector would stand for the other poster; the error names the file, the id and the other file."""
    names = resolver({"file": "2024/x.jpg", "id": "poster.jpg"})
    assert names.poster(root / "2024/x.jpg").id == "poster.jpg"
    assert names.poster(root / "plain.jpg").id == "plain.jpg"
    with pytest.raises(ConfigurationError, match=r"^poster\.jpg .*its id 'poster\.jpg' belongs to 2024/x\.jpg"):
        names.poster(root / "poster.jpg")
    assert refused(root, names) == {"poster.jpg"}


def test_with_an_id_of_its_own_it_is_welcome(root, resolver):
    """Two entries that exchange their ids are no reason to refuse either."""
    names = resolver({"file": "2024/x.jpg", "id": "poster.jpg"}, {"file": "poster.jpg", "id": "2024/x.jpg"})
    assert names.poster(root / "poster.jpg").id == "2024/x.jpg"
    assert refused(root, names) == set()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are normalized on this system")
@pytest.mark.parametrize("entries", [(), ({"file": "é.jpg", "id": "eh"},)], ids=["in no entry", "in an entry"])
def test_of_two_spellings_the_plain_one_has_the_id(root, resolver, entries):
    """With an entry or without; the odd one is refused."""
    for name in ("\u00e9.jpg", "e\u0301.jpg"):
        (root / name).write_bytes(b"x")
    names = resolver(*entries)
    assert names.poster(root / "\u00e9.jpg").id == ("eh" if entries else "\u00e9.jpg")
    with pytest.raises(ConfigurationError, match="belongs to \u00e9"):
        names.poster(root / "e\u0301.jpg")
    assert refused(root, names) == {"e\u0301.jpg"}


def test_a_catalogue_that_is_away_gives_no_other_ids(root, resolver):
    """A backend that runs while somebody replaces it waits; a new one holds at once."""
    names = resolver({"file": "2024/x.jpg", "id": "x"})
    assert names.poster(root / "2024/x.jpg").id == "x"
    path = root.parent / "posters.json"
    path.rename(root.parent / "aside")
    with pytest.raises(ConfigurationError, match="there is no catalogue"):
        names.poster(root / "2024/x.jpg")
    path.write_text(json.dumps([{"file": "2024/x.jpg", "id": "another"}]))
    assert names.poster(root / "2024/x.jpg").id == "another"


def test_no_catalogue_is_no_catalogue(root, tmp_path):
    """`none` is none; one that somebody named and that is not there is an error, as for `index`."""
    names = PosterResolver(load_settings(root=root, catalogue="none"))
    assert [names.poster(root / "plain.jpg").id for _ in range(2)] == ["plain.jpg"] * 2
    with pytest.raises(ConfigurationError, match="there is no catalogue"):
        PosterResolver(load_settings(root=root, catalogue=tmp_path / "never.json")).poster(root / "plain.jpg")
