"""The pages, without script and without a worker: what they show, and what their forms do."""

import re
import time
from importlib.util import find_spec

from producer import Producer
from producer.embedding import with_space
from producer.queue.claims import Claims
from producer.queue.progress import Failure, Outcome
from producer.queue.workers import LOADING, READY, WorkerRegistry
from producer.settings import load_settings
from producer.vectors import open_store
from tests.support.filled_store import OTHER, SPACE, fill, unit
from tests.support.ledger_jobs import batch, begin
from tests.support.served import jpeg


def text(answer):
    """What a person reads."""
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.text))


def test_now_claims_nothing_that_only_redis_knows(client, monkeypatch):
    """Without it, there may be jobs and workers all the same."""
    producer = Producer(load_settings(redis_url="redis://127.0.0.1:1"))
    monkeypatch.setattr(client.app.state.posters, "producer", producer)
    shown = text(client.get("/"))
    assert "127.0.0.1:1" in shown
    assert "Nothing is known of the jobs. Workers Nothing is known of the workers." in shown
    producer.close()


def test_now_shows_jobs_workers_queues_and_room(client, ledger, redis_url):
    """A job that runs has a bar; a worker is shown with what it says of itself, however little."""
    assert "No worker is alive" in text(client.get("/"))
    begin(ledger, batch(1), batch(2))
    Claims(ledger).finish(batch(1), Outcome(embedded=4))
    registry = WorkerRegistry(redis_url)
    registry.publish("new@h/6/x", LOADING, {"stage": "weights"})
    quiet = {"quiet_until": "2026-11-29T23:30+01:00"}
    registry.publish("idle@h/5/x", READY, quiet | {"unloaded_since": repr(time.time() - 600)})
    speed = {"images_per_second": "81.5", "bottleneck": "decode-bound"}
    registry.publish("w@h/7/x", READY, quiet | speed | {"device": "cuda:0", "reloaded_s": "7.3"})
    registry.close()
    page = client.get("/")
    assert '<progress max="8" value="4"' in page.text
    shown = text(page)
    for expected in (
        "4 of 8 · 50 %",
        "4 embedded",
        "w@h",
        "cuda:0",
        "81.5 images/s",
        "decode-bound",
        "weights",
        "0 wait · rests: quiet hours until 23:30",
        "bulk work rests: quiet hours until 23:30",
        "its memory is free: the model was unloaded 10 min ago, until work comes",
        "was loaded again in 7.3 s",
        "free",
    ):
        assert expected in shown
    assert "MB used" in shown


def test_its_forms_pause_resume_begin_cancel_and_prune(client, settings):
    """Each leads back to a page that shows what it did."""
    assert client.post("/lanes/bulk", data={"action": "pause"}).headers["location"] == "/"
    assert "rests: paused since 20" in text(client.get("/"))
    client.post("/lanes/bulk", data={"action": "resume"})
    assert "rests: paused since 20" not in text(client.get("/"))
    assert client.post("/jobs/begin", data={"kind": "index"}).headers["location"] == "/"
    (job,) = client.get("/api/v1/jobs").json()["jobs"]
    assert job["job"] in text(client.get("/"))
    client.post("/jobs/cancel", data={"job": job["job"]})
    assert client.get(f"/api/v1/jobs/{job['job']}").json()["state"] == "cancelled"
    (settings.root / "a.jpg").unlink()
    (settings.root / "c.jpg").unlink()
    shown = client.post("/prune")
    assert "2 of 3 posters in the store have no file any more. Nothing was deleted yet." in text(shown)
    assert 'name="yes" value="true" required' in shown.text
    refused = client.post("/prune", data={"sure": "true"})
    assert (refused.status_code, "2 of 3" in refused.text) == (409, True)
    assert "2 of 3 posters were pruned" in text(client.post("/prune", data={"sure": "true", "yes": "true"}))
    assert "0 of 1 posters were pruned" in text(client.post("/prune"))


