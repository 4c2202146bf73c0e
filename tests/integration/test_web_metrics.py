"""The figures of the queue at /metrics of `serve`, and who may read them."""

from producer.metrics.families import QUEUE
from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.workers import READY, UNLOADED_SINCE, WorkerRegistry
from tests.support.ledger_jobs import batch, begin
from tests.support.prometheus import NEEDS_PROMTOOL, Scraped, free_port, promtool
from tests.support.served import serving, write_collection

TOKEN = "a-token-of-thirty-two-characters"


def test_the_queue_is_measured_where_it_is_served(redis_url, tmp_path):
    """Lanes, requests, jobs, dead letters, workers, Redis: all that the catalogue of metrics names."""
    settings, store = write_collection(tmp_path, redis_url), JobStore(redis_url)
    registry = WorkerRegistry(redis_url)
    registry.publish("w@tests/1/a", READY, {})
    registry.publish("w@tests/2/b", READY, {"fault": "it takes no messages"})
    registry.publish("w@tests/3/c", READY, {UNLOADED_SINCE: 1.0})
    with serving(settings) as client:
        figures = Scraped(client.get("/metrics").text)
        found, known = figures.declared(QUEUE)
        assert found == known
        assert (
            figures["posters_redis_up",]
            == figures["posters_workers", READY]
            == figures["posters_workers", "faulty"]
            == figures["posters_workers", "unloaded"]
            == 1
        )
        assert figures["posters_workers", "failed"] == figures["posters_open_batches",] == 0
        assert figures["posters_queue_messages", "bulk"] == figures["posters_queue_oldest_seconds", "bulk"] == 0
        assert figures["posters_redis_memory_used_bytes",] > 100_000
        client.app.state.posters.producer.claims.pause()
        begin(store, batch(1), batch(2), job="waits")
        client.app.state.posters.producer.send(batch(1, job="waits"))
        DeadLetters(store).put("x", "it is no message")
        figures = Scraped(client.get("/metrics").text)
        for name in ("posters_bulk_resting", "posters_jobs_active", "posters_dead_letters"):
            assert figures[name,] == 1, name
        assert (figures["posters_open_batches",], figures["posters_queue_messages", "bulk"]) == (2, 1)
    store.close()


def test_the_age_of_what_waits_is_that_of_its_job(redis_url, tmp_path):
    """No worker takes it."""
    store = JobStore(redis_url)
    begin(store, batch(1), job="old")
    store.redis.hset("posters:job:old", "created", store.created("old") - 100)
    with serving(write_collection(tmp_path, redis_url)) as client:
        client.app.state.posters.producer.send(batch(1, job="old"))
        figures = Scraped(client.get("/metrics").text)
    assert figures["posters_queue_messages", "bulk"] == 1
    assert 100 <= figures["posters_queue_oldest_seconds", "bulk"] < 160
    store.close()


def test_without_redis_that_is_said(tmp_path):
    """With status 200: the exporter is well, and an alert can tell the two apart."""
    settings = write_collection(tmp_path, f"redis://127.0.0.1:{free_port()}/0")
    with serving(settings) as client:
        answer = client.get("/metrics")
    figures = Scraped(answer.text)
    assert answer.status_code == 200
    assert {key: value for key, value in figures.items() if key[0].startswith("posters")} == {("posters_redis_up",): 0}


def test_served_metrics_need_the_token(redis_url, tmp_path):
    """As everything else that is served; Prometheus sends it as `authorization`."""
    with serving(write_collection(tmp_path, redis_url, web_token=TOKEN)) as client:
        refused = client.get("/metrics")
        assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
        answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")


@NEEDS_PROMTOOL
def test_promtool_finds_nothing_to_mend(redis_url, tmp_path):
    """Names, types, units and texts follow Prometheus' conventions."""
    with serving(write_collection(tmp_path, redis_url)) as client:
        promtool("check", "metrics", text=client.get("/metrics").text)
