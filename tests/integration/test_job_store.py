"""The ledger: what a producer wrote down is there once, whatever it asks twice, and whatever Redis forgets."""

import time

import pytest

from producer.errors import JobUnknown, LedgerSetBack, RedisUnreachable
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.progress import Failure, Outcome
from tests.support.ledger_jobs import batch, begin
from tests.support.redis_server import RedisServer


@pytest.fixture
def ledger(redis_url):
    ledger = JobStore(redis_url, claim_s=30)
    yield ledger
    ledger.close()


@pytest.fixture
def claims(ledger):
    return Claims(ledger)


def silence(redis_server, job="job"):
    """What the expiry of its key does SENDER_S after the last word of a job's producer."""
    with redis_server.client as client:
        client.delete(f"posters:sender:{job}")


def test_a_step_that_is_repeated_is_taken_once(ledger):
    """A producer that got no answer asks again, and nothing is counted twice."""
    ledger.create("job")
    for _ in range(3):
        ledger.record_step("job", 1, batch=batch(), unchanged=5, failures=[Failure("x", "x", "unsupported", "no")])
    progress = ledger.progress("job")
    assert (progress.submitted, progress.unchanged, progress.failed, progress.open_batches) == (10, 5, 1, 1)
    assert progress.steps == 1


def test_a_step_of_a_forgotten_job_is_an_error(ledger):
    """When Redis lost the job, the producer gets an error instead of sending into nothing."""
    with pytest.raises(LedgerSetBack, match="gone"):
        ledger.record_step("job", 1, batch=batch())
    with pytest.raises(LedgerSetBack, match="gone"):
        ledger.mark_sent("job", 1)
    with pytest.raises(JobUnknown, match="status"):
        ledger.progress("job")


def test_a_step_after_one_that_redis_lost_is_an_error(ledger):
    """A Redis that came back from an old copy has the job, but not its last steps: no gap may be written over."""
    ledger.create("job")
    ledger.record_step("job", 1, batch=batch(1))
    with pytest.raises(LedgerSetBack, match="old copy"):
        ledger.record_step("job", 3, batch=batch(3))
    assert ledger.progress("job").submitted == 4, "nothing of the third was written"
    with pytest.raises(LedgerSetBack, match="old copy"):
        ledger.mark_sent("job", 2)


def test_a_producer_that_died_is_noticed(ledger, claims, redis_server):
    """A job whose producer went silent while sending is not for ever `sending`; it ends, and so do its keys."""
    ledger.create("job")
    ledger.record_step("job", 1, batch=batch())
    assert ledger.progress("job").state == "sending"
    silence(redis_server)
    assert ledger.progress("job").state == "abandoned"
    claims.finish(batch(), Outcome(embedded=4))
    assert ledger.progress("job").at_rest
    assert ledger.list_active() == []
    with redis_server.client as client:
        assert client.hget("posters:job:job", "state") == "abandoned"
        assert client.ttl("posters:job:job") > 0


def test_a_producer_that_was_only_silent_goes_on(ledger, claims, redis_server):
    """A laptop that slept finds its job as it left it, and the job's keys stay until its end."""
    ledger.create("job")
    ledger.record_step("job", 1, batch=batch(1))
    claims.finish(batch(1), Outcome(embedded=4))
    silence(redis_server)
    assert ledger.list_active() == []
    ledger.record_step("job", 2, batch=batch(2))
    assert ledger.list_active() == ["job"]
    progress = ledger.progress("job")
    assert (progress.state, progress.submitted, progress.at_rest) == ("sending", 8, False)
    with redis_server.client as client:
        assert client.ttl("posters:job:job") == -1
    claims.finish(batch(2), Outcome(embedded=4))
    ledger.mark_sent("job", 2)
    assert (ledger.progress("job").state, ledger.progress("job").at_rest) == ("finished", True)


def test_active_jobs_are_those_that_may_hold_batches(ledger, claims, redis_server):
    """A job at rest is struck off as soon as it is; one with open batches, or one that still sends, is not."""
    begin(ledger, batch(1, job="open"), job="open")
    begin(ledger, batch(1, job="done"), job="done")
    claims.finish(batch(1, job="done"), Outcome(unchanged=4))
    begin(ledger, job="empty")
    ledger.create("sending")
    with redis_server.client as client:
        assert client.smembers("posters:active") == {"open", "sending"}
    assert ledger.list_active() == ["open", "sending"]


def test_jobs_are_in_the_order_in_which_they_began(ledger, monkeypatch):
    """Newest first, also when the clock was put back in between: `last` is the last."""
    for name, clock in (("a", 1e9), ("b", 2e9), ("c", 1e9)):
        monkeypatch.setattr(time, "time", lambda now=clock: now)
        ledger.create(name)
    assert ledger.list_jobs() == ["c", "b", "a"]
    assert ledger.list_jobs(limit=1) == ["c"]


def test_a_passing_job_is_in_no_list(ledger):
    """What a backend asks in passing does not push the collections out of `status`."""
    ledger.create("passing", keep_s=300)
    assert ledger.list_jobs() == []
    assert ledger.list_active() == ["passing"]


def test_every_key_of_an_ended_job_has_a_lifetime(ledger, claims, redis_server):
    """Nothing of a job stays in Redis for ever."""
    begin(ledger, batch(1), batch(2))
    claims.claim(batch(1), "one#1")
    claims.renew(batch(1), "one#1", 1)
    claims.release(batch(1), "one#1", 60)
    failure = Failure("1-0", "0.jpg", "missing", "gone")
    claims.finish(batch(1), Outcome(embedded=3, failures=(failure,)))
    claims.finish(batch(2), Outcome(embedded=4))
    with redis_server.client as client:
        lasting = [key for key in client.keys("*") if client.ttl(key) < 0]
    assert lasting == ["posters:jobs"]


def test_a_full_redis_refuses_a_step_whole_and_lets_a_worker_finish(ledger, claims, redis_server):
    """Nothing half-written; and what frees memory is not refused, or a full Redis would stay full for ever."""
    begin(ledger, batch(1), batch(2), job="job")
    ledger.create("more")
    with redis_server.client as client:
        before = client.hgetall("posters:job:more")
        client.config_set("maxmemory", "1")
        try:
            for call in (
                lambda: ledger.create("another"),
                lambda: ledger.record_step("more", 1, batch=batch(1, job="more")),
            ):
                with pytest.raises(RedisUnreachable, match="full"):
                    call()
            assert claims.claim(batch(1), "one#1")[1] == 1
            assert claims.renew(batch(1), "one#1", 2)
            assert claims.finish(batch(1), Outcome(embedded=4))
            assert claims.claim(batch(2), "one#2")[1] == 1
            assert claims.release(batch(2), "one#2", 5)
            assert claims.split(batch(2))
        finally:
            client.config_set("maxmemory", "0")
        assert client.hgetall("posters:job:more") == before
        assert not client.exists("posters:job:another", "posters:sender:another")


def test_a_redis_that_is_away_is_named_within_seconds():
    """The error says which Redis, hides its password, and comes within the 5 s of a backend's call."""
    with RedisServer() as server:
        port = server.port
    ledger = JobStore(f"redis://127.0.0.1:{port}/0?username=me&password=secret")
    began = time.monotonic()
    with pytest.raises(RedisUnreachable, match=str(port)) as caught:
        ledger.create("job")
    assert time.monotonic() - began < 5
    assert "secret" not in str(caught.value)
