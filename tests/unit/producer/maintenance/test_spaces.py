"""Spaces side by side: which is meant, which is complete, which readers use; as the command line shows it."""

import json
import os

import pytest
from click.testing import CliRunner

from producer.__main__ import main
from producer.collection.catalogue import Catalogue
from producer.errors import ConfigurationError, SpaceMismatch
from producer.maintenance.spaces import (
    completeness,
    find_space,
    require_same_space,
    store_for_reading,
    unread_space_note,
)
from producer.queue.workers import READY, Announcement, common_space
from producer.settings import load_settings
from producer.vectors import open_store
from tests.support.filled_store import OTHER, SPACE, catalogue_of, fill

NONE = Catalogue(None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "here.jpg").write_bytes(b"x")  # without one, it would look like a disk not mounted
    return tmp_path


@pytest.fixture
def store(folder):
    store = open_store(f"sqlite:{folder / 'v.db'}")
    yield store
    store.close()


@pytest.fixture
def run(folder):
    """The command line in this process, on the store of this test."""

    def invoke(*arguments, **environment):
        variables = {
            "POSTERS_STORE": f"sqlite:{folder / 'v.db'}",
            "POSTERS_ROOT": str(folder / "posters"),
            "POSTERS_CATALOGUE": "none",
        }
        return CliRunner().invoke(main, list(arguments), env=variables | environment)

    return invoke


def files(folder, *names):
    for name in names:
        (folder / "posters" / name).write_bytes(b"x")


def test_a_space_is_meant_by_its_id_or_a_beginning_that_no_other_shares(store):
    """Nothing means the current one; what is ambiguous or unknown is refused with a list."""
    with pytest.raises(ConfigurationError, match="no vectors yet"):
        find_space(store)
    fill(store, ["a"])
    fill(store, ["a"], space=OTHER)
    assert find_space(store).space == SPACE
    assert find_space(store, OTHER.id).space == OTHER
    assert find_space(store, "vit-l").space == OTHER
    with pytest.raises(ConfigurationError, match=f"beginning of 2 spaces: {SPACE.id}, {OTHER.id}"):
        find_space(store, "vit-")
    with pytest.raises(ConfigurationError, match=f"no space 'resnet'; it has: {SPACE.id}, {OTHER.id}"):
        find_space(store, "resnet")


def test_complete_is_what_holds_every_poster_of_the_current_space(store, folder):
    """Posters that only the new one holds do not matter; those that are missing count."""
    files(folder, "a", "b", "c")
    fill(store, ["a", "b", "c"])
    fill(store, ["b", "x"], space=OTHER)
    state = completeness(store, OTHER.id, folder / "posters", NONE)
    assert (state.missing, state.complete) == (2, False)
    fill(store, ["a", "c"], space=OTHER)
    assert completeness(store, OTHER.id, folder / "posters", NONE).complete
    assert completeness(store, SPACE.id, folder / "posters", NONE) == completeness(
        store, OTHER.id, folder / "posters", NONE
    )


def test_a_poster_whose_file_has_gone_does_not_count_against_a_space(store, folder):
    """No model can embed it any more: else a single deleted file would keep readers back for ever."""
    files(folder, "a")
    fill(store, ["a", "gone", "renamed"])
    fill(store, ["a"], space=OTHER)
    state = completeness(store, OTHER.id, folder / "posters", NONE)
    assert (state.missing, state.gone, state.complete) == (2, 2, True)
    files(folder, "kept.jpg")
    catalogue = catalogue_of(folder, {"file": "kept.jpg", "id": "renamed"})
    assert not completeness(store, OTHER.id, folder / "posters", catalogue).complete


def test_a_root_that_shows_nothing_says_nothing_of_posters(store, folder):
    """Missing, no folder, or empty as a mount point is: every poster may be there, and none counts as gone."""
    fill(store, ["a", "b", "c"])
    fill(store, ["a"], space=OTHER)
    (folder / "empty").mkdir()
    for root in (folder / "nowhere", folder / "v.db", folder / "empty"):
        state = completeness(store, OTHER.id, root, NONE)
        assert (state.missing, state.gone, state.complete) == (2, 0, False)


def test_what_is_out_of_sight_is_not_gone(store, folder, monkeypatch):
    """A folder that cannot be read, a mount point without its disk, an id that a broken entry claims; at any place."""
    names = [f"deep/{number:04}.jpg" for number in range(600)]
    fill(store, ["a", *names])
    fill(store, ["a"], space=OTHER)
    posters = folder / "posters"
    assert completeness(store, OTHER.id, posters, NONE).complete
    (posters / "deep").mkdir()
    os.utime(posters / "deep", (1e9, 1e9))
    assert completeness(store, OTHER.id, posters, NONE).gone == 0
    (posters / "deep" / "x").touch()
    assert completeness(store, OTHER.id, posters, NONE).complete
    claimed = catalogue_of(folder, {"file": "", "id": names[-1]})
    assert not completeness(store, OTHER.id, posters, claimed).complete
    lstat = os.lstat

    def failing(path, *arguments, **options):
        if str(path).endswith(names[-1]):
            raise OSError(5, "Input/output error")
        return lstat(path, *arguments, **options)

    monkeypatch.setattr("os.lstat", failing)
    state = completeness(store, OTHER.id, posters, NONE)
    assert (state.missing, state.complete) == (600, False)


