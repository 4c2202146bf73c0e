"""The ledger: every poster is counted once, whatever is delivered twice, killed, or cancelled."""

import json
import time

import pytest
from redis_server import RedisServer

from worker.errors import JobUnknown, RedisUnreachable
from worker.ledger import Ledger
from worker.messages import EmbedBatch, Poster
from worker.progress import Claim, Failure, Outcome


@pytest.fixture
def ledger(redis_url):
    ledger = Ledger(redis_url, claim_s=30)
    yield ledger
    ledger.close()


def batch(number=1, count=4, job="job"):
    return EmbedBatch(job, f"{job}.{number}", tuple(Poster(f"{number}-{n}", f"{n}.jpg") for n in range(count)))


def begin(ledger, *batches, job="job"):
    ledger.create(job)
    for number, one in enumerate(batches, 1):
        ledger.step(job, number, batch=one)
    ledger.sent(job)


def holds(progress):
    return progress.submitted == progress.embedded + progress.reused + progress.unchanged + progress.failed


def test_a_batch_that_runs_twice_is_counted_once(ledger):
    """The second finish of the same batch changes nothing and says so."""
    begin(ledger, batch())
    outcome = Outcome(embedded=2, reused=1, failures=(Failure("1-3", "3.jpg", "missing", "it is not there"),))
    assert ledger.finish(batch(), outcome)
    assert not ledger.finish(batch(), outcome)
    progress = ledger.progress("job")
    assert (progress.submitted, progress.embedded, progress.reused, progress.failed) == (4, 2, 1, 1)
    assert progress.at_rest
    assert holds(progress)
    assert list(ledger.failures("job")) == [Failure("1-3", "3.jpg", "missing", "it is not there")]


def test_an_outcome_must_add_up(ledger):
    """A batch cannot be finished with fewer or more posters than it holds."""
    begin(ledger, batch())
    with pytest.raises(ValueError, match="holds 4 posters"):
        ledger.finish(batch(), Outcome(embedded=3))
    assert ledger.progress("job").open_batches == 1


def test_a_step_that_is_repeated_is_taken_once(ledger):
    """A producer that heard no answer asks again, and nothing is counted twice."""
    ledger.create("job")
    for _ in range(3):
        ledger.step("job", 1, batch=batch(), unchanged=5, failures=[Failure("x", "x", "unsupported", "no")])
    progress = ledger.progress("job")
    assert (progress.submitted, progress.unchanged, progress.failed, progress.open_batches) == (10, 5, 1, 1)


def test_a_step_of_a_forgotten_job_is_an_error(ledger):
    """When Redis lost the job, the producer hears it instead of sending into nothing."""
    with pytest.raises(JobUnknown, match="gone"):
        ledger.step("job", 1, batch=batch())
    with pytest.raises(JobUnknown, match="status"):
        ledger.progress("job")


def test_a_claim_keeps_others_away_until_it_expires(redis_url):
    """Two workers with the same message: one works, the other is told that it is busy."""
    ledger = Ledger(redis_url, claim_s=0.2)
    begin(ledger, batch())
    assert ledger.claim(batch(), "one") == (Claim.WORK, 1, False)
    assert ledger.claim(batch(), "two")[0] is Claim.BUSY
    assert ledger.claim(batch(), "one") == (Claim.WORK, 2, True), "a fresh child of the same worker takes over"
    assert ledger.unclaimed("job") == {}
    time.sleep(0.3)
    assert ledger.unclaimed("job") == {"job.1": 2}
    assert ledger.claim(batch(), "two") == (Claim.WORK, 3, True)
    ledger.close()


def test_a_beat_renews_the_claim_and_shows_progress(redis_url):
    """A long batch stays claimed while its worker lives; posters done so far are seen but not counted."""
    ledger = Ledger(redis_url, claim_s=0.4)
    begin(ledger, batch())
    ledger.claim(batch(), "one")
    for done in range(4):
        time.sleep(0.2)
        assert ledger.beat(batch(), "one", done)
    assert not ledger.beat(batch(), "two", 4), "only the owner may renew"
    progress = ledger.progress("job")
    assert (progress.doing, progress.settled) == (3, 0)
    ledger.finish(batch(), Outcome(embedded=4))
    progress = ledger.progress("job")
    assert (progress.doing, progress.settled) == (0, 4)
    assert not ledger.beat(batch(), "one", 4)
    ledger.close()


def test_a_finished_batch_is_not_worked_on_again(ledger):
    """A message that comes back after its batch was finished is acknowledged without work."""
    begin(ledger, batch())
    ledger.finish(batch(), Outcome(embedded=4))
    assert ledger.claim(batch(), "one") == (Claim.FINISHED, 0, False)


