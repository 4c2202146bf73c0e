"""Start of a worker: every failure is published, and leaves no worker without a model behind."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from producer.errors import ConfigurationError, StoreError, StoreUnavailable
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.locks import Lease
from producer.queue.workers import FAILED, LOADING, READY, STORE, WorkerRegistry
from tests.support.installation import Installation
from tests.support.redis_server import RedisServer
from tests.support.worker_template import ForkedProcess, can_fork
from worker.runtime import startup

NAME, GPU = "w@tests", "GPU-6a1e0000-0000-0000-0000-000000000000"


@pytest.fixture
def registry(redis_url, monkeypatch):
    monkeypatch.setenv("POSTERS_REDIS_URL", redis_url)
    registry = WorkerRegistry(redis_url)
    yield registry
    registry.close()


@pytest.fixture
def heartbeats(monkeypatch):
    """The heartbeats that were started; a real worker ends them with its process."""
    started = []

    class RecordedHeartbeat(startup.Heartbeat):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setattr(startup, "Heartbeat", RecordedHeartbeat)
    yield started
    for heartbeat in started:
        heartbeat.stop()


@pytest.mark.parametrize("error", [MemoryError("no memory left"), ZeroDivisionError("a defect of ours")])
def test_no_exception_leaves_a_worker_that_loads_forever(registry, heartbeats, monkeypatch, redis_url, caplog, error):
    """Celery would swallow it: FAILED is published, the traceback is logged, and the GPU is released."""
    job_store = JobStore(redis_url)

    def fail(settings, owner, job_store, heartbeat):
        heartbeat.gpu_lease = Lease(job_store, card_key(GPU), owner, 15)
        heartbeat.gpu_lease.acquire()
        raise error

    monkeypatch.setattr(startup, "_load", fail)
    assert startup.start_runners(f"{NAME}/1/a", solo=True) is None
    entry = registry.find(NAME)
    assert entry.state == FAILED
    assert entry.get("reason") == f"{type(error).__name__}: {error}"
    assert "Traceback" in caplog.text
    assert Lease(job_store, card_key(GPU), "another", 15).acquire() is None
    assert heartbeats[0].gpu_lease is None, "nor does its heartbeat take the GPU again"
    job_store.close()


def test_unreadable_settings_end_the_worker(registry, monkeypatch):
    """As after an edit of config.json: the failure cannot be published, so the parent is signaled."""
    signals = []

    def refuse():
        raise ConfigurationError("config.json is not readable JSON")

    monkeypatch.setattr(startup, "load_settings", refuse)
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    for _ in range(2):
        assert startup.start_runners(f"{NAME}/1/a", solo=False) is None
        assert signals.pop() == (os.getppid(), signal.SIGTERM)
        monkeypatch.setenv(startup.WAKING_VARIABLE, "1.0")  # nor can it be read when an unloaded model is loaded again
    assert not signals


@pytest.mark.parametrize("is_reloading", [False, True])
def test_a_failure_that_redis_cannot_hold_ends_a_start_and_not_a_reload(
    registry, heartbeats, monkeypatch, is_reloading
):
    """The heartbeat goes on publishing it, and the parent that unloaded the model waits for that."""
    signals = []
    monkeypatch.setattr(startup.Heartbeat, "publish", lambda heartbeat, state, **fields: False)
    monkeypatch.setattr(startup, "_load", lambda *_: 1 / 0)
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    if is_reloading:
        monkeypatch.setenv(startup.WAKING_VARIABLE, "1.0")
    assert startup.start_runners(f"{NAME}/1/a", solo=False) is None
    assert signals == ([] if is_reloading else [(os.getppid(), signal.SIGTERM)])


def test_a_store_that_cannot_be_written_for_now_is_waited_for(registry, heartbeats, monkeypatch, redis_url, caplog):
    """Locked, full or unreachable: the reason is published at every try and logged once."""
    heartbeat = startup.Heartbeat(startup.load_settings(), NAME, JobStore(redis_url))
    heartbeats.append(heartbeat)
    errors = [StoreUnavailable("it is locked")] * 3
    published, closed = [], []

    class Store:
        def check(self):
            if errors:
                raise errors.pop()

        def close(self):
            closed.append(self)

    monkeypatch.setattr("producer.vectors.open_store", lambda url, mode: Store())
    monkeypatch.setattr(time, "sleep", lambda _: published.append(registry.get(NAME)))
    store = startup._wait_for_store(startup.load_settings(), heartbeat)
    assert [(entry.state, entry.get("stage"), entry.get("reason")) for entry in published] == [
        (LOADING, STORE, "it is locked")
    ] * 3
    assert caplog.text.count("it is locked") == 1
    assert len(closed) == 3
    assert store not in closed


def test_a_store_that_needs_repair_is_not_waited_for(registry, heartbeats, monkeypatch, redis_url):
    """A damaged file or a wrong mode is no transient failure."""
    heartbeats.append(startup.Heartbeat(startup.load_settings(), NAME, JobStore(redis_url)))

    def damaged(url, mode):
        raise StoreError("it is no SQLite file")

    monkeypatch.setattr("producer.vectors.open_store", damaged)
    with pytest.raises(StoreError, match="no SQLite file"):
        startup._wait_for_store(startup.load_settings(), heartbeats[0])


CARD = "cuda:0 NVIDIA H200"


@pytest.mark.parametrize(
    ("entries", "before"),
    [
        ({}, ""),
        ({"1/a": {"device": "cpu AVX2"}}, ""),
        ({"1/a": {"device": CARD}}, CARD),  # its child died: the main process has kept what the entry said
        ({"1/b": {"device": CARD}, "1/a": {}}, CARD),  # it was restarted, and has registered already
        ({"1/b": {"device": "cpu AVX2", "device_before": CARD}}, CARD),  # the CPU's own successor
        ({"1/b": {"device": CARD}, "1/c": {"device": "cpu AVX2"}}, ""),  # the newest counts
    ],
)
def test_a_worker_knows_which_card_its_predecessor_had(registry, entries, before):
    """As its entry says, for the 15 s in which it is kept; another node's card is not its own."""
    registry.publish("other@tests/1/a", READY, {"device": CARD})
    for owner, fields in entries.items():
        registry.publish(f"{NAME}/{owner}", READY, fields)
    assert startup._device_before(startup.load_settings(), f"{NAME}/1/a") == before


