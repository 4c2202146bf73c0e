"""The worker registry: a worker that stops renewing its entry is not alive."""

import pytest

from producer.queue.jobs import JobStore
from producer.queue.workers import FAILED, LOADING, READY, WAITING, WorkerRegistry
from producer.settings import load_settings
from worker.runtime.heartbeat import Heartbeat


@pytest.fixture
def registry(redis_url):
    registry = WorkerRegistry(redis_url)
    yield registry
    registry.close()


def test_workers_of_one_name_do_not_speak_for_each_other(registry):
    """Two on one machine, or in two containers that are both process 1: a word of one is not the other's."""
    registry.publish("w@h/1/aa", READY, {"space": "s"})
    registry.publish("w@h/1/bb", WAITING, {})
    assert [(worker.name, worker.state) for worker in registry.alive()] == [("w@h", READY), ("w@h", WAITING)]
    assert registry.get("w@h/1/aa").get("space") == "s"
    assert registry.find("w@h").state == WAITING, "who spoke last"
    registry.withdraw("w@h/1/bb")
    assert registry.find("w@h").state == READY
    assert registry.get("w@h/1/bb") is registry.find("h") is None


def test_a_failure_is_past_as_soon_as_the_worker_was_started_anew(registry):
    """Otherwise a failure that is fixed would be reported for another quarter of a minute."""
    registry.publish("w@h/1/aa", FAILED, {"reason": "no weights"})
    registry.publish("v@h/2/cc", FAILED, {})
    assert len(registry.alive()) == 2
    registry.publish("w@h/3/bb", LOADING, {})
    assert [(worker.owner, worker.state) for worker in registry.alive()] == [
        ("v@h/2/cc", FAILED),
        ("w@h/3/bb", LOADING),
    ]


def test_announcements_expire_and_are_withdrawn(redis_url, redis_server):
    """Who falls silent is not alive; who says goodbye is not, either."""
    registry = WorkerRegistry(redis_url)
    registry.publish("a", READY, {"model": "ViT-B-32"})
    registry.publish("b", LOADING, {})
    assert [(worker.name, worker.state) for worker in registry.alive()] == [("a", READY), ("b", LOADING)]
    assert registry.find("a").get("model") == "ViT-B-32"
    assert registry.find("a").get("device") == ""
    with redis_server.client as client:
        assert 0 < client.ttl("posters:worker:a") <= 15
        client.delete("posters:worker:b")  # as its expiry does
    assert [worker.name for worker in registry.alive()] == ["a"]
    registry.withdraw("a")
    assert registry.alive() == []
    registry.close()


def test_wrong_vectors_outlive_the_process_that_computed_them(redis_url):
    """It ends at once, so that only its successor can say so."""
    settings, store = load_settings(redis_url=redis_url), JobStore(redis_url)
    processes = [Heartbeat(settings, "w@tests/1/a", store) for _ in range(3)]
    for number, heartbeat in enumerate(processes):
        heartbeat.take_over()
        heartbeat.publish(READY, pid=100 + number)
        assert [heartbeat.fields[name] for name in ("restarts", "wrong_vectors")] == [number, number]
        heartbeat.publish_wrong_vectors()
        heartbeat.publish_wrong_vectors()  # of another thread, of the same device
    store.close()
