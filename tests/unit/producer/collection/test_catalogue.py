"""Scanning for posters: every file once, under a stable id, and nothing dropped silently."""

import json
import os
import sys
import time

import pytest

from producer.collection import catalogue as catalogue_module
from producer.collection.catalogue import open_catalogue, read_catalogue
from producer.collection.paths import poster_id
from producer.collection.scan import PosterScan
from producer.errors import ConfigurationError
from producer.indexing.index_job import warn_of_wrong_catalogue
from producer.queue.messages import Poster
from producer.queue.progress import Failure
from producer.settings import load_settings


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "posters"
    for name in ("b.jpg", "a.png", "deep/er/c.webp", "deep/d.JPEG", "notes.txt", ".hidden.jpg", ".git/x.jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    return root


def catalogue(tmp_path, content):
    path = tmp_path / "posters.json"
    path.write_text(json.dumps(content))
    return read_catalogue(path)


def found(root, *paths, entries=()):
    folder = root.parent
    return list(PosterScan(root, paths, catalogue(folder, list(entries))))


def ids(posters):
    return [poster.id for poster in posters]


def test_a_folder_is_searched_all_the_way_down_in_a_stable_order(root):
    """Images by extension, case ignored; hidden names and other files are passed over."""
    posters = found(root)
    assert ids(posters) == ["a.png", "b.jpg", "deep/d.JPEG", "deep/er/c.webp"]
    stat = os.stat(root / "a.png")
    assert posters[0] == Poster("a.png", "a.png", 10, stat.st_mtime_ns)


def test_paths_may_be_named_from_here_or_from_the_root(root, monkeypatch):
    """`index posters/deep`, `index deep` and an absolute path mean the same; doubles are sent once."""
    monkeypatch.chdir(root.parent)
    expected = ["deep/d.JPEG", "deep/er/c.webp"]
    assert ids(found(root, "posters/deep")) == expected
    assert ids(found(root, "deep")) == expected
    assert ids(found(root, str(root / "deep"))) == expected
    assert ids(found(root, "deep", "posters/deep/d.JPEG", "posters/deep")) == expected
    assert ids(found(root, "posters")) == ids(found(root))


def test_a_path_that_is_not_there_is_sent_so_that_it_fails_by_name(root):
    """A typing error becomes a named failure of the job, not silence."""
    assert found(root, "nowhere.jpg") == [Poster("nowhere.jpg", "nowhere.jpg", -1, -1)]


def test_a_file_without_an_image_extension_is_sent_when_it_is_named(root):
    """What a person names is tried, whatever it is called."""
    assert ids(found(root, "notes.txt")) == ["notes.txt"]


def test_a_path_outside_the_root_is_refused_at_once(root, tmp_path):
    """The error names the path, the root, and the setting; nothing is yielded first."""
    with pytest.raises(ConfigurationError, match="POSTERS_ROOT"):
        PosterScan(root, [str(tmp_path)], read_catalogue(tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="not a folder"):
        PosterScan(root / "a.png", [], read_catalogue(tmp_path / "none.json"))


def test_the_catalogue_gives_ids_and_titles(root, tmp_path):
    """An entry's id replaces the path; further keys are kept."""
    entries = catalogue(tmp_path, [{"file": "b.jpg", "id": "bebop", "title": "Bebop", "year": 1998}])
    assert ids(PosterScan(root, [], entries)) == ["a.png", "bebop", "deep/d.JPEG", "deep/er/c.webp"]
    assert entries.by_id(["bebop"])["bebop"].about["title"] == "Bebop"
    assert entries.by_id(["bebop"])["bebop"].about["year"] == 1998
    assert entries.by_id(["a.png"]) == {}


def test_an_entry_whose_file_is_gone_is_sent_so_that_it_fails(root):
    """A catalogue that promises a file which is not there makes a failure, inside the searched folder only."""
    assert ids(found(root, entries=[{"file": "gone.jpg", "id": "gone"}]))[-1] == "gone"
    assert "gone" not in ids(found(root, "deep", entries=[{"file": "gone.jpg", "id": "gone"}]))


def test_bad_entries_are_numbered_failures(root):
    """No file, the same file, the same id: each is counted, and its neighbors are sent."""
    entries = [{"title": "x"}, {"file": "a.png"}, {"file": "a.png", "id": "again"}, 7]
    entries += [{"file": "b.jpg", "id": "a.png"}, {"file": "b.jpg", "id": ["list"]}]
    items = found(root, entries=entries)
    failures = [item for item in items if isinstance(item, Failure)]
    assert [failure.id for failure in failures] == [f"posters.json#{n}" for n in (1, 3, 4, 5, 6)]
    assert all(failure.word == "unsupported" for failure in failures)
    assert len([item for item in items if isinstance(item, Poster)]) == 4


def test_two_files_never_share_an_id(root):
    """A file whose path is another one's id is a failure, not an overwritten vector."""
    items = found(root, entries=[{"file": "b.jpg", "id": "a.png"}])
    assert [type(item) for item in items[:2]] == [Failure, Poster]
    assert items[0].path == "a.png"
    assert items[1] == Poster("a.png", "b.jpg", *items[1][2:])


@pytest.mark.parametrize("text", ["{", '{"posters": 1}', '"x"'])
def test_a_catalogue_that_is_none_is_refused(tmp_path, text):
    """Broken JSON and other shapes are errors that name the file."""
    (tmp_path / "posters.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"posters\.json"):
        read_catalogue(tmp_path / "posters.json")


def test_an_object_with_posters_is_a_catalogue_too(tmp_path):
    """Both shapes are read."""
    assert catalogue(tmp_path, {"posters": [{"file": "a.png"}]}).by_id(["a.png"]).keys() == {"a.png"}


def test_ids_are_nfc():
    """The same name typed on another system gets the same id."""
    assert poster_id("e\u0301.jpg") == "\u00e9.jpg"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode on this system")
def test_names_that_are_no_unicode_get_an_id_that_is(root):
    """Bytes that are not UTF-8 become %XX in the id and stay what they are in the path."""
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    poster = next(item for item in found(root) if item.id.startswith("caf"))
    assert (poster.id, poster.path) == ("caf%E9.jpg", "caf\udce9.jpg")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are normalized on this system")
def test_two_spellings_of_one_name_are_not_one_poster(root):
    """NFC and NFD side by side: one is sent, the other is a failure that says why."""
    (root / "\u00e9.jpg").write_bytes(b"x")
    (root / "e\u0301.jpg").write_bytes(b"x")
    same = [item for item in found(root) if "\u00e9" in item.id]
    assert sorted(type(item).__name__ for item in same) == ["Failure", "Poster"]


def test_linked_folders_are_not_followed(root):
    """A link that leads in a circle does not hang the search."""
    (root / "deep" / "loop").symlink_to(root, target_is_directory=True)
    assert ids(found(root)) == ["a.png", "b.jpg", "deep/d.JPEG", "deep/er/c.webp"]


def test_a_catalogue_of_another_folder_is_noticed(tmp_path, capsys):
    """The samples' catalogue with one's own posters: reported before two dozen posters fail one by one."""
    (tmp_path / "posters.json").write_text('[{"file": "a.png"}, {"file": "b.png"}]')
    settings = load_settings(root=tmp_path, catalogue=tmp_path / "posters.json")
    warn_of_wrong_catalogue(settings, read_catalogue(settings.catalogue))
    assert "none of the 2 posters" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"")
    warn_of_wrong_catalogue(settings, read_catalogue(settings.catalogue))
    assert capsys.readouterr().err == ""


def test_a_catalogue_that_somebody_named_must_be_there(tmp_path, monkeypatch):
    """`none` and a default without a file are empty; a name that is not there is an error with the way out."""
    monkeypatch.chdir(tmp_path)
    for settings in (load_settings(root=tmp_path, catalogue="none"), load_settings()):
        assert len(open_catalogue(settings)) == 0
    with pytest.raises(ConfigurationError, match=r"no catalogue .*typo\.json.*POSTERS_CATALOGUE"):
        open_catalogue(load_settings(catalogue=tmp_path / "typo.json"))


def test_a_catalogue_that_vanishes_is_an_error(tmp_path, monkeypatch):
    """Also the default one, once it had entries: its posters would get other ids."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "posters.json").write_text('[{"file": "a.jpg"}]')
    before = open_catalogue(load_settings())
    (tmp_path / "data" / "posters.json").unlink()
    with pytest.raises(ConfigurationError, match="no catalogue"):
        open_catalogue(load_settings(), before)


def test_a_catalogue_without_room_for_temporary_files_is_an_error(tmp_path, monkeypatch):
    """The text says that TMPDIR names another folder."""
    make_database = catalogue_module._temporary_database

    def make_small_database():
        database = make_database()
        database.execute("PRAGMA max_page_count = 20").close()  # 80 kB
        return database

    monkeypatch.setattr(catalogue_module, "_temporary_database", make_small_database)
    path = tmp_path / "posters.jsonl"
    path.write_text("".join(f'{{"file": "{number}.jpg"}}\n' for number in range(20_000)))
    with pytest.raises(ConfigurationError, match=r"not enough space for temporary files .*full.*TMPDIR"):
        read_catalogue(path)


@pytest.mark.parametrize(
    ("file", "identity", "kept"),
    [
        ("a.jpg", "{0}", lambda count: 1),
        ("{0}.jpg", "a", lambda count: 1),
        ("{2}.jpg", "{3}", lambda count: 3),
        ("{4}.jpg", "{1}", lambda count: count // 2),
    ],
    ids=["one file", "one id", "few of each", "each file twice"],
)
def test_many_entries_of_one_file_or_id_are_found_in_linear_time(tmp_path, file, identity, kept):
    """Four times as many take about four times as long, not sixteen times; the first is kept."""
    path, took = tmp_path / "posters.jsonl", []
    for count in (4_000, 16_000):
        with path.open("w") as lines:
            for n in range(count):
                values = (n, n % 7, n % 3, n % 5, n // 2)
                line = {"file": file.format(*values), "id": identity.format(n, n, *values[2:])}
                lines.write(json.dumps(line) + "\n")
        began = time.process_time()
        entries = read_catalogue(path)
        took.append(time.process_time() - began)
        assert (len(entries), entries.count_problems()) == (kept(count), count - kept(count))
    assert took[1] < 9 * took[0], took
    if kept(1000) == 1:
        assert all("which line 1 already has" in failure.reason for failure in entries.problems())


def test_entries_are_looked_up_by_file_and_by_id(tmp_path):
    """Many at once; a file in either spelling; what is in no entry, or is not text, is not in the answer."""
    path = tmp_path / "posters.jsonl"
    path.write_text("".join(f'{{"file": "{number}.jpg", "id": "n{number}"}}\n' for number in range(1200)))
    entries = read_catalogue(path)
    files = [f"{number}.jpg" for number in range(1200)]
    assert {name: entry.id for name, entry in entries.by_file([*files, "x.jpg"]).items()} == {
        file: f"n{number}" for number, file in enumerate(files)
    }
    assert entries.by_id(["n7", "7.jpg", "\ud800"]).keys() == {"n7"}
    assert [entry.number for entry in entries.entries()] == list(range(1, 1201))
    assert [entry.file for entry in entries.entries_below("7.jpg")] == ["7.jpg"]
    assert len(list(entries.entries_below(""))) == 1200


def test_a_catalogue_that_was_replaced_or_is_too_new_is_not_current(tmp_path):
    """Another file of the same size and time; and one that may be written again within the tick of its time."""
    path = tmp_path / "posters.json"
    path.write_text("[]")
    assert not read_catalogue(path).is_current()
    os.utime(path, (1000, 1000))
    catalogue = read_catalogue(path)
    assert catalogue.is_current()
    other = tmp_path / "other"
    other.write_text("[]")
    os.utime(other, (1000, 1000))
    other.replace(path)
    assert not catalogue.is_current()
    path.unlink()
    assert not catalogue.is_current()
    assert read_catalogue(path).is_current()
    assert read_catalogue(None).is_current()
