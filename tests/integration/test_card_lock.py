"""One worker per card: the second waits with a sentence, holds nothing up, and takes over when the first dies."""

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
from worker.model.device import card_of

CARD = "GPU-6a1e0000-0000-0000-0000-000000000000"


@pytest.fixture
def ledger(redis_url):
    ledger = JobStore(redis_url)
    yield ledger
    ledger.close()


def test_a_card_is_known_by_its_uuid_and_the_cpu_is_none(monkeypatch):
    """However it was named, CUDA gives one UUID, as nvidia-smi shows it."""
    assert card_of(torch.device("cpu")) is None
    shown = SimpleNamespace(uuid=CARD.removeprefix("GPU-"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: shown)
    assert card_of(torch.device("cuda", 0)) == card_of(torch.device("cuda", 3)) == CARD


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_real_card_has_a_uuid():
    """Of the form that POSTERS_GPU takes; asking costs none of its memory."""
    before = torch.cuda.memory_reserved()
    assert len(card_of(torch.device("cuda", 0))) == len(CARD)
    assert torch.cuda.memory_reserved() == before


def test_waiting_ends_when_the_other_lets_go(ledger):
    """Until then it says, at every look, whom it waits for."""
    other = Lease(ledger, card_key(CARD), "a@x/1", 30)
    other.acquire()
    said = []

    def pause(seconds):
        if seconds == SETTLE_S:
            assert other.current_holder() is None
        elif len(said) == 3:
            other.release()

    lease = wait_for_card(ledger, CARD, "b@x/2", said.append, pause)
    assert said == [f"a@x/1 works on the card {CARD}; this worker waits, and takes over when that one ends"] * 3
    assert lease.acquire() is None
    assert other.acquire() == "b@x/2"


def test_a_lease_that_only_expired_is_its_holders_again(ledger):
    """As when Redis' clock is put forward: who lives renews it before one that waits takes it."""
    other = Lease(ledger, card_key(CARD), "a@x/1", 30)
    other.acquire()
    said, settled = [], []

    def pause(seconds):
        if seconds == SETTLE_S:
            settled.append(seconds)
            if len(settled) == 1:
                other.acquire()  # its pulse, as every five seconds; the second time it is dead
        else:
            other.release()  # what an expiry does

    wait_for_card(ledger, CARD, "b@x/2", said.append, pause)
    assert (len(said), len(settled)) == (2, 2)
    assert other.acquire() == "b@x/2"


def test_a_redis_that_is_away_is_no_licence(ledger, monkeypatch):
    """Without Redis nobody can tell who has the card: wait, as for the work itself."""
    answers = [RedisUnreachable("gone"), RedisUnreachable("gone"), None]

    class Shy(Lease):
        def current_holder(self):
            answer = answers.pop(0)
            if answer:
                raise answer
            return super().current_holder()

    monkeypatch.setattr(module, "Lease", Shy)
    said = []
    wait_for_card(ledger, CARD, "b@x/2", said.append, lambda _: None)
    assert len(said) == 2
    assert "gone" in said[0]


def with_card(installation, name, card=CARD, **environment):
    return installation.worker(name, "--include", "tests.support.fake_gpu", FAKE_GPU=card, **environment)


def heard(installation, name):
    return installation.producer.registry.find(f"{name}@tests")


def until(look, within_s=60.0):
    ends = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.slow
def test_workers_on_one_card(installation, ledger, redis_server):
    """Who comes second loads no model and takes no batch; it takes over when the first is killed; a card that went
    to another while Redis was away is left. One story, because every worker costs its start."""
    names = installation.draw(20)
    first = with_card(installation, "first").wait_until_ready()
    second, third = with_card(installation, "second"), with_card(installation, "third")
    for name in ("second", "third"):
        until(lambda name=name: (notify := heard(installation, name)) and notify.state == WAITING)
    assert heard(installation, "second").get("reason").startswith(f"first@tests/{first.process.pid}/")
    assert f" works on the card {CARD}" in heard(installation, "second").get("reason")

    began = time.monotonic()
    assert third.stop() == 0
    assert time.monotonic() - began < 12, "it has nothing to finish"

    jobs = [installation.producer.enqueue(names[start : start + 5]) for start in range(0, 20, 5)]
    assert all(job.wait(30).embedded == 5 for job in jobs), "no batch is held by the one that waits"
    with redis_server.client as client:
        assert client.hlen("unacked") == 0, "nor was one taken"
    findings = {finding["name"]: finding for finding in json.loads(installation.run("doctor", "--json").stdout)}
    assert findings["worker"]["ok"]
    assert "second@tests (waiting)" in findings["worker"]["seen"]

    first.kill()
    killed = time.monotonic()
    until(lambda: (notify := heard(installation, "second")) and notify.state == READY)
    assert time.monotonic() - killed < 21 + 30, "the lease expires after 15 s, and 6 s later the model is loaded"
    assert installation.producer.enqueue(names[:5], force=True).wait(30).embedded == 5

    child, other = second.child(), Lease(ledger, card_key(CARD), "quicker/1", 300)
    with redis_server.client as client:
        client.delete(card_key(CARD))
    assert other.acquire() is None
    until(lambda: (notify := heard(installation, "second")) and notify.state == WAITING)
    assert "the card went to quicker/1" in second.log_text()
    other.release()
    second.wait_until_ready()
    assert second.child() != child
    assert installation.producer.enqueue(names[:5], force=True).wait(30).embedded == 5


@pytest.mark.slow
def test_workers_of_one_name_are_two(installation, tmp_path):
    """README's command, typed three times on one machine: one works, one waits, and the one that fails ends itself
    and no other. When the first is killed, the one that waited takes over."""
    names = installation.draw(5)
    first = with_card(installation, "same").wait_until_ready()
    second = with_card(installation, "same")
    until(lambda: (notify := second.announcement()) and notify.state == WAITING)
    third = with_card(installation, "same", POSTERS_ROOT=str(tmp_path / "nowhere"))
    assert third.process.wait(60) == 78
    time.sleep(2)  # an attendant looks every second
    assert (first.process.poll(), second.process.poll()) == (None, None)
    assert (first.announcement().state, second.announcement().state) == (READY, WAITING)
    assert first.stop() == 0
    until(lambda: (notify := second.announcement()) and notify.state == READY)
    assert installation.producer.enqueue(names).wait(30).embedded == 5
