"""identify, pages, duplicates, exports and a change of the model through the command line, with real workers."""

import asyncio
import base64
import io
import json
import re
import sys
import time
import types

import numpy as np
import pytest
from PIL import ImageFilter

from bench.image_samples import encoded, picture
from examples.draw_posters import draw_one_of_many
from producer import Index
from producer.embedding import space_of
from producer.errors import EmbedTimeout, NoWorker, SpaceMismatch, UnreadablePoster
from producer.queue.messages import Poster
from producer.queue.sender import create_sender
from tests.support.installation import Installation
from tests.support.project import PROJECT
from tests.support.redis_server import RedisServer
from tests.support.tiny_model import DIMENSION, write_tiny_model
from tests.support.wait import wait_for


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def installation(server, tmp_path_factory):
    """One worker, and posters of sixteen different pictures with titles."""
    installation = Installation(tmp_path_factory.mktemp("world"), server)
    catalogue = installation.folder / "posters.json"
    installation.environment["POSTERS_CATALOGUE"] = str(catalogue)
    entries = []
    for seed in range(16):
        (installation.root / f"p{seed:02}.jpg").write_bytes(encoded(picture(400, 600, seed=seed), "JPEG", quality=90))
        entries.append({"file": f"p{seed:02}.jpg", "title": f"Film {seed}", "year": 1980 + seed})
    entries[3]["id"] = "third"
    catalogue.write_text(json.dumps(entries))
    installation.worker("shared").wait_until_ready()
    assert installation.index()["embedded"] == 16
    yield installation
    installation.close()


@pytest.fixture
def shot(installation, tmp_path):
    """Poster 5 outside the posters root, smaller and re-encoded."""
    path = tmp_path / "screenshot ö.png"
    path.write_bytes(encoded(picture(400, 600, seed=5).resize((200, 300)), "PNG"))
    return path


def traces(installation):
    """Query keys in Redis, the ledger's list of jobs, and the store's version: all that a query could leave behind."""
    store = installation.producer.store()
    with installation.redis.client as client:
        left = sorted(client.keys("posters:request*") + client.keys("posters:answer:*"))
    try:
        return left, installation.producer.job_store.list_jobs(), store.version(store.current())
    finally:
        store.close()


def test_identify_names_the_poster_of_a_picture_from_anywhere(installation, shot):
    """Rank, score, title, file, through a worker that reads no file outside its root; nothing is stored.

    Without a calibration the verdict says so, and the status is 4: not certain.
    """
    before = traces(installation)
    done = installation.run("identify", str(shot), "-k", "3")
    assert done.returncode == 4, done.stderr
    first, *others = done.stdout.splitlines()
    assert first.startswith("not calibrated: scores have no thresholds here: run `")
    assert first.endswith("python -m producer calibrate`, or compare the pictures (`--check`)")
    lines = [line.split() for line in others]
    assert lines[0][0] == "1"
    assert float(lines[0][1]) > 0.99
    assert lines[0][2:] == ["Film", "5", "p05.jpg"]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert traces(installation) == before
    assert before[0] == []


def test_identify_several_images_as_json(installation, shot, tmp_path):
    """JSON with the catalogue's keys; an unreadable image has its reason, and makes the status 1."""
    (tmp_path / "text.png").write_text("no picture")
    third = installation.root / "p03.jpg"
    images = [str(shot), str(tmp_path / "text.png"), str(third), str(tmp_path / "absent.png")]
    done = installation.run("identify", *images, "--json")
    assert done.returncode == 1
    first, text, same, absent = json.loads(done.stdout)
    assert (first["image"], len(first["matches"])) == (str(shot), 5)
    best = same["matches"][0]
    assert (best["rank"], best["id"], best["file"], best["title"]) == (1, "third", "p03.jpg", "Film 3")
    assert best["about"]["year"] == 1983
    assert best["score"] == pytest.approx(1, abs=1e-5)
    assert (text["error"]["word"], absent["error"]["word"]) == ("unreadable", "missing")
    assert f"failed: {tmp_path / 'text.png'}: unreadable: " in done.stderr


