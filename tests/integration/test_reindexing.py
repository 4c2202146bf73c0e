"""Re-indexing through the command line, with a real Redis and a real worker, and with kills in between."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import closing

import pytest

from bench.image_samples import encoded, picture
from tests.support.installation import Installation, adds_up
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def installation(server, tmp_path_factory):
    """One worker for all tests of this file that do not hurt it; each has a folder of its own."""
    installation = Installation(tmp_path_factory.mktemp("world"), server)
    installation.worker("shared").wait_until_ready()
    yield installation
    installation.close()


def folder(installation, name, count=12):
    """Draw and index a folder of posters; returns the folder and the ids."""
    (installation.root / name).mkdir()
    names = installation.draw(count, f"{name}/p")
    assert installation.index(str(installation.root / name))["embedded"] == count
    return installation.root / name, names


def counts(ledger):
    return tuple(ledger[name] for name in ("embedded", "reused", "unchanged", "failed"))


def vector(installation, name):
    with closing(installation.producer.store()) as store:
        return store.get(store.current(), [name]).get(name)


def test_only_what_changed_is_embedded(installation):
    """New and changed posters are embedded; renamed, copied and touched ones reuse a vector; no other is sent."""
    path, names = folder(installation, "changes")
    before = vector(installation, names[0]), vector(installation, names[1])
    installation.draw(2, "changes/new")
    (path / "p0000.jpg").write_bytes(encoded(picture(120, 180, seed=99), "JPEG"))
    (path / "p0001.jpg").rename(path / "renamed.jpg")
    shutil.copyfile(path / "p0002.jpg", path / "copy.jpg")
    os.utime(path / "p0003.jpg")
    ledger = installation.index(str(path))
    assert counts(ledger) == (3, 3, 9, 0)
    assert vector(installation, names[0]) @ before[0] < 0.9999
    assert (vector(installation, "changes/renamed.jpg") == before[1]).all()
    assert (vector(installation, "changes/copy.jpg") == vector(installation, names[2])).all()
    assert counts(installation.index(str(path))) == (0, 0, 15, 0)


def test_equal_files_of_one_batch_are_embedded_once(installation):
    """Ten files of one content in one batch: one forward pass, ten rows."""
    (installation.root / "copies").mkdir()
    data = encoded(picture(120, 180, seed=3), "JPEG") + b"copies"
    for number in range(10):
        (installation.root / "copies" / f"{number}.jpg").write_bytes(data)
    assert counts(installation.index(str(installation.root / "copies"))) == (1, 9, 0, 0)
    assert sum(name.startswith("copies/") for name in installation.stored()) == 10


def test_verify_compares_contents(installation):
    """Another picture of the same size and time: unchanged by default, embedded with --verify, alone."""
    path, names = folder(installation, "verified", 6)
    first = path / "p0000.jpg"
    stat, before = first.stat(), vector(installation, names[0])
    data = encoded(picture(120, 180, seed=98), "JPEG", quality=60)
    first.write_bytes(data.ljust(stat.st_size, b"#"))
    assert first.stat().st_size == stat.st_size
    os.utime(first, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    os.utime(path / "p0001.jpg")
    assert counts(installation.index(str(path))) == (0, 1, 5, 0)
    assert (vector(installation, names[0]) == before).all()
    os.utime(path / "p0001.jpg")
    assert counts(installation.index(str(path), "--verify")) == (1, 0, 5, 0)
    assert vector(installation, names[0]) @ before < 0.9999
    assert counts(installation.index(str(path))) == (0, 0, 6, 0)


def test_deleted_posters_are_listed_then_pruned(installation):
    """--dry-run lists them and keeps them; --prune deletes them; the ledger's line stays the last."""
    path, names = folder(installation, "deleted")
    (path / "p0003.jpg").unlink()
    (path / "p0004.jpg").rename(path / "moved.jpg")
    shown = installation.run("index", str(path), "--dry-run", "--prune")
    assert shown.stdout.split("\n") == ["deleted/moved.jpg", "prune: deleted/p0003.jpg", "prune: deleted/p0004.jpg", ""]
    assert "2 of 12 poster(s) to prune; nothing was pruned" in shown.stderr
    assert set(names) <= installation.stored()
    assert counts(installation.index(str(path))) == (0, 1, 10, 0)
    assert set(names) <= installation.stored()
    done = installation.run("index", str(path), "--prune")
    assert done.returncode == 0
    assert "pruned 2 of 13 poster(s)" in done.stderr
    assert done.stdout.startswith("job ")
    assert len(done.stdout.splitlines()) == 1
    left = {name for name in installation.stored() if name.startswith("deleted/")}
    assert left == set(names) - {"deleted/p0003.jpg", "deleted/p0004.jpg"} | {"deleted/moved.jpg"}
    assert "pruned" not in installation.index(str(path), "--prune")


