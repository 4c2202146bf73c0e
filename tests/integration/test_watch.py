"""`index --watch` as a user runs it: files are added, changed, written slowly and deleted; Redis and disks fail."""

import contextlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time

import pytest

from bench.image_samples import encoded, picture
from producer.watch.file_events import Events
from tests.support.installation import Installation, adds_up
from tests.support.redis_server import RedisServer

SOON_S = 40.0  # on a machine that does four other things


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def installation(server, tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("world"), server)
    installation.worker("shared").wait_until_ready()
    yield installation
    installation.close()


class Watched:
    """A running `index --watch --json` and its output, line by line."""

    def __init__(self, installation, path, *arguments, **environment):
        self.installation, self.path = installation, path
        self.process = installation.start(
            "index", str(path), "--watch", "--json", "--settle", "0.6", *arguments, **environment
        )
        self.rounds, self.messages = queue.Queue(), []
        for stream, take in ((self.process.stdout, self._take_round), (self.process.stderr, self.messages.append)):
            threading.Thread(target=self._read, args=(stream, take), daemon=True).start()

    def _read(self, stream, take):
        with contextlib.suppress(ValueError):  # closed at the end of the test
            for line in stream:
                take(line)

    def _take_round(self, line):
        entry = json.loads(line)
        assert adds_up(entry), entry
        self.rounds.put(entry)

    def next(self):
        """The next round with changes."""
        try:
            return self.rounds.get(timeout=SOON_S)
        except queue.Empty:
            raise AssertionError(f"no round came; its messages: {self.messages}") from None

    def until(self, **wanted):
        """Add up rounds until the counts are as expected."""
        total = dict.fromkeys(wanted, 0)
        while total != wanted:
            entry = self.next()
            total = {name: total[name] + entry.get(name, 0) for name in wanted}
            assert all(total[name] <= wanted[name] for name in wanted), (total, self.messages)

    def quiet(self, seconds=2.5):
        """Assert that no round with changes follows for a while."""
        time.sleep(seconds)
        assert self.rounds.empty(), self.rounds.get()

    def wait_for_line(self, text):
        ends = time.monotonic() + SOON_S
        while not any(text in line for line in self.messages):
            assert time.monotonic() < ends, self.messages
            assert self.process.poll() is None, self.messages
            time.sleep(0.05)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(20)
        self.close()
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        time.sleep(0.1)  # the readers see the end
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def watched(installation, request):
    """Start a watch of a folder of the test's own, with some posters in it."""
    started = []

    def start(*arguments, count=3, **environment):
        name = f"w{time.time_ns()}"
        (installation.root / name).mkdir(exist_ok=True)
        installation.draw(count, f"{name}/p")
        watch = Watched(installation, installation.root / name, *arguments, **environment)
        started.append(watch)
        watch.until(embedded=count)
        return watch

    yield start
    for watch in started:
        watch.close()


def image(seed=0, size=(120, 180)):
    return encoded(picture(*size, seed=seed), "JPEG") + str(time.time_ns()).encode()


def stored(installation, watch):
    return {name.partition("/")[2] for name in installation.stored() if name.startswith(f"{watch.path.name}/")}


def test_new_changed_and_deleted_files_are_followed(installation, watched):
    """New, changed and renamed files, new and moved folders; rows of deleted files stay without --prune."""
    watch = watched()
    (watch.path / "new.jpg").write_bytes(image(1))
    watch.until(embedded=1)
    (watch.path / "p0000.jpg").write_bytes(image(2))
    watch.until(embedded=1)
    os.utime(watch.path / "p0001.jpg")
    watch.until(reused=1)
    (watch.path / "p0002.jpg").rename(watch.path / "renamed.jpg")
    watch.until(reused=1)
    (watch.path / "deep" / "er").mkdir(parents=True)
    (watch.path / "deep" / "er" / "a.jpg").write_bytes(image(3))
    watch.until(embedded=1)
    outside = installation.folder / f"outside-{watch.path.name}"
    (outside / "inner").mkdir(parents=True)
    for number in range(3):
        (outside / "inner" / f"{number}.jpg").write_bytes(image(number))
    outside.rename(watch.path / "moved")
    watch.until(embedded=3)
    shutil.rmtree(watch.path / "moved")
    (watch.path / "new.jpg").unlink()
    (watch.path / "notes.txt").write_text("no poster")
    (watch.path / ".hidden.jpg").write_bytes(image(4))
    watch.quiet()
    assert {"new.jpg", "p0002.jpg", "moved/inner/0.jpg"} <= stored(installation, watch)
    assert watch.interrupt() == 130