def test_giving_back_counts_no_attempt(ledger):
    """A passing trouble is nobody's crash: the attempt is taken back, but it is remembered as begun."""
    begin(ledger, batch())
    for _ in range(3):
        assert ledger.claim(batch(), "one")[:2] == (Claim.WORK, 1)
        ledger.give_back(batch(), "one", 0.05)
        assert ledger.unclaimed("job") == {}, "nobody sends it again before the pause is over"
        time.sleep(0.08)
    assert ledger.claim(batch(), "one") == (Claim.WORK, 1, True)
    ledger.give_back(batch(), "one", 0.01, count=True)
    time.sleep(0.03)
    assert ledger.claim(batch(), "one")[1] == 2


def test_cutting_a_batch_keeps_every_poster(ledger):
    """The halves replace the whole: same posters, counted once, no attempts yet."""
    begin(ledger, batch(count=5))
    ledger.claim(batch(count=5), "one")
    halves = ledger.cut(batch(count=5))
    assert ledger.cut(batch(count=5)) is None
    assert ledger.unclaimed("job") == {half.batch: 0 for half in halves}
    assert [ledger.load("job", half.batch) for half in halves] == list(halves)
    assert ledger.progress("job").submitted == 5
    for half in halves:
        assert ledger.claim(half, "one") == (Claim.WORK, 1, True)
        ledger.finish(half, Outcome(embedded=len(half.posters)))
    assert holds(ledger.progress("job"))
    assert ledger.progress("job").at_rest


def test_cancelling_withdraws_what_nobody_works_on(ledger):
    """A claimed batch is finished and counted; the others leave `submitted`."""
    begin(ledger, batch(1), batch(2), batch(3))
    ledger.claim(batch(2), "one")
    assert ledger.cancel("job") == 8
    assert ledger.claim(batch(1), "one")[0] is Claim.FINISHED
    assert not ledger.progress("job").at_rest
    ledger.finish(batch(2), Outcome(embedded=4))
    progress = ledger.progress("job")
    assert (progress.state, progress.submitted, progress.embedded, progress.cancelled) == ("cancelled", 4, 4, 8)
    assert progress.at_rest
    assert holds(progress)


def test_a_producer_that_died_is_noticed(ledger, redis_server):
    """A job whose producer went silent while sending is not at rest for ever `sending`."""
    ledger.create("job")
    ledger.step("job", 1, batch=batch())
    assert ledger.progress("job").state == "sending"
    with redis_server.client as client:
        client.delete("posters:sender:job")  # what its expiry does after SENDER_S
    assert ledger.progress("job").state == "abandoned"
    ledger.finish(batch(), Outcome(embedded=4))
    assert ledger.progress("job").at_rest


def test_active_jobs_are_those_that_may_hold_batches(ledger):
    """A job at rest is struck off; one with open batches, or one that still sends, is not."""
    begin(ledger, batch(1, job="open"), job="open")
    begin(ledger, batch(1, job="done"), job="done")
    ledger.finish(batch(1, job="done"), Outcome(unchanged=4))
    ledger.create("sending")
    assert ledger.active() == ["open", "sending"]


def test_vectors_for_a_waiting_caller_come_back_bit_by_bit(ledger):
    """What a replying batch leaves is what the caller reads."""
    begin(ledger, batch())
    ledger.finish(batch(), Outcome(embedded=4, vectors={"1-0": bytes(range(256)), "1-1": b"\0\xff"}))
    assert ledger.vectors("job", ["1-0", "1-1", "1-2"]) == {"1-0": bytes(range(256)), "1-1": b"\0\xff"}


def test_every_key_of_an_ended_job_has_a_lifetime(ledger, redis_server):
    """Nothing of a job stays in Redis for ever."""
    begin(ledger, batch(1), batch(2))
    ledger.claim(batch(1), "one")
    ledger.beat(batch(1), "one", 1)
    failure = Failure("1-0", "0.jpg", "missing", "gone")
    ledger.finish(batch(1), Outcome(embedded=3, failures=(failure,), vectors={"1-1": b"x"}))
    ledger.finish(batch(2), Outcome(embedded=4))
    ledger.active()
    with redis_server.client as client:
        lasting = [key for key in client.keys("*") if client.ttl(key) < 0]
    assert lasting == ["posters:jobs"]


def test_quarantine_keeps_message_and_reason(ledger, redis_server):
    """What was put aside can be read, and is counted."""
    ledger.quarantine("'odd'", "no batch")
    assert ledger.quarantined() == 1
    with redis_server.client as client:
        entry = json.loads(client.lrange("posters:quarantine", 0, 0)[0])
    assert (entry["message"], entry["reason"]) == ("'odd'", "no batch")


def test_a_redis_that_is_away_is_named_within_seconds():
    """The error says which Redis, hides its password, and comes within the 5 s of a backend's call."""
    with RedisServer() as server:
        port = server.port
    ledger = Ledger(f"redis://:secret@127.0.0.1:{port}/0")
    began = time.monotonic()
    with pytest.raises(RedisUnreachable, match=str(port)) as caught:
        ledger.create("job")
    assert time.monotonic() - began < 5
    assert "secret" not in str(caught.value)
