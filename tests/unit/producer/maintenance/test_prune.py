"""Pruning: what is gone goes, from every space; what may only be hidden stays."""

import json
import os
import shutil
import sys
from contextlib import closing

import numpy as np
import pytest

from producer.collection.catalogue import read_catalogue
from producer.collection.file_status import FileStatus, FileStatusReader
from producer.collection.paths import resolved_root, starts_of
from producer.embedding import Space
from producer.errors import PruneRefused
from producer.maintenance.prune import Prune, Survey
from producer.vectors.base import Row
from tests.support.memory_store import open_one

OLD, NEW = (Space("tiny", name, "gelu", "8x8", 4) for name in ("old", "new"))
FILES = ["a.jpg", "b.png", "deep/c.jpg", "deep/d.jpg", "deep/er/e.jpg", "other/f.jpg", "other/g.jpg", "other/h.jpg"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "posters"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture(params=["memory", "sqlite"])  # tests/integration/test_prune_on_redis.py runs this file on Redis
def store(request, tmp_path):
    with closing(open_one(request, tmp_path / "v.db")) as store:
        fill(store, OLD, FILES)
        fill(store, NEW, FILES[:5])
        yield store


def fill(store, space, ids):
    one = np.zeros((len(ids), 4), np.float32)
    one[:, 0] = 1
    store.put(space, [Row(name, f"d{name}", 1, 1) for name in ids], one)


def held(store, space=OLD):
    return [name for page in store.ids(space.id) for name in page]


def prune_of(store, root, *paths, entries=(), yes=False):
    path = root.parent / "posters.json"
    path.write_text(json.dumps(list(entries)))
    return Prune(store, root, starts_of(resolved_root(root), paths), read_catalogue(path), yes=yes)


def pruned(store, root, *paths, **options):
    """Ids that were shown, after checking that exactly these went."""
    prune = prune_of(store, root, *paths, **options)
    survey = Survey()
    shown = list(prune.gone(survey))
    before = held(store)
    assert prune.survey().gone == survey.gone == len(shown)
    assert prune.remove(survey) == len(shown)
    assert held(store) == [name for name in before if name not in shown]
    return shown


def test_nothing_goes_while_everything_is_there(store, root):
    """No file gone, nothing to prune."""
    assert pruned(store, root) == []
    assert prune_of(store, root).survey() == Survey(held=8)


def test_deleted_posters_go_from_every_space(store, root):
    """The current space and any other; the rest stays; a second time there is nothing left to do."""
    for name in ("a.jpg", "deep/er/e.jpg", "other/g.jpg"):
        (root / name).unlink()
    (root / "deep" / "er").rmdir()
    assert pruned(store, root) == ["a.jpg", "deep/er/e.jpg", "other/g.jpg"]
    assert held(store, NEW) == ["b.png", "deep/c.jpg", "deep/d.jpg"]
    assert prune_of(store, root).survey() == Survey(held=5)


def test_only_what_lies_below_the_given_paths_goes(store, root):
    """A folder, a single file, and a neighbor whose name begins alike."""
    fill(store, OLD, ["deep.jpg", "deep-sea/x.jpg", "deeper/y.jpg"])
    for name in ("a.jpg", "b.png", "deep/c.jpg", "other/f.jpg"):
        (root / name).unlink()
    assert pruned(store, root, str(root / "deep")) == ["deep/c.jpg"]
    assert pruned(store, root, str(root / "a.jpg"), yes=True) == ["a.jpg"]
    assert pruned(store, root, str(root / "nowhere")) == []
    assert held(store)[:3] == ["b.png", "deep-sea/x.jpg", "deep.jpg"]


def test_a_fifth_of_a_large_store_is_asked_about(store, root):
    """Forty are in the store: ten may go, eleven need a person, and no more go than were shown."""
    fill(store, OLD, [f"new{number:02}.jpg" for number in range(32)])
    asked = []

    def answer(reply):
        prune = prune_of(store, root)
        return prune.remove(prune.survey(), confirm=lambda doubt: asked.append(doubt) or reply)

    for number in range(32):
        if number >= 11:
            (root / f"new{number:02}.jpg").touch()
    with pytest.raises(PruneRefused, match=r"11 of 40 posters .*27 %.*--yes"):
        answer(False)
    assert len(held(store)) == 40
    assert answer(True) == 11
    assert len(asked) == 2
    assert "--yes" not in asked[0]
    (root / "new11.jpg").unlink()
    assert answer(False) == 1, "a few are nobody's accident"


def test_more_than_half_is_refused_and_yes_allows_it(store, root):
    """Of a small store half; one more is not, and then nothing goes; of a given path, half of what lies below it."""
    for name in FILES[:4]:
        (root / name).unlink()
    fill(store, OLD, ["x.jpg"])
    prune = prune_of(store, root)
    with pytest.raises(PruneRefused, match=r"5 of 9 posters .*55 %.*--dry-run.*--yes"):
        prune.remove(prune.survey())
    assert len(held(store)) == 9
    prune = prune_of(store, root, str(root / "deep"))
    with pytest.raises(PruneRefused, match="2 of 3 posters"):
        prune.remove(prune.survey())
    store.delete(OLD.id, ["x.jpg"])
    assert pruned(store, root) == FILES[:4]
    (root / "other" / "f.jpg").unlink()
    (root / "deep" / "er" / "e.jpg").unlink()
    shutil.rmtree(root / "deep")
    (root / "other" / "g.jpg").unlink()
    assert pruned(store, root, yes=True) == ["deep/er/e.jpg", "other/f.jpg", "other/g.jpg"]


def test_a_root_without_posters_is_never_pruned(store, root):
    """Missing, empty, or holding none: an unmounted disk looks like that, and no option helps."""
    for name in FILES:
        (root / name).unlink()
    (root / "deep" / "readme.txt").write_text("no poster")
    for yes in (False, True):
        with pytest.raises(PruneRefused, match="is its disk mounted"):
            prune_of(store, root, yes=yes)
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(PruneRefused, match="is its disk mounted"):
        prune_of(store, root, yes=True)
    assert len(held(store)) == 8


def test_a_mount_point_without_its_disk_keeps_what_it_held(store, root):
    """An empty folder that did not change since the vectors were stored never held these files; at any depth."""
    shutil.rmtree(root / "deep")
    (root / "deep").mkdir()
    (root / "deep" / ".hidden").touch()
    os.utime(root / "deep", (1e9, 1e9))
    (root / "other" / "f.jpg").unlink()
    survey = prune_of(store, root).survey()
    assert (survey.held, survey.gone, survey.empty) == (8, 1, 3)
    assert survey.folders == {"deep": 3}
    assert pruned(store, root) == ["other/f.jpg"]
    assert pruned(store, root, yes=True) == ["deep/c.jpg", "deep/d.jpg", "deep/er/e.jpg"]


def test_a_folder_that_was_emptied_holds_nothing_back(store, root):
    """Whoever deletes the last poster of a folder leaves the time of it on the folder."""
    (root / "deep" / "er" / "e.jpg").unlink()
    assert pruned(store, root) == ["deep/er/e.jpg"]


def test_what_a_failing_folder_hides_stays(store, root, monkeypatch):
    """An error that is not `no such file` says nothing about the poster, even with --yes."""
    lstat = os.lstat

    def failing(path, *arguments, **options):
        if "/deep/" in str(path):
            raise OSError(5, "Input/output error")
        return lstat(path, *arguments, **options)

    (root / "deep" / "c.jpg").unlink()
    (root / "a.jpg").unlink()
    monkeypatch.setattr("os.lstat", failing)
    survey = prune_of(store, root).survey()
    assert (survey.gone, survey.hidden) == (1, 3)
    assert pruned(store, root, yes=True) == ["a.jpg"]


def test_a_folder_that_cannot_be_listed_hides_what_is_below(store, root, monkeypatch):
    """Also where single files could still be asked for."""
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("/deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (root / "deep" / "c.jpg").unlink()
    monkeypatch.setattr("os.scandir", failing)
    assert prune_of(store, root).survey().hidden == 1


def test_a_root_that_goes_away_while_pruning_ends_it(store, root, monkeypatch):
    """Nothing is deleted on the word of a disk that was taken out in between."""
    monkeypatch.setattr("producer.maintenance.prune.PAGE_IDS", 1)
    (root / "a.jpg").unlink()
    (root / "other" / "f.jpg").unlink()
    prune = prune_of(store, root)
    survey = prune.survey()
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(PruneRefused, match="was a disk removed"):
        prune.remove(survey)
    assert len(held(store)) == 8


def test_more_than_half_is_refused_even_if_it_goes_while_pruning(store, root, monkeypatch):
    """What was surveyed is what was agreed to; a folder that vanishes meanwhile stops it at half."""
    monkeypatch.setattr("producer.maintenance.prune.PAGE_IDS", 1)
    (root / "a.jpg").unlink()
    prune = prune_of(store, root)
    survey = prune.survey()
    for name in FILES[1:7]:
        (root / name).unlink()
    with pytest.raises(PruneRefused, match="4 posters were pruned, nothing else"):
        prune.remove(survey)
    assert len(held(store)) == 4


def test_ids_of_the_catalogue_follow_their_files(store, root):
    """A poster with an id of its own is looked for where its file lies, also below a given path."""
    fill(store, OLD, ["bebop", "steins", "akira"])
    entries = [
        {"file": "a.jpg", "id": "bebop"},
        {"file": "deep/gone.jpg", "id": "steins"},
        {"file": "gone.jpg", "id": "akira"},
    ]
    store.delete(OLD.id, ["a.jpg"])
    store.delete(NEW.id, ["a.jpg"])
    assert pruned(store, root, str(root / "deep"), entries=entries) == ["steins"]
    assert pruned(store, root, entries=entries) == ["akira"]
    assert "bebop" in held(store)


def test_a_given_id_that_looks_like_a_path_is_no_path(store, root):
    """The catalogue calls another file `deep/c.jpg`: what lies in deep/ has no say about it."""
    (root / "deep" / "c.jpg").unlink()
    entries = [{"file": "other/f.jpg", "id": "deep/c.jpg"}]
    assert pruned(store, root, str(root / "deep"), entries=entries) == []


def test_ids_of_nobody_go(store, root):
    """Ids of a former catalogue, names of folders, and what no path can be."""
    strange = ["17", "deep", "/etc/hostname", "../x", "a//b.jpg", "x" * 5000, "deep/"]
    fill(store, OLD, strange)
    (root.parent / "x").touch()
    assert sorted(pruned(store, root)) == sorted(strange)


def test_an_id_that_was_replaced_goes_once_its_successor_is_there(store, root):
    """The catalogue gives a.jpg an id: the vector under its path goes when every space has it under the id."""
    entries = [{"file": "a.jpg", "id": "bebop"}]
    assert pruned(store, root, entries=entries) == []
    fill(store, OLD, ["bebop"])
    assert pruned(store, root, entries=entries) == []
    fill(store, NEW, ["bebop"])
    assert pruned(store, root, entries=entries) == ["a.jpg"]


def test_an_id_that_a_broken_entry_claims_stays(store, root):
    """An entry without a usable file may mean any file."""
    fill(store, OLD, ["bebop"])
    entries = [{"file": "", "id": "bebop"}]
    assert pruned(store, root, entries=entries) == []
    assert prune_of(store, root, entries=entries).survey().hidden == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode, and normalized, on this system")
def test_names_are_found_however_the_disk_spells_them(store, root):
    """NFD and bytes that are no UTF-8, in folders and files; and their like that are gone."""
    names = ["e\u0301.jpg", "fo\u0308lder/\u304b\u3099.png", os.fsdecode(b"caf\xe9/\xff.jpg"), "50%25.jpg"]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    ids = ["\u00e9.jpg", "f\u00f6lder/\u304c.png", "caf%E9/%FF.jpg", "50%25.jpg"]
    gone = ["f\u00f6lder/\u00e9.jpg", "\u00e8.jpg", "caf%E9/%FE.jpg", "caf%E8/x.jpg", "\u9032/\u6483.jpg", "%41.jpg"]
    fill(store, OLD, [*ids, *gone])
    assert sorted(pruned(store, root, yes=True)) == sorted(gone)


def test_links_are_here_wherever_they_lead(root):
    """A link that leads nowhere is a poster that fails, not one that was deleted."""
    (root / "link.jpg").symlink_to(root / "nowhere")
    assert FileStatusReader(root).read("link.jpg") is FileStatus.HERE


def test_a_catalogue_of_named_files_alone_is_a_collection(store, root):
    """Posters that no search would find (by their extension) are there all the same."""
    for name in FILES:
        (root / name).unlink()
    (root / "one.poster").touch()
    fill(store, OLD, ["one"])
    assert prune_of(store, root, entries=[{"file": "one.poster", "id": "one"}]).survey().gone == 8


def test_many_ids_of_several_spaces_count_once(store, root):
    """Over many pages."""
    ids = [f"many/{number:05}.jpg" for number in range(3000)]
    fill(store, OLD, ids)
    fill(store, NEW, ids[::2])
    survey = prune_of(store, root).survey()
    assert (survey.held, survey.gone) == (3008, 3000)
    assert len(pruned(store, root, yes=True)) == 3000
    assert held(store, NEW) == FILES[:5]
