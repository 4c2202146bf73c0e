"""Lost batches come back: open in the ledger, in no queue, in no worker's hands. And those given back, at once."""

import json
from dataclasses import replace

import pytest

from producer.queue import redelivery as module
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.messages import BULK, INTERACTIVE, QUEUES, BatchMessage
from producer.queue.progress import Claim, Outcome
from producer.queue.redelivery import GRACE_S, SCAN_EVERY_S, Redelivery
from producer.queue.sender import create_sender, send
from producer.settings import load_settings
from tests.support.clock import Clock
from tests.support.ledger_jobs import batch, begin

MESSAGE = BatchMessage("job", "job.1")


class Installation:
    """A ledger with one open batch, and as many redeliveries as a test makes, all on one clock."""

    def __init__(self, url):
        self.job_store, self.clock, self.sent = JobStore(url, claim_s=3), Clock(), []
        self.claims, self.redeliveries = Claims(self.job_store), []
        begin(self.job_store, batch())

    def redelivery(self):
        self.redeliveries.append(Redelivery(self.claims, self.job_store, self.sent.append, self.clock))
        return self.redeliveries[-1]

    def after(self, seconds, *redeliveries):
        """Let the given seconds pass; each waiting process calls `run` every second."""
        for _ in range(round(seconds)):
            self.clock.now += 1
            for redelivery in redeliveries:
                redelivery.run()
        return self.sent


@pytest.fixture
def installation(redis_url):
    installation = Installation(redis_url)
    yield installation
    for redelivery in installation.redeliveries:
        redelivery.close()
    installation.job_store.close()


def test_an_open_batch_that_is_neither_queued_nor_claimed_is_sent_again_as_it_was(installation):
    """What BRPOP took and a kill dropped comes back whole: not at the first scan, but soon after the grace."""
    redelivery = installation.redelivery()
    assert installation.after(GRACE_S, redelivery) == [], "it may be on its way"
    assert installation.after(SCAN_EVERY_S, redelivery) == [MESSAGE]


def test_a_batch_that_stays_lost_is_sent_again_and_again_but_not_at_every_look(installation):
    """The message that was sent again may be lost, too; each time it gets its grace."""
    assert len(installation.after(60, installation.redelivery())) <= 60 / GRACE_S


def test_a_batch_in_the_queue_is_left_there(installation, redis_url):
    """As a real producer has sent it."""
    with create_sender(load_settings(redis_url=redis_url)) as app:
        send(app, batch())
    assert installation.after(30, installation.redelivery()) == []


def test_a_batch_in_work_is_left_alone(installation):
    """A live worker's claim is respected, for as long as it is renewed."""
    installation.claims.claim(batch(), "worker#1")
    assert installation.after(30, installation.redelivery()) == []


def test_a_finished_batch_does_not_come_back(installation):
    """Counted is counted."""
    installation.claims.claim(batch(), "worker#1")
    installation.claims.finish(batch(), Outcome(embedded=4))
    assert installation.after(30, installation.redelivery()) == []


def test_a_batch_reserved_by_a_dead_worker_is_sent_again(installation, redis_server):
    """No waiting for the visibility timeout: a live worker would have claimed it."""
    message = [{"headers": {"id": "job.1"}, "body": ""}, "posters", QUEUES[BULK]]
    with redis_server.client as client:
        client.hset("unacked", "tag", json.dumps(message))
    assert installation.after(20, installation.redelivery()) == [MESSAGE]


def test_a_batch_that_was_given_back_is_sent_as_soon_as_its_pause_is_over(installation, redis_server):
    """Nobody need miss it first."""
    redelivery = installation.redelivery()
    installation.claims.claim(batch(), "worker#1")
    installation.claims.release(batch(), "worker#1", 60)
    assert installation.after(20, redelivery) == []
    with redis_server.client as client:
        client.delete("posters:claim:job.1")  # what its expiry does when the pause is over
    assert installation.after(2, redelivery) == [MESSAGE]
    assert installation.after(2, redelivery, installation.redelivery()) == [MESSAGE], "once"


