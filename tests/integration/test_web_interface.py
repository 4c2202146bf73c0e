"""The served interface, without a worker: what each request does, and what it answers when it cannot."""

import json
import os
import threading
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import ImageOps

from bench.image_samples import encoded, picture
from producer.embedding import with_space
from producer.errors import EmbedTimeout
from producer.queue.claims import Claims
from producer.queue.progress import Failure, Outcome
from producer.queue.workers import READY, WorkerRegistry
from producer.vectors import open_store
from producer.vectors.sqlite import SQLiteStore
from producer.web import service as service_module
from tests.support.filled_store import OTHER, SPACE, fill, unit
from tests.support.ledger_jobs import batch, begin
from tests.support.served import HOSTILE, TITLE, jpeg, serving, write_collection
from tests.support.wait import wait_for

API = "/api/v1"


@pytest.fixture
def failed(ledger):
    """A finished job of four posters, of which `new` and `0` failed."""
    begin(ledger, batch())
    failures = (
        Failure("new", "new.jpg", "truncated", "it ends early"),
        Failure("1-0", "0.jpg", "missing", "there is no such file"),
    )
    Claims(ledger).finish(batch(), Outcome(embedded=2, failures=failures))


def problem(answer, status, name):
    """The problem details, after checking that they say what to do."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["type"].rsplit(":")[-1], found["status"]) == (name, status)
    assert all(found[name] for name in ("title", "detail", "action"))
    return found


def test_an_image_is_identified_by_its_bytes(client, monkeypatch):
    """Rank, score, title, file and everything else that the catalogue has; hostile text travels as text."""
    query = with_space(unit(3)[1], SPACE.id)
    asked = []
    monkeypatch.setattr(
        client.app.state.posters.producer, "embed_image", lambda *arguments: asked.append(arguments) or query
    )
    found = client.post(f"{API}/identify", files={"image": ("x.jpg", jpeg())}, data={"k": 2}).json()
    assert asked == [(jpeg(), 30.0, "x.jpg")]
    assert (found["space"], found["searched"], found["untrained"]) == (SPACE.id, 3, False)
    first, second = found["matches"]
    assert (first["rank"], first["id"], first["title"], first["about"]["year"]) == (1, HOSTILE, TITLE, 1999)
    assert first["score"] == pytest.approx(1)
    assert first["picture"] == f"{API}/posters/{quote(HOSTILE)}/picture"
    assert second["rank"] == 2


def test_one_image_gets_a_verdict(client, monkeypatch):
    """With its reason; thresholds once the space is calibrated. Pictures are compared on request.

    An image with bars is tried without them as well. All of it searches the vectors in memory.
    """
    producer, asked = client.app.state.posters.producer, []
    monkeypatch.setattr(
        producer, "embed_image", lambda data, *_: asked.append(data) or with_space(unit(3)[1], SPACE.id)
    )
    monkeypatch.setattr(producer, "space", lambda: SPACE)
    post = lambda data, **form: client.post(f"{API}/identify", files={"image": ("x.jpg", data)}, data=form).json()  # noqa: E731
    verdict = post(jpeg(1, 400))["verdict"]
    assert (verdict["verdict"], verdict["threshold"]) == ("not calibrated", None)
    assert verdict["score"] == pytest.approx(1)
    assert "calibrate" in verdict["reason"]
    monkeypatch.setattr(SQLiteStore, "read", lambda *_: pytest.fail("the whole store was read"))
    asked.clear()
    with_bars = post(encoded(ImageOps.expand(picture(400, 600), (0, 90)), "PNG"))
    assert len(asked) == 2
    assert with_bars["matches"][0]["id"] == HOSTILE
    pytest.importorskip("cv2")
    compared = post(jpeg(1, 400), check=True)
    assert all(match["check"] for match in compared["matches"])
    assert compared["verdict"]["reason"]


def test_words_and_weighted_sums_are_looked_for(client, monkeypatch):
    """Images, then addresses, then texts, each with its weight; a sum has no verdict."""
    vectors, producer = unit(3), client.app.state.posters.producer
    monkeypatch.setattr(producer, "embed_image", lambda *_: with_space(vectors[0], SPACE.id))
    monkeypatch.setattr(producer, "embed_text", lambda texts, _: with_space(vectors[1 : 1 + len(texts)], SPACE.id))
    found = client.post(f"{API}/identify", data={"text": "girl with umbrella"}).json()
    assert (found["matches"][0]["id"], found["verdict"]) == (HOSTILE, None)
    summed = {"text": ["a", "b"], "weight": [1, -0.5, 2]}
    found = client.post(f"{API}/identify", files={"image": ("x.jpg", jpeg())}, data=summed).json()
    expected = vectors[0] - 0.5 * vectors[1] + 2 * vectors[2]
    best = float(vectors[2] @ expected / np.linalg.norm(expected))
    assert (found["matches"][0]["id"], found["matches"][0]["score"]) == ("c", pytest.approx(best, abs=1e-5))
    for form in (
        {"text": ["a"], "weight": [0]},
        {"text": ["a"], "weight": [1, 2]},
        {"text": list("abcde")},
        {"text": "a", "check": True},
        {},
    ):
        problem(client.post(f"{API}/identify", data=form), 422, "invalid")


def test_a_text_is_no_name_of_a_file(client, monkeypatch, settings):
    """Whatever stands in it, nothing is opened on the server."""
    seen = []
    vector = with_space(unit(1), SPACE.id)
    monkeypatch.setattr(client.app.state.posters.producer, "embed_text", lambda texts, _: seen.extend(texts) or vector)
    for text in (str(settings.root / "a.jpg"), "/etc/passwd", "-", "2:a.jpg", "http://127.0.0.1/"):
        assert client.post(f"{API}/identify", data={"text": text}).status_code == 200
        assert seen.pop() == text


def test_an_address_of_this_machine_is_refused(client):
    """Before anything is sent there: it may be what others cannot reach."""
    for url in ("http://127.0.0.1:1/x.jpg", "http://[::1]/", "file:///etc/passwd", "http://localhost/"):
        answer = client.post(f"{API}/identify", data={"url": url})
        assert answer.status_code in (415, 422), answer.text


def test_what_is_no_image_or_too_large_is_refused_before_it_reaches_redis(client, settings):
    """By its content, whatever it is called; 413, 415 and 422."""
    post = lambda data, **form: client.post(f"{API}/identify", files={"image": ("x.jpg", data)}, data=form)  # noqa: E731
    assert "x.jpg" in problem(post(b"<svg onload=alert(1)>"), 415, "unsupported")["detail"]
    problem(post(b"\xff\xd8\xff" + bytes(33_000_000)), 413, "too-large")
    problem(post(jpeg(), k=0), 422, "invalid")
    problem(client.post(f"{API}/identify"), 422, "invalid")
    small = write_collection(settings.root.parent / "other", settings.redis_url, max_pixels=10_000)
    with serving(small) as bounded:
        answer = bounded.post(f"{API}/identify", files={"image": ("big.jpg", jpeg())})
        assert "120×180" in problem(answer, 413, "too-large")["detail"]


def test_without_a_worker_and_in_time_it_says_so(client, monkeypatch):
    """503 and 504, with the time after which to try again."""
    answer = client.post(f"{API}/identify", files={"image": ("x.jpg", jpeg())})
    problem(answer, 503, "no-worker")
    assert answer.headers["retry-after"] == "5"

    def late(*_):
        raise EmbedTimeout("no vector for x.jpg within 30 s")

    monkeypatch.setattr(client.app.state.posters.producer, "embed_image", late)
    problem(client.post(f"{API}/identify", files={"image": ("x.jpg", jpeg())}), 504, "timeout")


def test_requests_that_pile_up_are_refused(client, monkeypatch):
    """429 with Retry-After, while those that came before are answered."""
    service, ends, begun = client.app.state.posters, threading.Event(), threading.Semaphore(0)
    monkeypatch.setattr(service, "requests", service_module.Bounded("images", at_once=1, waiting=1, retry_s=2))

    def slow(*_):
        begun.release()
        assert ends.wait(30)
        return with_space(unit(1)[0], SPACE.id)

    monkeypatch.setattr(service.producer, "embed_image", slow)
    statuses = []
    ask = lambda: statuses.append(client.post(f"{API}/identify", files={"image": ("x.jpg", jpeg())}).status_code)  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=30)
    wait_for(lambda: service.requests._count == 2, "two requests")
    answer = client.post(f"{API}/identify", files={"image": ("x.jpg", jpeg())})
    problem(answer, 429, "busy")
    assert answer.headers["retry-after"] == "2"
    ends.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]


def test_the_collection_comes_in_pages_by_key(client):
    """Ascending ids; `next` leads through all of them once; filters and exact ids."""
    seen, after = [], ""
    while after is not None:
        page = client.get(f"{API}/posters", params={"limit": 2, "after": after}).json()
        seen += [poster["id"] for poster in page["posters"]]
        after = page["next"]
    assert seen == ["a", HOSTILE, "c"]
    by_year = client.get(f"{API}/posters", params={"where": "year=1988"}).json()["posters"]
    assert [poster["id"] for poster in by_year] == ["a", "c"]
    assert by_year[1]["title"] == r"bad \ud800 text"
    assert by_year[1]["about"]["note"] is None
    both = client.get(f"{API}/posters", params={"where": ["year=1988", "title=Alpha"]}).json()["posters"]
    assert [poster["file"] for poster in both] == ["a.jpg"]
    named = client.get(f"{API}/posters", params={"id": ["c", "unknown"]}).json()["posters"]
    assert [poster["id"] for poster in named] == ["c"]


def test_a_poster_is_embedded_missing_or_failed(client, failed):
    """Missing: a file without a vector. Failed: in one of the newest jobs, and not embedded since."""
    missing = client.get(f"{API}/posters", params={"state": "missing"}).json()["posters"]
    assert [(poster["id"], poster["state"], poster["title"]) for poster in missing] == [
        ("new", "missing", "Not embedded")
    ]
    found = client.get(f"{API}/posters", params={"state": "failed"}).json()["posters"]
    assert [(poster["id"], poster["word"]) for poster in found] == [("1-0", "missing"), ("new", "truncated")]
    state = lambda poster: client.get(f"{API}/posters/{quote(poster)}").json().get("state")  # noqa: E731
    assert [state(poster) for poster in ("a", HOSTILE, "new", "1-0")] == ["embedded", "embedded", "failed", "failed"]
    problem(client.get(f"{API}/posters/nothing"), 404, "not-found")


def test_files_without_a_vector_come_in_the_order_of_a_scan(client, settings):
    """Page by page, each once, also from folders and with names that are no UTF-8."""
    names = ["b.jpg", "folder/z.jpg", "folder/sub/y.jpg", "g.jpg", "a/x.jpg"]
    for name in names:
        (settings.root / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.root / name).write_bytes(jpeg())
    seen, after = [], ""
    while after is not None:
        page = client.get(f"{API}/posters", params={"state": "missing", "limit": 1, "after": after}).json()
        seen += [poster["file"] for poster in page["posters"]]
        after = page["next"]
    assert seen == ["b.jpg", "g.jpg", "new.jpg", "a/x.jpg", "folder/z.jpg", "folder/sub/y.jpg"]


def test_a_picture_is_small_and_known_by_its_content(client, settings):
    """A WebP within the width; 304 for who has it; another one when the file changes; 404 without a file."""
    answer = client.get(f"{API}/posters/{quote(HOSTILE)}/picture", params={"width": 100})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert answer.content[8:12] == b"WEBP"
    etag = {"If-None-Match": answer.headers["etag"]}
    known = client.get(f"{API}/posters/{quote(HOSTILE)}/picture", params={"width": 160}, headers=etag)
    assert (known.status_code, known.content) == (304, b"")
    (settings.root / "folder" / "b.png").write_bytes(jpeg(7))
    changed = client.get(f"{API}/posters/{quote(HOSTILE)}/picture", params={"width": 100}, headers=etag)
    assert changed.status_code == 200
    assert changed.content != answer.content
    problem(client.get(f"{API}/posters/nothing/picture"), 404, "not-found")
    problem(client.get(f"{API}/posters/a/picture", params={"width": 5000}), 422, "invalid")
    (settings.root / "c.jpg").write_bytes(b"broken")
    problem(client.get(f"{API}/posters/c/picture"), 404, "not-found")


def test_posters_like_one_of_the_collection(client):
    """Itself left out; 404 for one that has no vector."""
    found = client.get(f"{API}/posters/a/similar", params={"k": 1}).json()
    assert [match["rank"] for match in found["matches"]] == [1]
    assert found["matches"][0]["id"] != "a"
    problem(client.get(f"{API}/posters/new/similar"), 404, "not-found")


def test_a_removed_poster_loses_its_vectors_and_its_file_on_request(client, settings):
    """From every space; the file only with `file`."""
    store = open_store(settings.store)
    fill(store, ["a"], space=OTHER)
    assert client.delete(f"{API}/posters/a").status_code == 204
    assert not [info for info in store.spaces() if store.rows(info.space.id, ["a"])]
    assert (settings.root / "a.jpg").exists()
    problem(client.delete(f"{API}/posters/a"), 404, "not-found")
    assert client.delete(f"{API}/posters/c", params={"file": True}).status_code == 204
    assert not (settings.root / "c.jpg").exists()
    (settings.root / "folder" / "b.png").unlink()
    assert client.delete(f"{API}/posters/{quote(HOSTILE)}", params={"file": True}).status_code == 204, "its vector"
    store.close()


def test_uploads_are_written_and_queued(client, settings, redis_url):
    """Under safe names in `uploads`, never over another file; a job for them."""
    post = lambda *files: client.post(f"{API}/posters", files=[("files", file) for file in files])  # noqa: E731
    answer = post(("../../x.jpg", jpeg(1)), ("two.png", jpeg(2)))
    assert answer.status_code == 202, answer.text
    assert answer.json()["posters"] == ["uploads/x.jpg", "uploads/two.jpg"]
    job = client.get(answer.headers["location"]).json()
    assert (job["submitted"], job["state"]) == (2, "sent")
    assert (settings.root / "uploads" / "x.jpg").read_bytes() == jpeg(1)
    assert post(("x.jpg", jpeg(1))).json()["posters"] == ["uploads/x.jpg"], "the same bytes"
    assert post(("x.jpg", jpeg(3))).json()["posters"] == ["uploads/x-2.jpg"]
    assert (settings.root / "uploads" / "x.jpg").read_bytes() == jpeg(1)


def test_uploads_are_written_whole_or_not_at_all(client, settings, redis_server):
    """One that is no image, too many, or no Redis: nothing stays behind."""
    post = lambda *files: client.post(f"{API}/posters", files=[("files", file) for file in files])  # noqa: E731
    problem(post(("x.jpg", jpeg(1)), ("y.jpg", b"no image")), 415, "unsupported")
    assert client.post(f"{API}/posters", files=[("files", ("x.jpg", jpeg(1)))] * 21).status_code in (400, 413, 422)
    assert list((settings.root / "uploads").iterdir()) == []
    (settings.root / "uploads").rmdir()
    settings.root.chmod(0o500)
    if not os.access(settings.root, os.W_OK):  # root may write all the same
        problem(post(("x.jpg", jpeg(1))), 403, "read-only")
    settings.root.chmod(0o700)
    redis_server.stop()
    try:
        problem(post(("x.jpg", jpeg(1))), 503, "redis-unreachable")
    finally:
        redis_server.start()
    assert list((settings.root / "uploads").iterdir()) == []


def test_a_job_is_begun_followed_and_cancelled(client):
    """Its address at once; it is listed; events end with its end."""
    answer = client.post(f"{API}/jobs", json={"kind": "index"})
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    assert answer.headers["location"] == f"{API}/jobs/{job}"
    assert wait_for(lambda: client.get(f"{API}/jobs/{job}").json()["state"] == "sent", "the sending")
    assert [one["job"] for one in client.get(f"{API}/jobs").json()["jobs"]] == [job]
    cancelled = client.delete(f"{API}/jobs/{job}").json()
    assert (cancelled["state"], cancelled["cancelled"], cancelled["submitted"]) == ("cancelled", 4, 0)
    events = client.get(f"{API}/jobs/{job}/events").text
    assert [line for line in events.splitlines() if line.startswith("event")] == ["event: progress", "event: end"]
    problem(client.get(f"{API}/jobs/nothing"), 404, "job-unknown")
    problem(client.delete(f"{API}/jobs/nothing"), 404, "job-unknown")


def test_events_tell_each_change_once(client, ledger):
    """A reader who names the last event that it saw gets what came after it, and the end."""
    begin(ledger, batch(1), batch(2))
    Claims(ledger).finish(batch(1), Outcome(embedded=4))
    events = []

    def finish():
        wait_for(lambda: service.streams._count, "the reader")
        Claims(ledger).finish(batch(2), Outcome(embedded=4))

    service = client.app.state.posters
    thread = threading.Thread(target=finish)
    thread.start()
    text = client.get(f"{API}/jobs/job/events").text
    thread.join()
    events = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if "data" in block
    ]
    names = [(event["event"], json.loads(event["data"])["done"]) for event in events]
    assert names in ([("progress", 4), ("progress", 8), ("end", 8)], [("progress", 8), ("end", 8)])
    again = client.get(f"{API}/jobs/job/events", headers={"Last-Event-ID": events[-1]["id"]}).text
    assert "event: progress" not in again
    problem(client.get(f"{API}/jobs/nothing/events"), 404, "job-unknown")
    assert service.streams._count == 0
    assert "event: end" in again


def test_jobs_begin_while_bulk_work_is_paused(client, monkeypatch):
    """What is sent and waits for a worker holds nobody up; only very many are refused, with the way out."""
    client.post(f"{API}/lanes/bulk/pause")
    statuses = [client.post(f"{API}/jobs", json={"kind": "force"}).status_code for _ in range(6)]
    assert statuses == [202] * 6
    monkeypatch.setattr(service_module, "SENDERS_MOST", 6)
    answer = client.post(f"{API}/jobs", json={"kind": "index"})
    assert "rests" in problem(answer, 429, "busy")["detail"]
    assert answer.headers["retry-after"] == "30"
    client.delete(f"{API}/jobs/last")
    wait_for(lambda: client.post(f"{API}/jobs", json={"kind": "index"}).status_code == 202, "a sender that has ended")


def test_an_id_may_end_as_an_address_does(redis_url, tmp_path):
    """Its last slash is written out where it would otherwise name the picture of another poster."""
    settings = write_collection(tmp_path, redis_url)
    store = open_store(settings.store)
    fill(store, ["a/picture", "a/similar", "a/picture/similar"], unit(3, seed=2))
    store.close()
    with serving(settings) as client:
        listed = client.get(f"{API}/posters", params={"id": ["a/picture", "a/similar"]}).json()["posters"]
        assert [poster["picture"] for poster in listed] == [
            f"{API}/posters/a/picture/picture",
            f"{API}/posters/a/similar/picture",
        ]
        read = lambda path: client.get(f"{API}/posters/{path}").json().get("id")  # noqa: E731
        assert [read(path) for path in ("a%2Fpicture", "a%2fsimilar", "a/picture%2Fsimilar", "a")] == [
            "a/picture", "a/similar", "a/picture/similar", "a",
        ]  # fmt: skip
        assert client.get(f"{API}/posters/a/picture").headers["content-type"] == "image/webp"
        assert client.get(f"{API}/posters/a/picture/similar").json()["matches"]
        assert client.delete(f"{API}/posters/a/picture").status_code == 204
        problem(client.get(f"{API}/posters/a%2Fpicture"), 404, "not-found")
        assert read("a%2Fsimilar")


def test_work_outside_the_posters_root_is_refused(client):
    """As are unknown kinds and fields; nothing is begun."""
    problem(client.post(f"{API}/jobs", json={"kind": "index", "paths": ["/etc"]}), 422, "invalid")
    problem(client.post(f"{API}/jobs", json={"kind": "burn"}), 422, "invalid")
    problem(client.post(f"{API}/jobs", json={"kind": "index", "surprise": 1}), 422, "invalid")
    problem(client.post(f"{API}/jobs", json={"kind": "index", "yes": True}), 422, "invalid")
    assert client.get(f"{API}/jobs").json()["jobs"] == []


def test_pruning_refuses_what_looks_like_an_accident(client, settings):
    """409 with the numbers and the way out; a dry run lists what would go; `yes` prunes."""
    prune = lambda **fields: client.post(f"{API}/jobs", json={"kind": "prune", **fields})  # noqa: E731
    (settings.root / "a.jpg").unlink()
    (settings.root / "c.jpg").unlink()
    refused = problem(prune(), 409, "prune-refused")
    assert "2 of 3" in refused["detail"]
    assert "`yes`" in refused["action"]
    assert "--" not in refused["detail"], "options of the command"
    looked = prune(dry_run=True)
    assert looked.status_code == 200
    found = looked.json()
    assert found.pop("doubt").startswith("2 of 3")
    assert found == {"held": 3, "gone": 2, "pruned": 0, "empty": 0, "hidden": 0, "ids": ["a", "c"]}
    assert prune(dry_run=True, paths=["folder"]).json()["held"] == 1
    assert prune(dry_run=True, yes=True).json()["doubt"] is None
    pruned = prune(yes=True)
    assert (pruned.status_code, pruned.json()["gone"], pruned.json()["pruned"]) == (200, 2, 2)
    assert prune().json() == {
        "held": 1, "gone": 0, "pruned": 0, "empty": 0, "hidden": 0, "ids": [], "doubt": None
    }  # fmt: skip
    for body in ({"kind": "verify", "dry_run": True}, {"kind": "prune", "paths": ["/etc"]}):
        problem(client.post(f"{API}/jobs", json=body), 422, "invalid")


def test_nothing_is_pruned_where_the_disk_or_the_catalogue_looks_wrong(client, settings):
    """No poster at all is refused whatever is sent; below a folder that was never filled, only `yes` prunes."""
    prune = lambda **fields: client.post(f"{API}/jobs", json={"kind": "prune", **fields})  # noqa: E731
    right = settings.catalogue.read_text(encoding="utf-8")
    wrong = [{"file": f"elsewhere/{one}.jpg", "id": one} for one in ("a", "c")]
    settings.catalogue.write_text(json.dumps(wrong), encoding="utf-8")
    assert "the catalogue the right one" in problem(prune(), 409, "prune-refused")["detail"]
    settings.catalogue.write_text(right, encoding="utf-8")
    away, mount_point = settings.root.with_name("away"), settings.root / "folder"
    mount_point.rename(away)
    mount_point.mkdir()
    os.utime(mount_point, (1, 1))  # as a mount point that is older than the vectors
    kept = prune().json()
    assert (kept["held"], kept["gone"], kept["empty"]) == (3, 0, 1)
    assert prune(dry_run=True, yes=True).json()["ids"] == [HOSTILE]
    settings.root.rename(settings.root.with_name("unmounted"))
    settings.root.mkdir()
    for fields in ({}, {"yes": True}, {"dry_run": True}):
        refused = problem(prune(**fields), 409, "prune-refused")
        assert "no poster at all" in refused["detail"]
        assert "`yes`" not in refused["action"], "that would not help"
    assert len(client.get(f"{API}/posters").json()["posters"]) == 3


def test_failures_are_listed_and_sent_again(client, failed):
    """By word, in pages; one, all of a kind, or all."""
    page = client.get(f"{API}/failures", params={"job": "job"}).json()
    assert [(failure["id"], failure["word"]) for failure in page["failures"]] == [
        ("1-0", "missing"),
        ("new", "truncated"),
    ]
    assert page["next"] is None
    first = client.get(f"{API}/failures", params={"limit": 1}).json()
    assert (first["job"], first["next"]) == ("job", "1-0")
    second = client.get(f"{API}/failures", params={"limit": 1, "after": "1-0"}).json()
    assert [failure["id"] for failure in second["failures"]] == ["new"]
    assert client.get(f"{API}/failures", params={"word": "missing"}).json()["failures"] == page["failures"][:1]
    problem(client.get(f"{API}/failures", params={"word": "burned"}), 422, "invalid")
    for body, submitted in (({"only": "truncated"}, 1), ({"ids": ["1-0"]}, 1), ({}, 2)):
        job = client.post(f"{API}/jobs/job/retry", json=body).json()["job"]
        wait_for(lambda job=job: client.get(f"{API}/jobs/{job}").json()["state"] == "sent", "the sending")
        assert client.get(f"{API}/jobs/{job}").json()["submitted"] == submitted
        client.delete(f"{API}/jobs/{job}")
    problem(client.post(f"{API}/jobs/job/retry", json={"ids": ["other"]}), 404, "not-found")
    problem(client.post(f"{API}/jobs/none/retry", json={}), 404, "job-unknown")


def test_failures_whose_ids_are_no_text_come_in_pages(client, ledger):
    """`next` and `after` have them written out, as the ids of the page."""
    begin(ledger, batch())
    ids = ["a", "b\udce9", "b~", "c"]
    failures = tuple(Failure(one, one, "missing", "there is no such file") for one in ids)
    Claims(ledger).finish(batch(), Outcome(failures=failures))
    after, found = "", []
    while after is not None:
        page = client.get(f"{API}/failures", params={"limit": 1, "after": after}).json()
        found += [failure["id"] for failure in page["failures"]]
        after = page["next"]
    assert found == ["a", "b\\xe9", "b~", "c"]


def test_duplicates_come_in_groups(client):
    """Of the same content here; by a threshold that is checked."""
    found = client.get(f"{API}/duplicates", params={"same_content": True}).json()
    assert (found["total"], found["posters"], found["threshold"]) == (1, 3, None)
    assert [(one["id"], one["same_content"]) for one in found["groups"][0]] == [("a", False), ("c", True)]
    assert client.get(f"{API}/duplicates", params={"skip": 1}).json()["groups"] == []
    problem(client.get(f"{API}/duplicates", params={"threshold": 0}), 422, "invalid")


def test_readers_are_given_another_space(client, settings):
    """Refused with 409 while it lacks posters, unless `yes`; 409 for one that is not there."""
    store = open_store(settings.store)
    fill(store, ["a"], space=OTHER)
    store.close()
    listed = {space["id"]: space for space in client.get(f"{API}/spaces").json()["spaces"]}
    assert [(listed[one.id]["current"], listed[one.id]["complete"]) for one in (SPACE, OTHER)] == [
        (True, True),
        (False, False),
    ]
    assert (
        "2 poster(s)"
        in problem(client.put(f"{API}/spaces/current", json={"space": OTHER.id}), 409, "incomplete")["detail"]
    )
    chosen = client.put(f"{API}/spaces/current", json={"space": OTHER.id[:8], "yes": True}).json()["spaces"]
    assert [space["id"] for space in chosen if space["current"]] == [OTHER.id]
    problem(client.put(f"{API}/spaces/current", json={"space": "nothing"}), 409, "conflict")


def test_workers_and_lanes_are_as_they_are(client, redis_url, ledger):
    """What a worker publishes of itself; how much waits, since when, and whether bulk rests."""
    registry = WorkerRegistry(redis_url)
    registry.publish("w@h/7/x", READY, {"pid": 7, "device": "cpu", "images_per_second": "81.5"})
    registry.close()
    (worker,) = client.get(f"{API}/workers").json()["workers"]
    assert (worker["name"], worker["state"], worker["images_per_second"]) == ("w@h", "ready", 81.5)
    begin(ledger, batch(), job="job")
    client.app.state.posters.producer.send(batch())
    lanes = {lane["lane"]: lane for lane in client.get(f"{API}/lanes").json()["lanes"]}
    assert (lanes["bulk"]["queued"], lanes["bulk"]["paused_since"]) == (1, None)
    assert 0 <= lanes["bulk"]["oldest_s"] < 60
    paused = {lane["lane"]: lane for lane in client.post(f"{API}/lanes/bulk/pause").json()["lanes"]}
    assert paused["bulk"]["paused_since"] > 1e9
    assert paused["interactive"]["paused_since"] is None
    assert paused["bulk"]["rests"].startswith("paused since 20")
    resumed = client.post(f"{API}/lanes/bulk/resume").json()["lanes"]
    assert [(lane["paused_since"], lane["rests"]) for lane in resumed] == [(None, None)] * 2
    problem(client.post(f"{API}/lanes/bulk/stop"), 422, "invalid")


def test_it_is_part_of_somebodys_own_application(redis_url, tmp_path, monkeypatch):
    """examples/backend.py: under a prefix, behind its login, in fewer than 60 lines."""
    from tests.support.project import PROJECT

    assert len((PROJECT / "examples" / "backend.py").read_text(encoding="utf-8").splitlines()) < 60
    settings = write_collection(tmp_path, redis_url)
    for name in ("redis_url", "root", "catalogue", "store"):
        monkeypatch.setenv(f"POSTERS_{name.upper()}", str(getattr(settings, name)))
    from examples.backend import app

    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/library/api/v1/jobs").status_code == 422
        key = {"X-Key": "secret-of-ann"}
        first = client.get("/library/api/v1/posters", headers=key).json()["posters"][0]
        assert first["picture"] == "/library/api/v1/posters/a/picture"
        assert 'href="/library/static/style.css"' in client.get("/library/", headers=key).text
        assert list(client.get("/library/api/v1/openapi.json", headers=key).json()["paths"])


def test_an_empty_installation_is_answered(redis_url, tmp_path):
    """No store, no job, no poster: empty lists, and a reason where something is needed."""
    from producer.settings import load_settings
    from tests.support.redis_server import RedisServer

    (tmp_path / "posters").mkdir()
    url = RedisServer.as_backend(redis_url)
    settings = load_settings(
        redis_url=url, root=tmp_path / "posters", store=f"sqlite:{tmp_path}/v.db", catalogue="none"
    )
    with serving(settings) as client:
        assert client.get(f"{API}/posters").json() == {"posters": [], "next": None}
        assert client.get(f"{API}/failures").json() == {"job": None, "failures": [], "next": None}
        assert client.get(f"{API}/spaces").json() == {"spaces": []}
        problem(client.get(f"{API}/duplicates"), 409, "conflict")
        problem(client.get(f"{API}/map"), 409, "conflict")
        assert "holds no vectors yet" in client.get("/map").text
        assert client.post(f"{API}/jobs", json={"kind": "prune"}).json()["held"] == 0
    assert not (tmp_path / "v.db").exists()


def test_closing_the_server_ends_what_it_sends(settings, ledger):
    """Its job is sent as far as it was, and can be finished by the workers."""
    with serving(settings) as client:
        job = client.post(f"{API}/jobs", json={"kind": "force"}).json()["job"]
        wait_for(lambda: client.get(f"{API}/jobs/{job}").json()["submitted"] == 4, "the sending")
        threads = client.app.state.posters.senders._threads
        assert threads
    assert not threads
    assert ledger.progress(job).state == "sent"