def test_a_renamed_poster_keeps_its_vector_when_the_old_name_is_pruned_at_once(installation):
    """Indexing comes first: the vector is copied before the old row is deleted."""
    path, _ = folder(installation, "renamed")
    for number in range(5):
        (path / f"p{number:04}.jpg").rename(path / f"new{number}.jpg")
    assert counts(installation.index(str(path), "--prune")) == (0, 5, 7, 0)
    assert {f"renamed/new{number}.jpg" for number in range(5)} <= installation.stored()
    assert "renamed/p0000.jpg" not in installation.stored()


def test_pruning_more_than_half_must_be_confirmed(installation):
    """Status 2 with the numbers and the option to confirm; the job is done and its ledger printed."""
    path, names = folder(installation, "half")
    for number in range(7):
        (path / f"p{number:04}.jpg").unlink()
    done = installation.run("index", str(path), "--prune", "--json")
    assert done.returncode == 2
    assert "7 of 12 posters" in done.stderr
    assert "--yes" in done.stderr
    assert json.loads(done.stdout)["unchanged"] == 5
    assert set(names) <= installation.stored()
    done = installation.run("prune", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    done = installation.run("prune", str(path), "--yes", "--json")
    assert json.loads(done.stdout) == {"held": 12, "pruned": 7, "empty": 0, "hidden": 0}
    assert len(set(names) & installation.stored()) == 5


def test_prune_and_detach_exclude_each_other(installation):
    """--prune waits for the job, --detach does not."""
    done = installation.run("index", "--prune", "--detach")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_prune_needs_neither_worker_nor_redis(installation):
    """A store in a file and the posters root are enough."""
    path, _ = folder(installation, "alone")
    (path / "p0005.jpg").unlink()
    away = {"POSTERS_REDIS_URL": "redis://127.0.0.1:1/0"}
    assert installation.run("prune", str(path), "--dry-run", **away).stdout == "alone/p0005.jpg\n"
    done = installation.run("prune", str(path), **away)
    assert done.returncode == 0, done.stderr
    assert "pruned 1 of 12 poster(s)" in done.stderr


def test_a_root_that_is_empty_or_gone_prunes_nothing(installation, tmp_path):
    """An unmounted disk: status 2 with any options; a store that does not exist is not created."""
    before = installation.stored()
    (tmp_path / "empty").mkdir()
    done = installation.run("prune", "--yes", POSTERS_ROOT=str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "is its disk mounted" in done.stderr
    done = installation.run("index", "--prune", "--yes", POSTERS_ROOT=str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "is its disk mounted" in done.stderr
    assert "submitted 0" in done.stdout
    assert installation.run("prune", "--yes", POSTERS_ROOT=str(tmp_path / "gone")).returncode == 2
    assert installation.stored() == before
    done = installation.run("prune", POSTERS_STORE=f"sqlite:{tmp_path / 'none.db'}")
    assert (done.returncode, (tmp_path / "none.db").exists()) == (0, False)
    assert "no vectors yet" in done.stderr


def test_a_missing_catalogue_prunes_nothing(installation, tmp_path):
    """Without it, all its ids would seem deleted."""
    done = installation.run("prune", "--yes", POSTERS_CATALOGUE=str(tmp_path / "typo.json"))
    assert done.returncode == 2
    assert "there is no catalogue" in done.stderr


def test_the_catalogue_names_the_posters_and_its_faults_are_reported(installation, tmp_path):
    """Ids and titles from CSV; each of its faults is reported once."""
    (installation.root / "named").mkdir()
    installation.draw(5, "named/p")
    (tmp_path / "posters.csv").write_text(
        "id,file,title\nbebop,named\\p0000.jpg,Cowboy Bebop\n,named/p0001.jpg,\nbebop,named/p0002.jpg,Twice\n"
        "gone,named/gone.jpg,Gone\nx,,No file\n",
        encoding="utf-8-sig",
    )
    catalogue = {"POSTERS_CATALOGUE": str(tmp_path / "posters.csv")}
    done = installation.run("index", str(installation.root / "named"), **catalogue)
    assert done.returncode == 1
    ledger = dict(zip(*[iter(done.stdout.split())] * 2, strict=True))
    assert (ledger["submitted"], ledger["embedded"], ledger["failed"]) == ("8", "5", "3")
    assert "posters.csv#4: unsupported: line 4 of " in done.stderr
    assert "has the id 'bebop', which line 2 already has" in done.stderr
    assert "posters.csv#6: unsupported: line 6 of " in done.stderr
    assert "failed: named/gone.jpg: missing: line 5 of " in done.stderr
    assert f"2 of the entries of {tmp_path / 'posters.csv'} cannot be used" in done.stderr
    assert "1 poster(s) that" in done.stderr
    assert "3 file(s) are in no entry of" in done.stderr
    assert {"bebop", "named/p0001.jpg", "named/p0002.jpg"} <= installation.stored()
    assert "named/p0000.jpg" not in installation.stored()

    shown = installation.run("index", str(installation.root / "named"), "--dry-run", **catalogue)
    for number in (2, 3, 4):
        assert f"in no entry of the catalogue: named/p{number:04}.jpg\n" in shown.stderr
    assert "cannot be sent: named/gone.jpg: missing: line 5 of " in shown.stderr
    assert shown.stdout == ""
    lines = [json.loads(line) for line in installation.run(
        "index", str(installation.root / "named"), "--dry-run", "--json", **catalogue).stdout.splitlines()]  # fmt: skip
    assert sorted(line["path"].rpartition("/")[2] for line in lines if line.get("would") == "fail") == [
        "gone.jpg",
        "posters.csv#4",
        "posters.csv#6",
    ]
    assert sum("note" in line for line in lines) == len(lines) - 3 == 3

    # a backend means the same poster
    producer = type(installation.producer)(
        installation.settings.model_copy(update={"catalogue": tmp_path / "posters.csv"})
    )
    assert (producer.embed("named/p0000.jpg") == vector(installation, "bebop")).all()
    assert "named/p0000.jpg" not in installation.stored()
    (tmp_path / "posters.csv").write_text("id,file\nspike,named/p0000.jpg\n")
    assert producer.enqueue(["named/p0000.jpg"]).wait(20).reused == 1
    producer.close()
    assert "spike" in installation.stored()


def test_a_broken_catalogue_stops_before_anything_is_sent(installation, tmp_path):
    """Line and column; status 2; no job."""
    (tmp_path / "posters.json").write_text('[{"file": "a.jpg"},\n {"file": "b.jpg"]')
    before = installation.producer.job_store.list_jobs()
    done = installation.run("index", POSTERS_CATALOGUE=str(tmp_path / "posters.json"))
    assert done.returncode == 2
    assert "line 2, column 18" in done.stderr
    assert installation.producer.job_store.list_jobs() == before


def test_a_retry_leaves_what_never_was_a_poster(installation, tmp_path):
    """An entry without a file fails again under its number, and stores nothing."""
    (installation.root / "retried").mkdir()
    installation.draw(1, "retried/p")
    (tmp_path / "p.json").write_text(json.dumps([{"file": "../x.jpg"}, {"file": "retried/gone.jpg"}]))
    catalogue = {"POSTERS_CATALOGUE": str(tmp_path / "p.json")}
    assert installation.run("index", str(installation.root / "retried"), **catalogue).returncode == 1
    done = installation.run("retry", "last", "--json", **catalogue)
    assert json.loads(done.stdout)["failed"] == 2
    words = {failure.id: failure.word for failure in installation.producer.job("last").failures()}
    assert words == {"p.json#1": "outside-root", "retried/gone.jpg": "missing"}


def test_a_worker_that_becomes_ready_later_is_used_for_the_rest(own_installation):
    """The worker finds what was sent before unchanged; unchanged posters are not sent from then on."""
    own_installation.draw(40)
    own_installation.worker("first").wait_until_ready()
    assert own_installation.index()["embedded"] == 40
    own_installation.workers[0].stop()
    process = own_installation.start("index", "--json", "--batch", "1", POSTERS_WINDOW="3")
    time.sleep(2)
    own_installation.worker("second").wait_until_ready()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    ledger = json.loads(out)
    assert counts(ledger) == (0, 0, 40, 0)
    with own_installation.redis.client as client:
        assert client.hget(f"posters:job:{ledger['job']}", "step") == "40"


def test_another_model_embeds_everything_again(own_installation):
    """`unchanged` refers to the worker's space, not to the one that readers use."""
    own_installation.draw(5)
    own_installation.worker("first").wait_until_ready()
    assert own_installation.index()["embedded"] == 5
    own_installation.workers[0].stop()
    from tests.support.tiny_model import write_tiny_model

    other = write_tiny_model(own_installation.folder / "other", seed=1)
    own_installation.worker("second", POSTERS_MODEL_NAME=other).wait_until_ready()
    assert counts(own_installation.index()) == (5, 0, 0, 0)
    (own_installation.root / "p0001.jpg").unlink()
    assert "pruned 1 of 5" in own_installation.run("prune").stderr
    with closing(own_installation.producer.store()) as store:
        assert [info.count for info in store.spaces()] == [4, 4]


# ─── pulling the plug ───


def stored_some(installation, at_least):
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        stored = installation.stored()
        if len(stored) >= at_least:
            return stored
        time.sleep(0.02)
    raise AssertionError(installation.workers[-1].log_text())


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_killed_worker_loses_no_finished_chunk(own_installation):
    """kill -9 of parent and child within a batch: stored chunks are not embedded a second time."""
    names = own_installation.draw(80)
    first = own_installation.worker(
        "a", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="0.3"
    ).wait_until_ready()
    process = own_installation.start("index", "--json", "--batch", "80")
    stored_some(own_installation, 20)
    first.kill()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    kept = own_installation.stored()
    assert 20 <= len(kept) < 80
    own_installation.run("cancel", "last")
    with closing(own_installation.producer.store()) as store:
        before = store.stored(store.current(), names)
    own_installation.worker("b").wait_until_ready()
    assert counts(own_installation.index()) == (80 - len(kept), 0, len(kept), 0)
    with closing(own_installation.producer.store()) as store:
        after = store.stored(store.current(), names)
    assert all(after[name] == before[name] for name in kept)
    assert own_installation.stored() == set(names)


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_killed_producer_loses_no_finished_chunk(own_installation):
    """kill -9 while it sends: sent batches are done, and the same command again does the rest."""
    names = own_installation.draw(80)
    own_installation.worker("a", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="0.3").wait_until_ready()
    process = own_installation.start("index", "--json", "--batch", "10", POSTERS_WINDOW="2")
    stored_some(own_installation, 15)
    process.kill()
    process.communicate()
    first = own_installation.producer.job("last")
    ledger = own_installation.index()
    assert adds_up(ledger)
    assert ledger["submitted"] == 80
    assert ledger["unchanged"] >= 15
    assert first.progress().embedded + ledger["embedded"] == 80
    assert own_installation.stored() == set(names)