def test_thousands_of_ids_are_merged_page_by_page(store, folder, monkeypatch):
    """Pages of the two spaces that end at different ids are no reason to miss one."""
    names = [f"{n:04}" for n in range(3000)]
    fill(store, names)
    fill(store, [*names[::2], "zzz"], space=OTHER)
    real = store.ids
    monkeypatch.setattr(store, "ids", lambda space: real(space, 7 if space == SPACE.id else 11))
    assert completeness(store, OTHER.id, folder / "posters", NONE).missing == 1500


def test_spaces_are_listed_with_everything_that_is_known(run, store, folder):
    """id, model, count, bytes, completeness, current mark, provenance, when; for a person and for a program."""
    files(folder, "a", "b")
    fill(store, ["a", "b"])
    fill(store, ["a"], space=OTHER)
    entries = json.loads(run("spaces", "--json").stdout)
    assert [(entry["id"], entry["model"], entry["current"]) for entry in entries] == [
        (SPACE.id, "ViT-B-32", True),
        (OTHER.id, "ViT-L-14", False),
    ]
    assert [(entry["count"], entry["bytes"]) for entry in entries] == [(2, 128), (1, 64)]
    assert [(entry["complete"], entry["missing"]) for entry in entries] == [(True, 0), (False, 1)]
    assert entries[0]["provenance"] == {"torch": "2.15.0", "device": "cpu", "precision": "fp32", "pretrained": "openai"}
    assert entries[0]["space"]["dimension"] == 16
    assert entries[0]["created"] <= entries[0]["changed"]
    text = run("spaces").stdout
    assert f"* {SPACE.id}  ViT-B-32  2 vectors  128 B  complete\n" in text
    assert f"  {OTHER.id}  ViT-L-14  1 vectors  64 B  not complete: 1 missing\n" in text
    assert "torch 2.15.0" in text
    assert "openai cpu fp32" in text
    assert " UTC" in text


def test_readers_keep_the_old_space_until_the_new_one_is_complete(run, store, folder):
    """`use` refuses what would lose posters, without --yes; then readers change, and the old one stays."""
    files(folder, "a", "b")
    fill(store, ["a", "b"])
    fill(store, ["a"], space=OTHER)
    refused = run("spaces", "use", "vit-l")
    assert refused.exit_code == 2
    assert "would no longer find 1 poster(s)" in refused.stderr
    assert store.current() == SPACE.id
    fill(store, ["b"], space=OTHER)
    done = run("spaces", "use", "vit-l")
    assert done.exit_code == 0, done.output
    assert f"readers now use {OTHER.id}" in done.stdout
    assert store.current() == OTHER.id
    assert store.count(SPACE.id) == 2
    assert "already" in run("spaces", "use", OTHER.id).stderr


def test_use_does_not_take_a_wrong_root_for_deleted_posters(run, store, folder):
    """No folder, an empty one, another collection's, a lost catalogue: refused by name; --yes needs none of them."""
    files(folder, "a", "b", "c")
    fill(store, ["a", "b", "c"])
    fill(store, ["a", "b"], space=OTHER)
    (folder / "empty").mkdir()
    (folder / "another").mkdir()
    (folder / "another" / "x.jpg").touch()
    for variables, text in (
        ({"POSTERS_ROOT": str(folder / "nowhere")}, "is not a folder: set POSTERS_ROOT"),
        ({"POSTERS_ROOT": str(folder / "empty")}, "not complete"),
        ({"POSTERS_ROOT": str(folder / "another")}, f"3 of 3 posters of {SPACE.id} no longer have a file"),
        ({"POSTERS_CATALOGUE": str(folder / "none.json")}, "there is no catalogue"),
    ):
        refused = run("spaces", "use", "vit-l", **variables)
        assert refused.exit_code == 2, variables
        assert text in refused.stderr
        assert store.current() == SPACE.id
    listed = run("spaces", POSTERS_ROOT=str(folder / "nowhere"))
    assert (listed.exit_code, "not complete: 1 missing" in listed.stdout) == (0, True)
    assert run("spaces", "use", "vit-l", "--yes", POSTERS_ROOT=str(folder / "nowhere")).exit_code == 0
    assert store.current() == OTHER.id


def test_deleted_posters_do_not_hold_the_switch_back(run, store, folder):
    """Up to half of the current space."""
    files(folder, "a", "b")
    fill(store, ["a", "b", "gone1", "gone2"])
    fill(store, ["a", "b"], space=OTHER)
    done = run("spaces", "use", "vit-l")
    assert done.exit_code == 0, done.output
    assert store.current() == OTHER.id


