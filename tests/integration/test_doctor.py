"""`doctor` says what is wrong with Redis and with the queue, and what to do."""

import numpy as np
import pytest
from click.testing import CliRunner

from producer import Producer
from producer.__main__ import main
from producer.cli.doctor import examine
from producer.embedding import Space
from producer.queue.workers import LOADING, READY, WAITING
from producer.settings import load_settings
from producer.vectors.base import Row


@pytest.fixture
def producer(redis_url, tmp_path):
    settings = load_settings(redis_url=redis_url, root=tmp_path, store=f"sqlite:{tmp_path / 'v.db'}", catalogue="none")
    producer = Producer(settings)
    yield producer
    producer.close()


def found(producer):
    return {finding.name: finding for finding in examine(producer)}


def test_a_redis_that_may_evict_the_queue_is_a_failure(producer, redis_server):
    """noeviction is right; a Redis without AOF is worth a word, and its password never."""
    redis = found(producer)["redis"]
    assert redis.ok
    assert "appendonly no" in redis.seen
    assert "only-for-tests" not in redis.seen
    with redis_server.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            redis = found(producer)["redis"]
            assert (redis.ok, "noeviction" in redis.advice) == (False, True)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_the_exit_status_tells_a_wrong_redis_from_one_out_of_reach(producer, redis_server, redis_url, tmp_path):
    """2: it answers, and somebody has to mend its settings. 3: it does not answer, or nobody works."""
    variables = {
        "POSTERS_REDIS_URL": redis_url,
        "POSTERS_ROOT": str(tmp_path),
        "POSTERS_STORE": producer.settings.store,
        "POSTERS_CATALOGUE": "none",
    }

    def status(**others):
        return CliRunner().invoke(main, ["doctor"], env=variables | others).exit_code

    assert status() == 3
    fields = {"space": "s", "space_json": "{}", "root": str(tmp_path), "store": producer.settings.store}
    producer.registry.publish("w", READY, fields)
    assert status() == 0
    with redis_server.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert status() == 2
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert status(POSTERS_REDIS_URL="redis://127.0.0.1:1/0") == 3
    assert status(POSTERS_STORE="redis://127.0.0.1:1/1") == 3


def test_the_dead_letters_are_counted_with_the_newest_reason(producer):
    """And how to look at it."""
    assert found(producer)["dead letters"].ok
    producer.dead_letters.put("x", "it is not JSON")
    dead_letters = found(producer)["dead letters"]
    assert not dead_letters.ok
    assert "1 message(s) rejected; the newest: it is not JSON" in dead_letters.seen
    assert "redis-cli lrange" in dead_letters.advice


def test_a_worker_that_waits_for_its_card_is_shown_with_the_reason(producer):
    """It is no failure: another one works."""
    producer.registry.publish("a", READY, {"space": "s", "space_json": "{}"})
    producer.registry.publish("b", WAITING, {"reason": "GPU 0 is in use by a"})
    worker = found(producer)["worker"]
    assert worker.ok
    assert worker.seen == "a (ready), b (waiting); b: GPU 0 is in use by a"


def test_readers_that_use_another_space_than_the_worker_makes_are_reported(producer):
    """The vectors that are read and those that are made never meet, and nobody would notice."""
    old, new = (Space("m", number * 32, "gelu", "64x64", 4) for number in "12")
    store = producer.store()
    store.put(old, [Row("a", "d", 1, 1)], np.full((1, 4), 0.5, np.float32))
    store.close()
    mine = {"store": producer.settings.store, "root": str(producer.settings.root)}
    producer.registry.publish("w", READY, {"space": new.id, "space_json": new.to_json(), **mine})
    finding = found(producer)["store"]
    assert not finding.ok
    assert f"spaces use {new.id}" in finding.advice
    producer.registry.publish("w", READY, {"space": old.id, "space_json": old.to_json(), **mine})
    assert found(producer)["store"].ok


def test_ready_is_for_health_checks(producer, redis_url):
    """0 only for a worker that can embed now; else 1 and the reason, never another status."""

    def ready(*arguments, url=redis_url):
        done = CliRunner().invoke(main, ["ready", *arguments], env={"POSTERS_REDIS_URL": url})
        return done.exit_code, done.stderr

    status, said = ready()
    assert (status, "no worker is alive (alive: none)" in said) == (1, True)
    producer.registry.publish("a@h/1/aa", LOADING, {"stage": "weights"})
    assert ready() == (1, "a@h is loading: weights\n")
    producer.registry.publish("b@h/2/bb", READY, {})
    assert ready() == ready("--worker", "b@h") == (0, "")
    assert ready("--worker", "a@h")[0] == 1
    status, said = ready("--worker", "c@h")
    assert (status, "no worker c@h is alive (alive: a@h, b@h)" in said) == (1, True)
    producer.registry.publish("b@h/3/cc", LOADING, {})  # the entry of its predecessor is about to expire
    assert ready("--worker", "b@h")[0] == 0
    status, said = ready(url="redis://127.0.0.1:1/0")
    assert (status, "does not answer" in said) == (1, True)
