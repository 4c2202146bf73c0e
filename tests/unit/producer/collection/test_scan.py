"""A search: nothing is dropped in silence, whatever names, folders and catalogue are like."""

import json
import os
import subprocess
import sys

import pytest

from producer.collection.catalogue import read_catalogue
from producer.collection.paths import inside_root, starts_of, walk
from producer.collection.scan import PosterScan, ScanNote, was_sent
from producer.errors import ConfigurationError
from producer.indexing.index_job import notify_ambiguous
from producer.queue.messages import Poster
from producer.queue.progress import Failure


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "posters"
    for name in ("a.png", "b.jpg", "deep/d.JPEG", "deep/er/c.webp", "notes.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    return root


def search(root, *paths, entries=()):
    """The items, the notes, and the search itself."""
    path = root.parent / "posters.json"
    path.write_text(json.dumps(list(entries)))
    notes = []
    found = PosterScan(root, paths, read_catalogue(path), lambda note, name: notes.append((note, name)))
    return list(found), notes, found


def test_files_in_no_entry_are_counted_and_reported(root):
    """Each once, and sent all the same; without a catalogue there is nothing to miss."""
    items, notes, found = search(root, entries=[{"file": "b.jpg", "id": "b"}])
    assert [item.id for item in items] == ["a.png", "b", "deep/d.JPEG", "deep/er/c.webp"]
    assert notes == [(ScanNote.NO_ENTRY, name) for name in ("a.png", "deep/d.JPEG", "deep/er/c.webp")]
    assert found.counts[ScanNote.NO_ENTRY] == 3
    assert search(root)[1] == []


def unmount(root):
    """What is left is the mount point."""
    root.rename(root.with_name("disk"))
    root.mkdir()


@pytest.mark.parametrize("entries", [[], [{"file": "deep/d.JPEG"}, {"file": "gone.jpg"}]])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_root_that_is_lost_during_a_scan_is_an_error_and_no_missing_poster(root, entries, replaced):
    """Emptied, or another folder by now: what was not found was not deleted, and the scan is not complete."""
    path = root.parent / "posters.json"
    path.write_text(json.dumps(entries))
    found = PosterScan(root, [], read_catalogue(path))
    first = next(found)
    unmount(root)
    if replaced:
        (root / "other.jpg").write_bytes(b"x")
    rest = []
    with pytest.raises(ConfigurationError, match="is its disk mounted"):
        rest.extend(found)
    assert not [item for item in (first, *rest) if isinstance(item, Failure)]


def test_an_empty_root_is_refused_where_the_catalogue_names_posters(root):
    """Each of its entries would fail as missing. Without entries an empty folder is an empty collection."""
    unmount(root)
    with pytest.raises(ConfigurationError, match=r"is empty, and .*posters\.json names 1 posters in it"):
        search(root, entries=[{"file": "a.png"}])
    assert search(root)[0] == []


def test_entries_without_a_file_fail_with_their_number(root):
    """Inside what is searched, and counted. A file that a search passes over is there all the same."""
    entries = [{"file": "gone.jpg"}, {"file": "deep/lost.png", "id": "lost"}, {"file": "notes.txt", "id": "n"}]
    items, notes, found = search(root, entries=entries)
    assert [note for note in notes if note[0] is ScanNote.NOT_THERE] == [
        (ScanNote.NOT_THERE, "deep/lost.png"),
        (ScanNote.NOT_THERE, "gone.jpg"),
    ]
    missing = {item.id: item for item in items if isinstance(item, Failure)}
    assert list(missing) == ["lost", "gone.jpg"]
    assert (missing["lost"].path, missing["lost"].word) == ("deep/lost.png", "missing")
    assert missing["lost"].reason.startswith("entry 2 of ")
    assert all(was_sent(failure, found.catalogue.path) for failure in missing.values())
    assert [item.id for item in items if item.path == "notes.txt" and item.size == 10] == ["n"]
    items, notes, found = search(root, "deep", entries=entries)
    assert found.counts[ScanNote.NOT_THERE] == 1
    assert "gone.jpg" not in [item.id for item in items]


def test_an_entry_that_cannot_be_looked_at_is_the_workers_to_judge(root, monkeypatch):
    """Only `no such file` is an answer; the worker may have rights that this program has not."""
    stat = os.stat

    def forbidden(path, *arguments, **options):
        if str(path).endswith("secret.txt"):
            raise PermissionError(13, "Permission denied")
        return stat(path, *arguments, **options)

    monkeypatch.setattr("os.stat", forbidden)
    items, _, found = search(root, entries=[{"file": "secret.txt"}])
    assert Poster("secret.txt", "secret.txt") in items
    assert found.counts[ScanNote.NOT_THERE] == 0


def test_a_start_is_no_prefix_of_its_neighbor(root):
    """`deep` is not `deep.jpg`, nor `deep-sea/`."""
    for name in ("deep.jpg", "deep-sea/x.jpg", "deeper/y.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    entries = [{"file": f"{name}/gone.jpg"} for name in ("deep", "deep-sea", "deeper")] + [{"file": "deep0"}]
    items, _, found = search(root, "deep", entries=entries)
    assert [item.id for item in items] == ["deep/d.JPEG", "deep/er/c.webp", "deep/gone.jpg"]
    assert found.starts == ["deep"]


def test_a_folder_that_cannot_be_listed_is_a_failure_with_a_name(root, monkeypatch):
    """The rest is found; what was listed before the fault is found, too."""
    scandir = os.scandir

    class Torn:
        def __init__(self, path):
            self._entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._entries.close()

        def __iter__(self):
            yield next(entry for entry in self._entries if entry.name == "d.JPEG")
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.scandir", lambda path: (Torn if str(path).endswith("deep") else scandir)(path))
    items, notes, _ = search(root)
    assert [item.id for item in items] == ["a.png", "b.jpg", "deep/d.JPEG", "deep/"]
    failure = items[-1]
    assert (failure.word, failure.path) == ("unreadable", "deep/")
    assert "Input/output error" in failure.reason
    assert notes == [(ScanNote.UNLISTED, "deep")]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a path is Linux's")
def test_a_folder_below_the_longest_path_is_reported(root):
    """A real fault: names that lead deeper than a path may be long."""
    script = "import os,sys\nos.chdir(sys.argv[1])\nfor _ in range(30): os.mkdir('x'*200); os.chdir('x'*200)"
    subprocess.run([sys.executable, "-c", script, str(root)], check=True)
    items, _, found = search(root)
    assert found.counts[ScanNote.UNLISTED] == 1
    assert "File name too long" in items[-1].reason
    assert [item.id for item in items[:-1]] == ["a.png", "b.jpg", "deep/d.JPEG", "deep/er/c.webp"]
    subprocess.run(["rm", "-rf", str(root / ("x" * 200))], check=True)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are normalized on this system")
def test_an_entry_finds_its_file_in_either_spelling(root):
    """The catalogue says é as one letter, the disk as two: the same file, read by the name that it has."""
    (root / "e\u0301.jpg").write_bytes(b"x")
    items, notes, _ = search(root, entries=[{"file": "\u00e9.jpg", "id": "eh"}])
    assert [(item.id, item.path) for item in items if item.id == "eh"] == [("eh", "e\u0301.jpg")]
    assert (ScanNote.NOT_THERE, "\u00e9.jpg") not in notes


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are normalized on this system")
def test_no_two_spellings_share_an_id(root):
    """Two odd forms of one name, and no plain one: the first is sent, the second fails; with an entry or without."""
    names = ["a\u0323\u0302.jpg", "\u00e2\u0323.jpg"]  # both are ậ
    for name in names:
        (root / name).write_bytes(b"x")
    for entries in ((), [{"file": "\u1ead.jpg", "id": "eh"}]):
        items, _, _ = search(root, entries=entries)
        odd = [item for item in items if item.path in names]
        assert sorted(type(item).__name__ for item in odd) == ["Failure", "Poster"]
        assert len({item.id for item in items}) == len(items)


def test_files_and_folders_come_in_order(root):
    """Sorted, each once, a folder's files before its folders."""
    for number in range(40):
        (root / f"{number * 37 % 40:02}.jpg").write_bytes(b"")
        (root / f"f{number * 37 % 40:02}").mkdir()
        (root / f"f{number * 37 % 40:02}" / "x.png").write_bytes(b"")
    found = list(walk(root, "", lambda *trouble: pytest.fail(str(trouble))))
    assert found == [
        *(f"{number:02}.jpg" for number in range(40)),
        *("a.png", "b.jpg", "deep/d.JPEG", "deep/er/c.webp"),
        *(f"f{number:02}/x.png" for number in range(40)),
    ]


def test_excluded_names_are_skipped_at_any_depth(root):
    """Files and folders; what is named itself is taken; other globs replace the default ones."""
    for name in ("@eaDir/b.jpg", "deep/#recycle/c.jpg", ".git/d.jpg", "deep/.e.jpg", "temporary/f.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    catalogue = read_catalogue(root.parent / "none.json")
    assert [item.path for item in PosterScan(root, ["deep", "temporary"], catalogue)] == [
        *("deep/d.JPEG", "deep/er/c.webp", "temporary/f.jpg")
    ]
    assert [item.path for item in PosterScan(root, [root / "@eaDir"], catalogue)] == ["@eaDir/b.jpg"]
    found = {item.path for item in PosterScan(root, [], catalogue, exclude=("temp*", "*.png", "er"))}
    assert found == {"b.jpg", "deep/d.JPEG", "@eaDir/b.jpg", "deep/#recycle/c.jpg", ".git/d.jpg", "deep/.e.jpg"}
    assert len(list(PosterScan(root, [], catalogue, exclude=()))) == 9


def test_a_relative_path_means_the_root_and_then_the_current_folder(root, tmp_path, monkeypatch, capsys):
    """Wherever the command is typed; where both have one, it is said which is meant."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert starts_of(root, ["deep", "b.jpg", "nowhere.jpg"]) == ["b.jpg", "deep", "nowhere.jpg"]
    (here / "b.jpg").touch()
    (here / "only.jpg").touch()
    assert inside_root(root, "b.jpg") == "b.jpg"
    with pytest.raises(ConfigurationError, match=rf"only\.jpg lies outside .* \(it was found as {here}/only\.jpg\)"):
        inside_root(root, "only.jpg")
    monkeypatch.chdir(root / "deep")
    assert inside_root(root, "er") == "deep/er"
    monkeypatch.chdir(root.parent)
    assert inside_root(root, root.name) == ""

    monkeypatch.chdir(here)
    notify_ambiguous(root, ["b.jpg", "deep", "only.jpg", str(root / "b.jpg")])
    assert capsys.readouterr().err.splitlines() == [
        f"b.jpg is {root}/b.jpg here, not {here}/b.jpg: an absolute path leaves no doubt"
    ]


def test_counting_by_name_agrees_with_finding(root):
    """The total of the bar is what comes, but for entries without a file."""
    _, _, found = search(root, "deep", "a.png", "nowhere.jpg")
    assert list(found.files()) == ["a.png", "deep/d.JPEG", "deep/er/c.webp", "nowhere.jpg"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are normalized on this system")
def test_what_never_was_sent_is_known_as_such(root, monkeypatch):
    """A retry sends posters again, and lets entries, folders and doubles fail as they did."""
    (root / "e\u0301.jpg").write_bytes(b"x")
    (root / "\u00e9.jpg").write_bytes(b"x")
    entries = [{"title": "no file"}, {"file": "../x.jpg"}]
    items, _, found = search(root, entries=entries)
    failures = [item for item in items if isinstance(item, Failure)]
    assert len(failures) == 3
    failures.append(Failure("deep/", "deep/", "unreadable", "…"))
    path = found.catalogue.path
    assert not any(was_sent(failure, path) for failure in failures)
    for name in ("a.jpg", "a#1.jpg", "posters.json#1", "x (1).jpg"):
        assert was_sent(Failure(name, name, "unsupported", "it is a folder"), path)
        assert was_sent(Failure("id", name, "missing", "…"), None)