def test_identify_locally_needs_no_redis(installation, shot):
    """--local loads the model in its own process and finds the same poster."""
    done = installation.run("identify", str(shot), "--local", "--json", POSTERS_REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 4, done.stderr
    there = json.loads(installation.run("identify", str(shot), "--json").stdout)[0]
    here = json.loads(done.stdout)[0]
    assert [match["id"] for match in here["matches"]] == [match["id"] for match in there["matches"]]
    assert here["matches"][0]["score"] == pytest.approx(there["matches"][0]["score"], abs=1e-4)


def test_identify_writes_a_page(installation, shot, tmp_path):
    """Query and matches as pictures in one HTML file."""
    page = tmp_path / "matches.html"
    done = installation.run("identify", str(shot), "--html", str(page))
    assert done.returncode == 4, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.count('src="data:image/webp;base64,') == 6
    assert "screenshot ö.png" in text
    assert "Film 5" in text
    assert "Film 5" in done.stdout


def test_without_redis_or_worker_identify_suggests_local(installation, shot, tmp_path, server):
    """Status 3, one line."""
    done = installation.run("identify", str(shot), POSTERS_REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stderr
    assert "--local" in done.stderr
    with RedisServer() as empty:
        done = installation.run("identify", str(shot), POSTERS_REDIS_URL=empty.url)
    assert done.returncode == 3
    assert "no worker is alive" in done.stderr
    assert "--local" in done.stderr


def test_a_backend_identifies_an_upload(installation, shot):
    """Producer.embed_image and Index.search: the vector knows its space, and nothing is stored."""
    before = traces(installation)
    with_catalogue = installation.settings.model_copy(update={"catalogue": installation.folder / "posters.json"})
    index = Index.open(with_catalogue)
    vector = installation.producer.embed_image(shot.read_bytes(), timeout=20)
    assert (vector.shape, vector.dtype) == ((DIMENSION,), np.float32)
    assert space_of(vector) == index.space.id
    best = index.search(vector, k=1)[0]
    assert (best.id, best.about["title"]) == ("p05.jpg", "Film 5")
    poster = installation.producer.embed("p05.jpg", timeout=20)
    assert index.search(poster, k=1)[0].score == pytest.approx(1, abs=1e-5)
    with pytest.raises(UnreadablePoster, match="the image: unreadable"):
        installation.producer.embed_image(b"no picture", timeout=20)
    assert traces(installation) == before
    index.close()


def test_a_collection_is_calibrated_through_its_worker(installation, shot, tmp_path):
    """Thresholds are stored, the same for the same seed; identify judges by them; --forget drops them."""
    page = tmp_path / "calibration.html"
    refused = installation.run("calibrate")
    assert refused.returncode == 2
    assert "16 different posters cannot show a rate of 0.01: it takes 99" in refused.stderr
    try:
        runs = [
            installation.run("calibrate", "--rate", "0.1", "--posters", "12", "--json", *more)
            for more in ((), ("--html", str(page)))
        ]
        first, second = (json.loads(done.stdout) for done in runs)
        for name in ("score", "lead", "floor", "copy"):  # a worker gathers requests: the last digits may differ
            assert first[name] == pytest.approx(second[name], abs=1e-5)
        assert [first[name] for name in ("posters", "queries")] == [second[name] for name in ("posters", "queries")]
        assert first["queries"] == 15 * first["posters"]
        assert len(first["variants"]) == 15
        assert first["false"] / first["queries"] <= 0.1
        assert page.read_text(encoding="utf-8").count("<svg") == 3
        text = installation.run("calibrate", "--rate", "0.1", "--posters", "12").stdout
        assert text.splitlines()[0].startswith("certain: score ")
        for image, status in ((installation.root / "p05.jpg", 0), (shot, None)):
            done = installation.run("identify", str(image), "--json")
            (entry,) = json.loads(done.stdout)
            is_certain = entry["verdict"] == "certain"
            assert is_certain == (entry["score"] >= first["score"] - 2e-5 and entry["lead"] >= first["lead"] - 2e-5), (
                entry
            )
            assert done.returncode == (0 if is_certain else 4)
            assert status in (None, done.returncode), entry
            assert entry["threshold"]["score"] == pytest.approx(first["score"], abs=1e-5)
    finally:
        forgotten = installation.run("calibrate", "--forget", "--json")
        assert forgotten.returncode == 0, forgotten.stderr
        assert json.loads(forgotten.stdout) == {"space": first["space"], "calibrated": False}
    assert json.loads(installation.run("identify", str(shot), "--json").stdout)[0]["verdict"] == "not calibrated"


class Web(types.ModuleType):
    """The part of FastAPI that the documented endpoint uses; FastAPI is not installed here."""

    class HTTPException(Exception):
        def __init__(self, status, detail):
            super().__init__(detail)
            self.status = status

    class FastAPI:
        def __init__(self, lifespan):
            self.lifespan, self.state = lifespan, types.SimpleNamespace()

        def post(self, path):
            return lambda function: function

    UploadFile = object


def test_the_documented_endpoint_answers(installation, shot, monkeypatch):
    """The backend of docs/search.md is run as printed there, with a stand-in for FastAPI."""
    text = (PROJECT / "docs" / "search.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "FastAPI" in block)
    monkeypatch.setitem(sys.modules, "fastapi", Web("fastapi"))
    for name, value in installation.environment.items():
        if name.startswith("POSTERS_"):
            monkeypatch.setenv(name, RedisServer.as_backend(value))
    found = {}
    exec(compile(block, "docs/search.md", "exec", dont_inherit=True), found)

    async def serve():
        async with found["app"].lifespan(found["app"]):
            answers.append(found["identify"](types.SimpleNamespace(file=io.BytesIO(shot.read_bytes())), k=2))
            with pytest.raises(Web.HTTPException, match="the image: unreadable") as caught:
                found["identify"](types.SimpleNamespace(file=io.BytesIO(b"junk")))
            answers.append(caught.value.status)

    answers = []
    asyncio.run(serve())
    assert answers[0][0]["id"] == "p05.jpg"
    assert answers[0][0].keys() == {"file", "title", "year", "id", "score"}
    assert answers[1] == 422


@pytest.fixture
def own_server():
    """A Redis without the workers of other tests."""
    with RedisServer() as server:
        yield server


def test_a_malformed_image_request_is_dead_lettered(installation, shot):
    """A message that names a path reads no file; the worker continues."""
    before = installation.producer.dead_letters.count()
    with create_sender(installation.settings) as app:
        message = {"version": 1, "query": "a" * 32, "path": "/etc/passwd"}
        app.send_task("posters.query", args=[message], queue="posters.interactive")
    ends = time.monotonic() + 20
    while installation.producer.dead_letters.count() == before and time.monotonic() < ends:
        time.sleep(0.05)
    assert installation.producer.dead_letters.count() == before + 1
    assert installation.producer.embed_image(shot.read_bytes(), timeout=20).shape == (DIMENSION,)
    with installation.redis.client as client:
        client.delete("posters:quarantine")


def test_an_image_request_of_an_older_producer_is_answered(installation, shot):
    """In the form that it reads: a JSON object with the space, and the vector as little-endian float32 in base64."""
    token = "0123456789abcdef" * 2
    with create_sender(installation.settings) as app, installation.redis.client as client:
        client.set(f"posters:query:{token}", shot.read_bytes(), px=20_000)
        options = {"task_id": token, "queue": "posters.interactive", "retry": False, "ignore_result": True}
        app.send_task("posters.query", args=[{"version": 1, "query": token}], **options)
        text = wait_for(lambda: client.lpop(f"posters:answer:{token}"), "the answer")
        assert not client.exists(f"posters:query:{token}", f"posters:request:{token}")
    answer = json.loads(text)
    assert answer["space"] == installation.producer.space().id
    vector = np.frombuffer(base64.b64decode(answer["vector"]), "<f4")
    assert vector @ installation.producer.embed_image(shot.read_bytes(), timeout=20) > 0.99999


def test_duplicates_of_a_real_collection(own_server, tmp_path):
    """A copy, a re-encoded and a blurred one are grouped, as text, JSON and HTML; --check tells them apart.

    And it names the poster of a crop, whatever its vector says.
    """
    installation = Installation(tmp_path, own_server)
    try:
        installation.worker("duplicates").wait_until_ready()
        drawn = [draw_one_of_many(number) for number in range(4)]
        for number, image in enumerate(drawn):
            (installation.root / f"film{number}.png").write_bytes(encoded(image, "PNG"))
        (installation.root / "copy.png").write_bytes(encoded(drawn[2], "PNG"))
        (installation.root / "again.jpg").write_bytes(encoded(drawn[1], "JPEG", quality=92))
        (installation.root / "like.png").write_bytes(encoded(drawn[3].filter(ImageFilter.GaussianBlur(16)), "PNG"))
        ledger = installation.index()
        assert (ledger["embedded"] + ledger["reused"], ledger["submitted"]) == (7, 7)
        found = json.loads(installation.run("duplicates", "--threshold", "0.999", "--json").stdout)
        names = sorted(sorted(member["id"] for member in group) for group in found["groups"])
        assert names == [["again.jpg", "film1.png"], ["copy.png", "film2.png"]]
        same = json.loads(installation.run("duplicates", "--same-content", "--json").stdout)
        assert [[member["id"] for member in group] for group in same["groups"]] == [["copy.png", "film2.png"]]
        page = tmp_path / "duplicates.html"
        done = installation.run("duplicates", "--threshold", "0.999", "--html", str(page))
        assert done.returncode == 0, done.stderr
        assert "group 2: 2 posters" in done.stdout
        assert "same content" in done.stdout
        assert "2 group(s) with 4 of 7 posters" in done.stderr
        assert page.read_text(encoding="utf-8").count('src="data:image/webp;base64,') == 4
        assert installation.run("export", str(tmp_path / "out"), "--format", "parquet").returncode == 0
        checked = installation.run("duplicates", "--threshold", "0.995", "--check")
        assert checked.returncode == 0, checked.stderr
        told = {line.split()[0]: line for line in checked.stdout.splitlines() if "." in line}
        assert [name for name, line in told.items() if "same picture" in line] == ["film1.png"]
        assert [name for name, line in told.items() if "similar picture" in line] == ["like.png"]
        assert "same content" in told["film2.png"]
        crop = tmp_path / "crop.jpg"
        crop.write_bytes(encoded(drawn[2].crop((60, 90, 340, 510)), "JPEG", quality=80))
        done = installation.run("identify", str(crop), "--check", "--json")
        assert done.returncode == 0, done.stderr
        (entry,) = json.loads(done.stdout)
        assert entry["verdict"] == "certain"
        best = entry["matches"][0]
        assert best["id"] in ("copy.png", "film2.png")
        assert (best["check"]["same"], best["check"]["mirrored"]) == (True, False)
        assert best["check"]["shown"] == pytest.approx([0.15, 0.15, 0.85, 0.85], abs=0.1)  # few features at its foot
        assert {match["id"] for match in entry["matches"] if match.get("check", {}).get("same")} <= {
            "copy.png",
            "film2.png",
        }
    finally:
        installation.close()


def test_an_image_that_crashes_its_worker_is_tried_once(own_server, tmp_path):
    """Its caller gets an error once the next child is ready, which then answers the next request."""
    installation = Installation(tmp_path, own_server)
    try:
        installation.worker("w", "--include", "tests.support.fault_injection").wait_until_ready()
        good = encoded(picture(60, 90), "PNG")
        with pytest.raises(UnreadablePoster, match=r"the image: crashed-worker"):
            installation.producer.embed_image(good + b"#kill-this-process", timeout=60)
        assert installation.producer.embed_image(good, timeout=60).shape == (DIMENSION,)
    finally:
        installation.close()


def test_waiting_ends_at_the_timeout(own_server, tmp_path):
    """Without a worker at once; with a busy one after the timeout."""
    installation = Installation(tmp_path, own_server)
    try:
        good = encoded(picture(60, 90), "PNG")
        with pytest.raises(NoWorker):
            installation.producer.embed_image(good)
        installation.worker("w", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="3").wait_until_ready()
        installation.producer.enqueue(installation.draw(2))
        time.sleep(1)
        began = time.monotonic()
        with pytest.raises(
            EmbedTimeout, match="no vector for the image within 1 s: w@tests is busy with other requests"
        ):
            installation.producer.embed_image(good, timeout=1)
        assert time.monotonic() - began < 2.5
    finally:
        installation.close()


@pytest.fixture
def two_models(own_server, tmp_path):
    """An installation, and a second model of the same dimension."""
    installation = Installation(tmp_path, own_server)
    yield installation, write_tiny_model(tmp_path / "second", seed=1)
    installation.close()


def spaces(installation):
    return json.loads(installation.run("spaces", "--json").stdout)


def test_a_new_model_fills_a_space_of_its_own_beside_the_old(two_models):
    """Readers use the old space until `spaces use`; comparing vectors of two spaces is refused."""
    installation, second = two_models
    names = installation.draw(12)
    old = installation.worker("old").wait_until_ready()
    assert installation.index()["embedded"] == 12
    first_space = installation.producer.space().id
    kept = Index.open(installation.settings, refresh_s=None)
    old_vector = installation.producer.embed(names[0], timeout=20)
    assert old.stop() == 0

    new = installation.worker("new", POSTERS_MODEL_NAME=second).wait_until_ready()
    new_space = installation.producer.space().id
    assert new_space != first_space
    refused = installation.run("identify", str(installation.root / names[0]))
    assert refused.returncode == 2
    assert f"makes vectors of the space {new_space}, and readers use {first_space}" in refused.stderr
    done = installation.run("index", str(installation.root / names[0]), str(installation.root / names[1]), "--json")
    assert "10 poster(s) are still missing" in done.stderr
    assert [(entry["current"], entry["complete"], entry["missing"]) for entry in spaces(installation)] == [
        (True, True, 0),
        (False, False, 10),
    ]
    vector = installation.producer.embed(names[0], timeout=20)
    assert space_of(vector) == new_space
    for queries in (vector, [vector, old_vector]):
        with pytest.raises(SpaceMismatch, match=f"{first_space}"):
            kept.search(queries)

    done = installation.run("index")
    assert done.returncode == 0, done.stderr
    assert f"python -m producer spaces use {new_space}" in done.stderr
    assert [entry["complete"] for entry in spaces(installation)] == [True, True]
    assert installation.run("spaces", "use", new_space).returncode == 0
    assert kept.refresh() is True
    assert kept.search(vector, k=1)[0].id == names[0]
    with pytest.raises(SpaceMismatch):
        kept.search(old_vector)
    identified = json.loads(installation.run("identify", str(installation.root / names[0]), "--json").stdout)
    assert identified[0]["space"] == new_space
    assert installation.run("spaces", "drop", first_space).returncode == 0
    assert [entry["id"] for entry in spaces(installation)] == [new_space]
    kept.close()
    assert new.stop() == 0


def test_batches_queued_for_the_old_model_never_land_in_the_new(two_models):
    """Their posters fail, and `retry` sends them for the new model."""
    installation, second = two_models
    names = installation.draw(24)
    old = installation.worker(
        "old", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="0.5"
    ).wait_until_ready()
    old_space = installation.producer.space().id
    jobs = [installation.producer.enqueue(names[start : start + 8]) for start in (0, 8, 16)]
    time.sleep(0.2)
    old.kill()
    ends = time.monotonic() + 30
    while installation.producer.workers() and time.monotonic() < ends:  # until its registry entry expires
        time.sleep(0.2)
    installation.worker("new", POSTERS_MODEL_NAME=second).wait_until_ready()
    new_space = installation.producer.space().id
    progresses = [job.wait(90) for job in jobs]
    assert all(progress.at_rest for progress in progresses)
    assert sum(progress.embedded + progress.failed for progress in progresses) == 24
    failures = [failure for job in jobs for failure in job.failures()]
    assert len(failures) >= 16
    assert all(failure.reason.startswith(f"queued for the space {old_space}") for failure in failures)
    store = installation.producer.store()
    assert store.count(new_space) == 0
    assert json.loads(installation.run("retry", jobs[2].id, "--json").stdout)["embedded"] == 8
    assert store.count(new_space) == 8
    store.close()


def test_workers_of_two_models_at_once_are_refused(two_models):
    """It is undefined where a poster would be stored: nothing is sent, and both spaces are named."""
    installation, second = two_models
    names = installation.draw(2)
    installation.worker("one")
    installation.worker("two", POSTERS_MODEL_NAME=second)
    for worker in installation.workers:
        worker.wait_until_ready()
    done = installation.run("index")
    assert done.returncode == 2
    assert "one@tests: " in done.stderr
    assert "two@tests: " in done.stderr
    with pytest.raises(SpaceMismatch, match="vectors of 2 spaces"):
        installation.producer.embed(names[0], timeout=20)


def test_a_job_that_is_still_being_sent_stops_when_the_model_is_changed(two_models, monkeypatch):
    """The producer gets an error instead of one failure per poster; the same command again does the rest."""
    monkeypatch.setattr("producer.queue_client.SPACE_CHECK_S", 0.0)
    installation, second = two_models
    names = installation.draw(3)
    old = installation.worker("old").wait_until_ready()
    job = installation.producer.begin()
    installation.producer.settings = installation.settings.model_copy(update={"posters_per_batch": 1})
    feed = installation.producer.feed(job, [Poster(name, name) for name in names])
    assert next(feed) == 1
    ends = time.monotonic() + 30
    while job.progress().embedded < 1 and time.monotonic() < ends:
        time.sleep(0.05)
    assert old.stop() == 0
    installation.worker("new", POSTERS_MODEL_NAME=second).wait_until_ready()
    with pytest.raises(SpaceMismatch, match="model was changed while posters were being sent"):
        next(feed)
    assert job.progress().submitted == 1