def test_deleted_posters_are_pruned_on_request(installation, watched):
    """A file, a folder, a renamed file whose vector is reused first; more than half of the store is refused."""
    watch = watched("--prune", count=8)
    (watch.path / "p0000.jpg").unlink()
    watch.until(pruned=1)
    (watch.path / "p0001.jpg").rename(watch.path / "renamed.jpg")
    watch.until(reused=1, pruned=1, embedded=0)
    (watch.path / "deep").mkdir()
    for name in ("p0002.jpg", "p0003.jpg"):
        (watch.path / name).rename(watch.path / "deep" / name)
    watch.until(reused=2, pruned=2, embedded=0)
    shutil.rmtree(watch.path / "deep")
    watch.until(pruned=2)
    assert stored(installation, watch) == {"renamed.jpg", *(f"p{number:04}.jpg" for number in range(4, 8))}


def test_a_file_that_is_written_slowly_is_indexed_when_it_is_complete(installation, watched):
    """No failure, no vector of half a picture; one embedding at the end."""
    watch = watched()
    data = encoded(picture(800, 1200, seed=5), "JPEG", progressive=True)
    with (watch.path / "slow.jpg").open("wb") as file:
        for start in range(0, len(data), len(data) // 10 + 1):
            file.write(data[start : start + len(data) // 10 + 1])
            file.flush()
            time.sleep(0.3)
            assert "slow.jpg" not in stored(installation, watch)
    entry = watch.next()
    assert (entry["submitted"], entry["embedded"], entry["failed"]) == (1, 1, 0)
    whole = installation.producer.embed(watch.path / "slow.jpg")
    (watch.path / "same.jpg").write_bytes(data)
    assert watch.next()["reused"] == 1
    assert (installation.producer.embed(watch.path / "same.jpg") == whole).all()


def test_a_file_whose_writing_stalls_is_indexed_again(installation, watched):
    """Half of it rests long enough to be read, and fails; once complete, it is embedded."""
    watch = watched()
    data = encoded(picture(800, 1200, seed=6), "JPEG")
    with (watch.path / "stalled.jpg").open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        assert watch.next()["failed"] == 1
        watch.wait_for_line("stalled.jpg: truncated")
        file.write(data[len(data) // 2 :])
    entry = watch.next()
    assert (entry["embedded"], entry["failed"]) == (1, 0)
    assert "stalled.jpg" in stored(installation, watch)


def test_a_file_that_fails_is_sent_once(watched):
    """Scanned every second, it is reported once; when it is fixed, it is embedded."""
    watch = watched("--rescan", "1")
    (watch.path / "bad.jpg").write_bytes(b"no picture")
    assert watch.next()["failed"] == 1
    time.sleep(5)
    assert watch.rounds.qsize() <= 1  # caught while it was fresh, it is looked at once more
    while not watch.rounds.empty():
        watch.rounds.get()
    watch.quiet(3)
    (watch.path / "bad.jpg").write_bytes(image(7))
    watch.until(embedded=1)


def test_changes_without_file_events_are_found_by_the_periodic_scan(watched):
    """Changes made by another machine on a network drive cause no event: the next full scan finds them."""
    watch = watched("--rescan", "2", PYTHONPATH=os.pathsep.join(["tests/support/no_file_events", *sys.path]))
    watch.wait_for_line("no file events at the moment (blind on purpose)")
    (watch.path / "unseen.jpg").write_bytes(image(8))
    watch.until(embedded=1)


def test_changes_made_while_no_watch_ran_are_found_at_the_start(installation, watched):
    """A watch begins with a full scan."""
    watch = watched()
    watch.interrupt()
    (watch.path / "between.jpg").write_bytes(image(9))
    os.utime(watch.path / "between.jpg", (1e9, 1e9))
    again = Watched(installation, watch.path)
    try:
        entry = again.next()
        assert (entry["embedded"], entry["unchanged"]) == (1, 3)
    finally:
        again.close()


def test_a_name_that_is_not_text_does_not_stop_the_watch(watched):
    """The library stops at such a name; the watch restarts it, and finds that poster and those after it."""
    watch = watched()
    with open(os.fsencode(watch.path) + b"/\xff.jpg", "wb") as file:
        file.write(image(10))
    watch.until(embedded=1)
    (watch.path / "after.jpg").write_bytes(image(11))
    watch.until(embedded=1)


def test_a_changed_catalogue_is_read_again(installation, watched, tmp_path):
    """Its ids are used from then on; a broken one is reported, and the old one stays in use."""
    path = tmp_path / "posters.json"
    path.write_text("[]")
    watch = watched(POSTERS_CATALOGUE=str(path))
    path.write_text(json.dumps([{"file": f"{watch.path.name}/p0000.jpg", "id": f"id-{watch.path.name}"}]))
    watch.until(reused=1)
    assert f"id-{watch.path.name}" in installation.stored()
    path.write_text("[{")
    watch.wait_for_line("is not readable JSON")
    (watch.path / "new.jpg").write_bytes(image(12))
    watch.until(embedded=1)


def test_a_catalogue_that_is_missing_for_a_while_changes_no_id(installation, watched, tmp_path):
    """Removed, or emptied while it is rewritten: reported once and waited for; nothing is sent or pruned."""
    path = tmp_path / "posters.jsonl"
    name = f"w{time.time_ns()}"
    ids = {f"id-{name}-{number}" for number in range(3)}
    lines = [json.dumps({"file": f"{name}/p{number:04}.jpg", "id": f"id-{name}-{number}"}) for number in range(3)]
    path.write_text("\n".join(lines))
    (installation.root / name).mkdir()
    installation.draw(3, f"{name}/p")
    watch = Watched(installation, installation.root / name, "--prune", "--rescan", "1", POSTERS_CATALOGUE=str(path))
    try:
        watch.until(embedded=3)
        path.unlink()
        watch.wait_for_line("there is no catalogue")
        (watch.path / "new.jpg").write_bytes(image(16))
        watch.until(embedded=1, pruned=0)
        watch.quiet()
        for _ in range(6):  # it is written again, and again, and holds nothing while it is
            path.write_text("")
            time.sleep(0.2)
        path.write_text("\n".join(lines))
        watch.quiet()
        assert stored(installation, watch) == {"new.jpg"}
        assert ids <= installation.stored()
        assert sum("there is no catalogue" in line for line in watch.messages) == 1
        (watch.path / "p0000.jpg").unlink()
        watch.until(pruned=1)
        assert installation.stored() & ids == ids - {f"id-{name}-0"}
    finally:
        watch.close()


@pytest.mark.parametrize("arguments", [(), ("--prune",)])
def test_a_missing_catalogue_is_refused_at_the_start(installation, tmp_path, arguments):
    """A disk that is mounted late would give every poster a second id."""
    done = installation.run("index", "--watch", *arguments, POSTERS_CATALOGUE=str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "there is no catalogue" in done.stderr.splitlines()[-1]


def test_linked_folders_are_not_followed(installation, watched):
    """A scan skips them, and so do file events."""
    watch = watched()
    outside = installation.folder / f"linked-{watch.path.name}"
    outside.mkdir()
    (watch.path / "link").symlink_to(outside, target_is_directory=True)
    (outside / "a.jpg").write_bytes(image(13))
    watch.quiet()


def test_interrupted_while_sending_it_leaves_the_job_to_the_worker(redis_url, redis_server, tmp_path):
    """Ctrl-C while it sends: the id is printed, sent batches are done, the job ends."""
    installation = Installation(tmp_path, redis_server)
    try:
        installation.draw(40)
        watch = Watched(installation, installation.root, "--batch", "2", POSTERS_WINDOW="4")
        watch.wait_for_line("no worker is alive")
        time.sleep(1)
        assert watch.interrupt() == 130
        job = installation.producer.job("last")
        assert any(f"status {job.id}" in line for line in watch.messages)
        assert not any("Traceback" in line for line in watch.messages)
        installation.worker("late").wait_until_ready()
        progress = job.wait(30)
        assert progress.at_rest
        assert progress.submitted == progress.embedded == 8
    finally:
        installation.close()


def test_an_outage_of_redis_is_waited_for(tmp_path):
    """The outage is reported once; what changed meanwhile is indexed, also when Redis has lost its data."""
    with RedisServer(folder=tmp_path) as server:
        installation = Installation(tmp_path / "world", server)
        try:
            installation.draw(3, "p")
            installation.worker("w").wait_until_ready()
            watch = Watched(installation, installation.root)
            watch.until(embedded=3)
            server.kill()
            (installation.root / "meanwhile.jpg").write_bytes(image(14))
            watch.wait_for_line("Waiting for it")
            time.sleep(3)
            server.start()
            watch.until(embedded=1)
            (installation.root / "after.jpg").write_bytes(image(15))
            watch.until(embedded=1)
            assert sum("does not answer" in line and "Waiting" in line for line in watch.messages) == 1
            assert watch.interrupt() == 130
        finally:
            watch.close()
            installation.close()


def test_an_unmounted_disk_deletes_nothing_and_may_return(installation, watched, tmp_path):
    """With --prune: an empty root, no root, then the posters again with a new one among them."""
    posters = tmp_path / "posters"
    installation.draw(1, "disk")  # in the worker's own root, which is no mount point without its disk
    shutil.copytree(installation.root, posters)
    watch = Watched(
        installation, posters, "--prune", POSTERS_ROOT=str(posters), POSTERS_STORE=installation.settings.store
    )
    try:
        watch.next()
        before = installation.stored()
        aside = tmp_path / "aside"
        posters.rename(aside)
        watch.wait_for_line("is gone: is its disk mounted? Waiting for it")
        posters.mkdir()
        time.sleep(3)
        posters.rmdir()
        (aside / f"back-{time.time_ns()}.jpg").write_bytes(b"no picture")
        aside.rename(posters)
        assert watch.next()["failed"] >= 1
        assert installation.stored() == before
    finally:
        watch.close()


def test_without_json_each_round_is_a_line(installation):
    """On stderr, with the time; stdout stays empty."""
    (installation.root / "read").mkdir()
    installation.draw(2, "read/p")
    process = installation.start("index", str(installation.root / "read"), "--watch", "--settle", "0.5")
    try:
        lines = iter(process.stderr.readline, "")
        words = next(line for line in lines if " submitted 2 " in line).split()
        assert words[1] == "job"
        assert words[3:6] == ["submitted", "2", "embedded"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "stopped watching" in err


@pytest.mark.parametrize("option", ["--force", "--verify", "--dry-run", "--detach"])
def test_options_that_exclude_each_other_are_refused(installation, option):
    """Status 2, and both are named."""
    done = installation.run("index", "--watch", option)
    assert done.returncode == 2
    assert "--watch" in done.stderr
    assert option in done.stderr


def test_a_hidden_folder_that_is_named_is_followed(tmp_path):
    """When it is named on the command line; hidden files below it and beside it stay hidden, as in a scan."""
    for name in (".new", "new", ".new/.deeper"):
        (tmp_path / name).mkdir()
    events = Events(tmp_path, [".new", ".one.jpg"])
    events.start()
    events.wait_until_started(10)
    events.take()
    for name in (".new/a.jpg", ".new/.b.jpg", ".new/.deeper/c.jpg", "new/d.jpg", ".one.jpg", ".two.jpg"):
        (tmp_path / name).touch()
    time.sleep(1.5)
    try:
        assert set(events.take()[0]) == {".new/a.jpg", ".one.jpg"}
    finally:
        events.stop()
        events.join(5)


def test_a_burst_of_events_causes_a_full_scan(tmp_path, monkeypatch):
    """The system's queue may have overflowed without a report, and the number of pending paths is bounded."""
    monkeypatch.setattr("producer.watch.file_events.OVERFLOW", 5)
    monkeypatch.setattr("producer.watch.file_events.MAX_WAITING_PATHS", 3)
    events = Events(tmp_path, [""])
    events.start()
    events.wait_until_started(10)
    assert events.take() == ({}, True)
    (tmp_path / "one.jpg").touch()
    time.sleep(1)
    assert events.take() == ({"one.jpg": True}, False)
    for number in range(20):
        (tmp_path / f"{number}.jpg").touch()
    time.sleep(1.5)
    changed, everything = events.take()
    assert everything
    assert len(changed) == 3
    events.stop()
    events.join(5)
    assert not events.is_alive()