def test_find_shows_the_image_beside_its_matches(client, monkeypatch):
    """With rank, title, file, score, and what the catalogue says."""
    page = client.get("/find")
    assert "Drop an image here" in text(page)
    assert ('name="check" value="true" checked' in page.text) == (find_spec("cv2") is not None)
    query = with_space(unit(3)[0], SPACE.id)
    monkeypatch.setattr(client.app.state.posters.producer, "embed_image", lambda *_: query)
    page = client.post("/find", files={"image": ("mine.jpg", jpeg())})
    assert 'src="data:image/jpeg;base64,' in page.text
    shown = text(page)
    for expected in (
        "is the best match for mine.jpg",
        "3 posters searched",
        "1.0000",
        "year: 1988",
        "not calibrated",
    ):
        assert expected in shown
    of_texts = with_space(unit(3)[:1], SPACE.id)
    monkeypatch.setattr(client.app.state.posters.producer, "embed_text", lambda *_: of_texts)
    of_words = client.post("/find", data={"text": "<b>"}).text
    assert "is the best match for <b>&lt;b&gt;</b>" in of_words
    assert ">Alpha</a>" in of_words


def test_failures_can_be_sent_again_one_by_one_or_by_kind(client, ledger):
    """Each with its word and reason."""
    assert "No jobs yet" in text(client.get("/failures"))
    begin(ledger, batch())
    failures = (
        Failure("a", "a.jpg", "truncated", "it ends early"),
        Failure("c", "c.jpg", "missing", "it is not there"),
    )
    Claims(ledger).finish(batch(), Outcome(embedded=2, failures=failures))
    shown = text(client.get("/failures"))
    for expected in ("truncated", "it ends early", "missing", "c.jpg", "2 failed"):
        assert expected in shown
    assert "it ends early" not in text(client.get("/failures", params={"word": "missing"}))
    client.post("/failures/retry", data={"job": "job", "id": "a"})
    client.post("/failures/retry", data={"job": "job", "only": "missing"})
    jobs = client.get("/api/v1/jobs").json()["jobs"]
    assert len(jobs) == 3
    assert client.post("/failures/retry", data={"job": "job", "id": "none"}).status_code == 404


def test_the_collection_its_duplicates_and_one_poster(client):
    """Pictures with links; filters; groups side by side; posters like one."""
    page = client.get("/collection", params={"where": "year=1988"})
    assert page.text.count('<li class="card">') == 2
    assert 'src="/api/v1/posters/a/picture?width=320"' in page.text
    assert "Not embedded" in text(client.get("/collection", params={"state": "missing"}))
    assert "None." in text(client.get("/collection", params={"state": "failed"}))
    assert "same content" in text(client.get("/duplicates", params={"same_content": "true"}))
    shown = text(client.get("/posters/a"))
    for expected in ("Alpha", "1988", "Posters like this one"):
        assert expected in shown
    unknown = client.get("/posters/nothing")
    assert (unknown.status_code, "/api/v1/" in unknown.text, 'href="/collection"' in unknown.text) == (404, False, True)
    assert client.get("/collection", params={"state": "burned"}).status_code == 422


def test_uploaded_posters_are_queued(client, settings):
    """From the form of the collection."""
    client.post("/collection", files=[("files", ("x.jpg", jpeg(1))), ("files", ("y.jpg", jpeg(2)))])
    assert sorted(path.name for path in (settings.root / "uploads").iterdir()) == ["x.jpg", "y.jpg"]
    assert client.get("/api/v1/jobs/last").json()["submitted"] == 2


def test_spaces_stand_side_by_side_and_can_be_switched(client, settings):
    """Not one that lacks posters, unless that is ticked."""
    store = open_store(settings.store)
    fill(store, ["a"], space=OTHER)
    store.close()
    shown = text(client.get("/spaces"))
    for expected in ("ViT-B-32", "in use", "ViT-L-14", "2 posters missing"):
        assert expected in shown
    assert client.post("/spaces/use", data={"space": OTHER.id}).status_code == 409
    assert client.post("/spaces/use", data={"space": OTHER.id, "yes": "true"}).headers["location"] == "/spaces"
    assert client.get("/api/v1/spaces").json()["spaces"][1]["current"]