def test_use_loses_posters_with_yes(run, store, folder):
    """--yes."""
    files(folder, "b")
    fill(store, ["a", "b"])
    fill(store, ["a"], space=OTHER)
    assert run("spaces", "use", "vit-l", "--yes").exit_code == 0
    assert store.current() == OTHER.id


def test_drop_refuses_what_readers_use(run, store):
    """It says what would happen; with --yes readers switch to what is left."""
    fill(store, ["a", "b"])
    fill(store, ["a"], space=OTHER)
    refused = run("spaces", "drop", "vit-b")
    assert refused.exit_code == 2
    assert f"readers use {SPACE.id}, they would switch to {OTHER.id}: 2 vectors" in refused.stderr
    assert store.count(SPACE.id) == 2
    done = run("spaces", "drop", "vit-b", "--yes")
    assert done.stdout == f"dropped {SPACE.id} with 2 vectors; readers use {OTHER.id}\n"
    assert store.current() == OTHER.id
    assert "the store is empty now" in run("spaces", "drop", "vit-l", "--yes").stdout


def test_drop_removes_another_space_at_once(run, store):
    """After saying which, and how much of it."""
    fill(store, ["a", "b"])
    fill(store, ["a"], space=OTHER)
    done = run("spaces", "drop", "vit-l")
    assert done.exit_code == 0
    assert f"dropping {OTHER.id}: 1 vectors, 64 B" in done.stderr
    assert [info.space for info in store.spaces()] == [SPACE]


def test_index_offers_the_switch_when_it_is_due(store, folder, monkeypatch):
    """Its last words: how far the new space is, and the command when it is complete; nothing for the current one."""
    settings = load_settings(store=f"sqlite:{folder / 'v.db'}", root=folder / "posters", catalogue="none")
    files(folder, "a", "b")
    fill(store, ["a", "b"])
    fill(store, ["a"], space=OTHER)
    assert unread_space_note(settings, None) is None
    assert unread_space_note(settings, SPACE) is None
    assert "1 poster(s) are still missing" in unread_space_note(settings, OTHER)
    fill(store, ["b"], space=OTHER)
    assert f"python -m producer spaces use {OTHER.id}" in unread_space_note(settings, OTHER)
    assert unread_space_note(load_settings(store="sqlite:/nowhere/v.db"), OTHER) is None


def test_a_store_that_is_not_there_is_not_made_by_looking(folder, run):
    """A wrong path is an error, not an empty store."""
    settings = load_settings(store=f"sqlite:{folder / 'absent.db'}")
    with pytest.raises(ConfigurationError, match=r"no store .*absent\.db yet: run `.*python -m producer index`"):
        store_for_reading(settings)
    for command in (["spaces"], ["duplicates"], ["export", str(folder / "x")], ["identify", "a.jpg"]):
        done = run(*command, POSTERS_STORE=f"sqlite:{folder / 'absent.db'}")
        assert done.exit_code == 2
        assert "no store" in done.stderr
    assert not (folder / "absent.db").exists()


def test_an_unreachable_store_and_an_invalid_store_are_distinguished(folder, run):
    """3: try again when Redis is back. 2: somebody has to mend the setting or the file."""
    away = run("spaces", POSTERS_STORE="redis://127.0.0.1:1/0")
    assert away.exit_code == 3
    assert "127.0.0.1:1" in away.stderr
    (folder / "text.db").write_text("no database" * 100)
    wrong = run("duplicates", POSTERS_STORE=f"sqlite:{folder / 'text.db'}")
    assert wrong.exit_code == 2
    assert "is no SQLite file" in wrong.stderr


def test_two_spaces_are_not_compared_and_the_error_says_what_to_do():
    """Which is made, which is read, and both ways on."""
    require_same_space("one", "one", "the worker")
    with pytest.raises(SpaceMismatch) as caught:
        require_same_space("new", "old", "the worker")
    for part in ("the worker makes vectors of the space new", "readers use old", "spaces use new", "the old model"):
        assert part in str(caught.value)


def worker(name, space, state=READY):
    fields = {"space": space.id, "space_json": space.to_json()} if space else {}
    return Announcement(name, state, fields)


def test_workers_must_agree_on_a_space():
    """One space, or none while nobody is ready; of two, nobody can tell where a poster would land."""
    assert common_space([]) is None
    assert common_space([worker("a", SPACE, "loading")]) is None
    assert common_space([worker("a", SPACE), worker("b", SPACE), worker("c", None, "loading")]) == SPACE
    with pytest.raises(SpaceMismatch, match=f"2 spaces .a: {SPACE.id}, b: {OTHER.id}.*stop those"):
        common_space([worker("a", SPACE), worker("b", OTHER)])
