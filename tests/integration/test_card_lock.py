"""One worker per GPU: the second waits, publishes why, delays nothing, and takes over when the first dies."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from producer.errors import RedisUnreachable
from producer.queue import locks as module
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.locks import SETTLE_S, Lease, wait_for_card
from producer.queue.workers import READY, WAITING
from tests.support.wait import wait_for
from worker.model.device import card_of

CARD = "GPU-6a1e0000-0000-0000-0000-000000000000"


@pytest.fixture
def job_store(redis_url):
    job_store = JobStore(redis_url)
    yield job_store
    job_store.close()


def test_a_gpu_is_identified_by_its_uuid_and_the_cpu_by_none(monkeypatch):
    """The UUID is the one that nvidia-smi shows, however the device was named."""
    assert card_of(torch.device("cpu")) is None
    shown = SimpleNamespace(uuid=CARD.removeprefix("GPU-"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: shown)
    assert card_of(torch.device("cuda", 0)) == card_of(torch.device("cuda", 3)) == CARD


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_real_card_has_a_uuid():
    """In the form that POSTERS_GPU accepts; reading it allocates no GPU memory."""
    before = torch.cuda.memory_reserved()
    assert len(card_of(torch.device("cuda", 0))) == len(CARD)
    assert torch.cuda.memory_reserved() == before


def test_waiting_ends_when_the_lease_is_released(job_store):
    """Until then the reason, with the holder, is reported at every poll."""
    other = Lease(job_store, card_key(CARD), "a@x/1", 30)
    other.acquire()
    reasons = []

    def pause(seconds):
        if seconds == SETTLE_S:
            assert other.current_holder() is None
        elif len(reasons) == 3:
            other.release()

    lease = wait_for_card(job_store, CARD, "b@x/2", reasons.append, pause)
    assert reasons == [f"GPU {CARD} is in use by a@x/1; this worker will take over when that one exits"] * 3
    assert lease.acquire() is None
    assert other.acquire() == "b@x/2"


def test_an_expired_lease_goes_back_to_a_living_holder(job_store):
    """As after a jump of Redis' clock: a living holder renews it before a waiting worker takes it."""
    other = Lease(job_store, card_key(CARD), "a@x/1", 30)
    other.acquire()
    reasons, settled = [], []

    def pause(seconds):
        if seconds == SETTLE_S:
            settled.append(seconds)
            if len(settled) == 1:
                other.acquire()  # its heartbeat, every five seconds; the second time it is dead
        else:
            other.release()  # has the effect of an expiry

    wait_for_card(job_store, CARD, "b@x/2", reasons.append, pause)
    assert (len(reasons), len(settled)) == (2, 2)
    assert other.acquire() == "b@x/2"


def test_an_unreachable_redis_does_not_free_the_gpu(job_store, monkeypatch):
    """Without Redis the holder is unknown: the worker waits."""
    answers = [RedisUnreachable("gone"), RedisUnreachable("gone"), None]

    class UnreachableLease(Lease):
        def current_holder(self):
            answer = answers.pop(0)
            if answer:
                raise answer
            return super().current_holder()

    monkeypatch.setattr(module, "Lease", UnreachableLease)
    reasons = []
    wait_for_card(job_store, CARD, "b@x/2", reasons.append, lambda _: None)
    assert len(reasons) == 2
    assert "gone" in reasons[0]


def start_worker_on_gpu(installation, name, gpu=CARD, **environment):
    return installation.worker(name, "--include", "tests.support.fake_gpu", FAKE_GPU=gpu, **environment)


def entry_of(installation, name):
    return installation.producer.registry.find(f"{name}@tests")


def wait_for_state(entry, state):
    wait_for(lambda: (found := entry()) and found.state == state, state, 60)


@pytest.mark.slow
def test_workers_on_one_gpu(installation, job_store, redis_server):
    """The second loads no model and takes no batch; it takes over when the first is killed, and releases a GPU that
    another took while Redis was unreachable. All in one test, because each start of a worker takes long."""
    names = installation.draw(20)
    first = start_worker_on_gpu(installation, "first").wait_until_ready()
    second, third = start_worker_on_gpu(installation, "second"), start_worker_on_gpu(installation, "third")
    for name in ("second", "third"):
        wait_for_state(lambda name=name: entry_of(installation, name), WAITING)
    reason = entry_of(installation, "second").get("reason")
    assert f"GPU {CARD} is in use by first@tests/{first.process.pid}/" in reason

    began = time.monotonic()
    assert third.stop() == 0
    assert time.monotonic() - began < 12, "it has no batch to finish"

    jobs = [installation.producer.enqueue(names[start : start + 5]) for start in range(0, 20, 5)]
    assert all(job.wait(30).embedded == 5 for job in jobs), "the waiting worker claims no batch"
    with redis_server.client as client:
        # the first acknowledges its last batch after it is counted; what the second had fetched would stay
        wait_for(lambda: client.hlen("unacked") == 0, "no message that the waiting worker has fetched", 5)
    findings = {finding["name"]: finding for finding in json.loads(installation.run("doctor", "--json").stdout)}
    assert findings["worker"]["status"] == "ok"
    assert "second@tests (waiting)" in findings["worker"]["text"]

    first.kill()
    killed = time.monotonic()
    wait_for_state(lambda: entry_of(installation, "second"), READY)
    assert time.monotonic() - killed < 21 + 30, "the lease expires after 15 s, and 6 s later the model is loaded"
    assert installation.producer.enqueue(names[:5], force=True).wait(30).embedded == 5

    child, other = second.child(), Lease(job_store, card_key(CARD), "quicker/1", 300)
    with redis_server.client as client:
        client.delete(card_key(CARD))
    assert other.acquire() is None
    wait_for_state(lambda: entry_of(installation, "second"), WAITING)
    assert "quicker/1 took the GPU" in second.log_text()
    other.release()
    second.wait_until_ready()
    assert second.child() != child
    assert installation.producer.enqueue(names[:5], force=True).wait(30).embedded == 5


@pytest.mark.chaos
@pytest.mark.slow
def test_workers_may_share_a_node_name(installation, tmp_path):
    """Of three, one works, one waits, and one that cannot start exits and ends no other. When the first stops, the
    waiting one takes over."""
    names = installation.draw(5)
    first = start_worker_on_gpu(installation, "same").wait_until_ready()
    second = start_worker_on_gpu(installation, "same")
    wait_for_state(second.announcement, WAITING)
    third = start_worker_on_gpu(installation, "same", POSTERS_ROOT=str(tmp_path / "nowhere"))
    assert third.process.wait(60) == 78
    time.sleep(2)  # a supervisor polls every second
    assert (first.process.poll(), second.process.poll()) == (None, None)
    assert (first.announcement().state, second.announcement().state) == (READY, WAITING)
    assert first.stop() == 0
    wait_for_state(second.announcement, READY)
    assert installation.producer.enqueue(names).wait(30).embedded == 5
