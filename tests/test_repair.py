"""Lost batches come back: open in the ledger, in no queue, in no worker's hands."""

import json

import pytest

from worker.announcement import LOADING, READY, Announcements
from worker.celery import create_app, send
from worker.ledger import Ledger
from worker.messages import BULK, QUEUES, EmbedBatch, Poster
from worker.progress import Outcome
from worker.repair import GRACE_S, UNACKED, Repair
from worker.settings import load_settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def world(redis_url):
    ledger, clock, sent = Ledger(redis_url, claim_s=3), Clock(), []
    repair = Repair(redis_url, ledger, sent.append, clock)
    batch = EmbedBatch("J", "J.1", (Poster("a", "a"),))
    ledger.create("J")
    ledger.step("J", 1, batch=batch)
    yield ledger, clock, sent, repair, batch
    repair.close()
    ledger.close()


def looks(repair, clock, seconds=2 * GRACE_S):
    found = repair.run()
    clock.now += seconds
    return found + repair.run()


def test_a_batch_in_nobodys_hands_is_sent_again_as_it_was(world):
    """What BRPOP took and a kill dropped comes back whole."""
    _, clock, sent, repair, batch = world
    assert repair.run() == 0, "not at the first look: it may be on its way"
    clock.now += GRACE_S / 2
    assert repair.run() == 0
    clock.now += GRACE_S
    assert repair.run() == 1
    assert sent == [batch]


def test_a_batch_in_the_queue_is_left_there(world, redis_url):
    """As a real producer has sent it."""
    _, clock, sent, repair, batch = world
    with create_app(load_settings(redis_url=redis_url)) as app:
        send(app, batch)
    assert looks(repair, clock) == 0
    assert sent == []


def test_a_batch_in_work_is_left_alone(world):
    """A live worker's claim is respected, for as long as it is renewed."""
    ledger, clock, sent, repair, batch = world
    ledger.claim(batch, "worker")
    assert looks(repair, clock) == 0
    assert sent == []


def test_a_finished_batch_does_not_come_back(world):
    """Counted is counted."""
    ledger, clock, sent, repair, batch = world
    ledger.claim(batch, "worker")
    ledger.finish(batch, Outcome(embedded=1))
    assert looks(repair, clock) == 0
    assert sent == []


def reserve(redis_server, batch):
    message = [{"headers": {"id": batch.batch}, "body": ""}, "posters", QUEUES[BULK]]
    with redis_server.client as client:
        client.hset(UNACKED, "tag", json.dumps(message))


def test_a_batch_reserved_by_a_dead_worker_is_sent_again(world, redis_server):
    """No waiting for the visibility timeout: a live worker would have claimed it."""
    _, clock, sent, repair, batch = world
    reserve(redis_server, batch)
    assert looks(repair, clock) == 1
    assert sent == [batch]


def test_a_batch_reserved_by_a_loading_worker_is_left_to_it(world, redis_server, redis_url):
    """It claims the batch as soon as its model is there."""
    _, clock, _, repair, batch = world
    reserve(redis_server, batch)
    announcements = Announcements(redis_url)
    announcements.say("w", LOADING, {})
    assert looks(repair, clock) == 0
    announcements.say("w", READY, {})
    assert looks(repair, clock) == 1
    announcements.close()


def test_messages_that_are_not_ours_do_not_stop_it(world, redis_server):
    """Rubbish in the queue is passed over."""
    _, clock, sent, repair, batch = world
    with redis_server.client as client:
        client.rpush(QUEUES[BULK], "rubbish", "[]", '{"headers": 5}')
    assert looks(repair, clock) == 1
    assert sent == [batch]


def test_announcements_expire_and_are_withdrawn(redis_url, redis_server):
    """Who falls silent is not alive."""
    announcements = Announcements(redis_url)
    announcements.say("a", READY, {"model": "ViT-B-32"})
    announcements.say("b", LOADING, {})
    assert [(worker.name, worker.state) for worker in announcements.everybody()] == [("a", READY), ("b", LOADING)]
    assert announcements.hear("a").get("model") == "ViT-B-32"
    assert announcements.hear("a").get("device") == ""
    with redis_server.client as client:
        assert 0 < client.ttl("posters:worker:a") <= 15
        client.delete("posters:worker:b")  # as its expiry does
    assert [worker.name for worker in announcements.everybody()] == ["a"]
    announcements.withdraw("a")
    assert announcements.everybody() == []
    announcements.close()
