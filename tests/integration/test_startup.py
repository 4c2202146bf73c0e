"""How a station opens: whatever stands in its way is said, and leaves no worker behind that has no model."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from producer.errors import ConfigurationError, StoreError, StoreUnavailable
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.locks import Lease
from producer.queue.workers import FAILED, LOADING, STORE, WorkerRegistry
from tests.support.installation import Installation
from tests.support.redis_server import RedisServer
from worker.runtime import startup

NAME, CARD = "w@tests", "GPU-6a1e0000-0000-0000-0000-000000000000"


@pytest.fixture
def registry(redis_url, monkeypatch):
    monkeypatch.setenv("POSTERS_REDIS_URL", redis_url)
    registry = WorkerRegistry(redis_url)
    yield registry
    registry.close()


@pytest.fixture
def pulses(monkeypatch):
    """The pulses that were started; the process that they beat in would have ended with them."""
    started = []

    class Noted(startup.Heartbeat):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setattr(startup, "Heartbeat", Noted)
    yield started
    for heartbeat in started:
        heartbeat.stop()


@pytest.mark.parametrize("error", [MemoryError("no memory left"), ZeroDivisionError("a defect of ours")])
def test_no_exception_leaves_a_worker_that_loads_for_ever(registry, pulses, monkeypatch, redis_url, caplog, error):
    """Celery would swallow it: FAILED is said, with a traceback for us in the log, and the card is left to others."""
    ledger = JobStore(redis_url)

    def fail(settings, owner, ledger, heartbeat):
        heartbeat.card = Lease(ledger, card_key(CARD), owner, 15)
        heartbeat.card.acquire()
        raise error

    monkeypatch.setattr(startup, "_open", fail)
    assert startup.start_runner(f"{NAME}/1/a", solo=True) is None
    heard = registry.find(NAME)
    assert heard.state == FAILED
    assert heard.get("reason") == f"{type(error).__name__}: {error}"
    assert "Traceback" in caplog.text
    assert Lease(ledger, card_key(CARD), "another", 15).acquire() is None
    assert pulses[0].card is None, "nor does its pulse take the card again"
    ledger.close()


def test_settings_that_a_new_child_cannot_read_end_the_worker(registry, monkeypatch):
    """As when config.json was edited: nobody knows in which Redis to say so, and the parent is asked to end."""
    asked = []

    def refuse():
        raise ConfigurationError("config.json is not readable JSON")

    monkeypatch.setattr(startup, "load_settings", refuse)
    monkeypatch.setattr(os, "kill", lambda pid, number: asked.append((pid, number)))
    assert startup.start_runner(f"{NAME}/1/a", solo=False) is None
    assert asked == [(os.getppid(), signal.SIGTERM)]


def test_a_store_that_cannot_be_written_for_now_is_waited_for(registry, pulses, monkeypatch, caplog):
    """Locked, full, away: the reason is announced at every look, logged once, and gone when the store is back."""
    heartbeat = startup.Heartbeat(startup.load_settings(), NAME, JobStore(registry.url), solo=True)
    pulses.append(heartbeat)
    troubles = [StoreUnavailable("it is locked")] * 3
    announced, closed = [], []

    class Store:
        def check(self):
            if troubles:
                raise troubles.pop()

        def close(self):
            closed.append(self)

    monkeypatch.setattr("producer.vectors.open_store", lambda url: Store())
    monkeypatch.setattr(time, "sleep", lambda _: announced.append(registry.get(NAME)))
    store = startup._wait_for_store("sqlite:x", heartbeat)
    assert [(heard.state, heard.get("stage"), heard.get("reason")) for heard in announced] == [
        (LOADING, STORE, "it is locked")
    ] * 3
    assert caplog.text.count("it is locked") == 1
    assert len(closed) == 3
    assert store not in closed


def test_a_store_that_a_person_has_to_mend_is_not_waited_for(registry, pulses, monkeypatch):
    """A damaged file or a wrong mode does not pass."""
    pulses.append(startup.Heartbeat(startup.load_settings(), NAME, JobStore(registry.url), solo=True))

    def damaged(url):
        raise StoreError("it is no SQLite file")

    monkeypatch.setattr("producer.vectors.open_store", damaged)
    with pytest.raises(StoreError, match="no SQLite file"):
        startup._wait_for_store("sqlite:x", pulses[0])


def test_a_worker_whose_weights_are_cut_short_says_so_and_leaves(installation):
    """As after a download that broke off: it is no worker that loads for ever and eats messages meanwhile."""
    path = Path(installation.model.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    worker = installation.worker("w")
    assert worker.process.wait(90) == 78
    assert "the file is damaged" in worker.log_text()
    assert "Traceback" not in worker.log_text()


@pytest.mark.slow
def test_a_worker_outwaits_a_store_that_is_away(redis_url, redis_server, tmp_path):
    """Two start while the store's Redis is down: one leaves when it is asked to, one works as soon as it is back."""
    with RedisServer() as elsewhere:
        elsewhere.kill()
        installation = Installation(tmp_path, redis_server, store=elsewhere.url.removesuffix("/0") + "/1")
        try:
            one, two = installation.worker("one"), installation.worker("two")
            for worker in (one, two):
                ends = time.monotonic() + 60
                while not ((heard := worker.announcement()) and heard.get("stage") == STORE):
                    assert time.monotonic() < ends, worker.log_text()
                    time.sleep(0.1)
            assert "the store cannot be used for now" in one.announcement().get("reason")
            model = {finding["name"]: finding for finding in json.loads(installation.run("doctor", "--json").stdout)}[
                "model"
            ]
            assert "waits: the store cannot be used for now" in model["seen"]
            assert two.stop(within_s=15) == 0
            assert one.process.poll() is None
            elsewhere.start()
            one.wait_until_ready()
            assert one.announcement().get("reason") == ""
            assert installation.producer.enqueue(installation.draw(3)).wait(30).embedded == 3
        finally:
            installation.close()