def test_a_batch_that_rests_is_sent_once_its_lane_goes_on(installation):
    """Paused before it was begun: no attempt counts, nobody holds it, and no search takes it for lost."""
    claims, redelivery = installation.claims, installation.redelivery()
    assert claims.pause() == claims.pause() == claims.paused_since()
    assert claims.claim(batch(), "worker#1").verdict is Claim.PAUSED
    assert claims.claim(batch(), "worker#2").verdict is Claim.PAUSED, "its message may come twice"
    assert installation.after(60, redelivery) == []
    assert claims.resume() == 1
    assert claims.paused_since() is None
    assert installation.after(2, redelivery) == [MESSAGE]
    assert claims.claim(batch(), "worker#1")[:3] == (Claim.WORK, 1, False)
    assert claims.resume() == 0


def test_a_pause_spares_what_is_begun_and_what_somebody_waits_for(installation):
    """The batch in work goes on, also where its worker repeats the claim; the interactive lane is not paused."""
    claims = installation.claims
    claims.claim(batch(), "worker#1")
    claims.pause()
    assert claims.claim(batch(), "worker#1").verdict is Claim.WORK
    assert claims.renew(batch(), "worker#1", 1)
    assert claims.claim(batch(), "other#1").verdict is Claim.BUSY
    claims.release(batch(), "worker#1")
    assert claims.claim(replace(batch(), lane=INTERACTIVE), "worker#2").verdict is Claim.WORK


def test_a_batch_that_rests_can_be_cancelled_and_outlives_the_loss_of_its_pause(installation, redis_server):
    """Whatever becomes of the keys, an open batch is sent again, and a finished one is not."""
    claims, redelivery = installation.claims, installation.redelivery()
    claims.pause()
    claims.claim(batch(), "worker#1")
    with redis_server.client as client:
        client.delete("posters:paused")
    assert installation.after(GRACE_S + 2 * SCAN_EVERY_S, redelivery) == [MESSAGE]
    assert claims.cancel("job") == 4
    assert claims.resume() == 1
    assert installation.after(30, redelivery) == [MESSAGE]


def test_one_looks_for_all(installation):
    """However many workers and producers wait: one reads the queues, and its memory is what counts."""
    scans = []
    first, *others = (installation.redelivery() for _ in range(5))
    for redelivery in (first, *others):
        redelivery._resend_lost = lambda redelivery=redelivery, look=redelivery._resend_lost: (
            scans.append(redelivery) or look()
        )
    assert installation.after(15, first, *others) == [MESSAGE]
    assert set(scans) == {first}
    first.close()
    installation.after(6, *others)
    assert len(set(scans)) == 2, "when it leaves, another takes over at once"


def test_looking_takes_a_fiftieth_of_the_time(installation, monkeypatch):
    """Ten thousand queued batches are not read every five seconds."""
    redelivery = installation.redelivery()
    scans = []

    def slow():
        installation.clock.now += 0.4
        scans.append(installation.clock.now)
        return 0

    redelivery._resend_lost = slow
    installation.after(100, redelivery)
    assert 4 <= len(scans) <= 6
    monkeypatch.setattr(module, "MAX_REST_S", 5.0)
    scans.clear()
    installation.after(100, redelivery)
    assert len(scans) >= 14, "but there is an end to the resting"


def test_messages_that_are_not_ours_do_not_stop_it(installation, redis_server):
    """Rubbish in the queue is passed over."""
    with redis_server.client as client:
        client.rpush(QUEUES[BULK], "rubbish", "[]", '{"headers": 5}')
    assert installation.after(20, installation.redelivery()) == [MESSAGE]


@pytest.mark.parametrize(
    ("text", "lane"),
    [
        (json.dumps(batch().encode() | {"lane": "interactive"}), "interactive"),
        (json.dumps({"version": 99, "lane": "interactive", "pages": []}), "interactive"),
        (json.dumps({"version": 99, "lane": {"name": "interactive"}}), "bulk"),
        (json.dumps(batch().encode() | {"lane": "sideways"}), "bulk"),
        ("[" * 100_000, "bulk"),
        ("no JSON", "bulk"),
    ],
    ids=["of today", "newer", "newer, without a lane", "of an unknown lane", "a deep nest", "no JSON"],
)
def test_a_batch_is_sent_again_unread(installation, redis_server, text, lane):
    """Also by a program that cannot read it, or an update would hang: the worker that claims it says what it is."""
    with redis_server.client as client:
        client.hset("posters:job:job:open", "job.1", text)
    assert installation.after(14, installation.redelivery()) == [BatchMessage("job", "job.1", lane)]