def test_a_cpu_in_place_of_a_lost_card_is_said_loudly(registry, caplog):
    """Unless the settings ask for the CPU, or the card is there again."""
    settings = startup.load_settings()
    assert startup._lost_device(settings, "cpu AVX2", "") == ""
    assert startup._lost_device(settings, CARD, CARD) == ""
    assert startup._lost_device(settings.model_copy(update={"device": "cpu"}), "cpu AVX2", CARD) == ""
    assert not caplog.text
    assert startup._lost_device(settings, "cpu AVX2", CARD) == CARD
    assert f"THE CPU IS USED in place of {CARD}" in caplog.text


def test_workers_are_forked_unless_they_need_an_interpreter_of_their_own(installation):
    """Otherwise the tests would take much longer, or test another worker than they say."""
    if sys.platform != "linux":
        pytest.skip("workers are forked on Linux only")
    assert can_fork(installation.environment | {"POSTERS_TEXT": "false", "FAULT_SLEEP_S": "1"})
    assert not can_fork(installation.environment | {"PYTHONWARNINGS": "error"})
    assert installation.worker("w").wait_until_ready().process.__class__ is ForkedProcess


def test_a_worker_with_truncated_weights_exits(installation):
    """As after an interrupted download: it does not load forever and consume messages meanwhile."""
    path = Path(installation.model.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    worker = installation.worker("w")
    assert worker.process.wait(90) == 78
    assert "the file is damaged" in worker.log_text()
    assert "Traceback" not in worker.log_text()


@pytest.mark.slow
def test_a_worker_waits_for_an_unreachable_store(redis_url, redis_server, tmp_path):
    """Two start while the store's Redis is down: one exits on SIGTERM, the other is ready as soon as it is up."""
    with RedisServer() as elsewhere:
        elsewhere.kill()
        installation = Installation(tmp_path, redis_server, store=elsewhere.url.removesuffix("/0") + "/1")
        try:
            one, two = installation.worker("one"), installation.worker("two")
            for worker in (one, two):
                ends = time.monotonic() + 60
                while not ((entry := worker.announcement()) and entry.get("stage") == STORE):
                    assert time.monotonic() < ends, worker.log_text()
                    time.sleep(0.1)
            assert "the store cannot be used for now" in one.announcement().get("reason")
            model = {finding["name"]: finding for finding in json.loads(installation.run("doctor", "--json").stdout)}[
                "model"
            ]
            assert "is waiting: the store cannot be used for now" in model["text"]
            assert two.stop(within_s=15) == 0
            assert one.process.poll() is None
            elsewhere.start()
            one.wait_until_ready()
            assert one.announcement().get("reason") == ""
            assert installation.producer.enqueue(installation.draw(3)).wait(30).embedded == 3
        finally:
            installation.close()
