"""Claims: one holder at a time, every poster counted once, whatever is delivered twice, killed, or cancelled."""

import json
import time
from dataclasses import replace

import pytest

from producer.queue.claims import Claims, new_holder
from producer.queue.jobs import JobStore
from producer.queue.progress import Claim, Failure, Outcome
from tests.support.ledger_jobs import batch, begin, holds, recorded
from tests.support.redis_server import WORKER, RedisServer


@pytest.fixture
def ledger(redis_url):
    ledger = JobStore(redis_url, claim_s=30)
    yield ledger
    ledger.close()


@pytest.fixture
def claims(ledger):
    return Claims(ledger)


@pytest.fixture
def brief(redis_url):
    """Ledger and claims whose claims last 0.4 s."""
    ledger = JobStore(redis_url, claim_s=0.4)
    yield ledger, Claims(ledger)
    ledger.close()


def test_a_batch_that_runs_twice_is_counted_once(ledger, claims):
    """The second finish of the same batch changes nothing and says so."""
    begin(ledger, batch())
    outcome = Outcome(embedded=2, reused=1, failures=(Failure("1-3", "3.jpg", "missing", "it is not there"),))
    assert claims.finish(batch(), outcome)
    assert not claims.finish(batch(), outcome)
    progress = ledger.progress("job")
    assert (progress.submitted, progress.embedded, progress.reused, progress.failed) == (4, 2, 1, 1)
    assert progress.at_rest
    assert holds(progress)
    assert list(ledger.failures("job")) == [Failure("1-3", "3.jpg", "missing", "it is not there")]


def test_an_outcome_must_add_up(ledger, claims):
    """A batch cannot be finished with fewer or more posters than it holds."""
    begin(ledger, batch())
    with pytest.raises(ValueError, match="holds 4 posters"):
        claims.finish(batch(), Outcome(embedded=3))
    assert ledger.progress("job").open_batches == 1


def test_what_was_recorded_is_what_must_be_counted(ledger, claims):
    """A batch of one poster under the name of a batch of four: nothing is counted, and the error names it."""
    begin(ledger, batch())
    with pytest.raises(ValueError, match=r"job\.1"):
        claims.finish(batch(count=1), Outcome(embedded=1))
    progress = ledger.progress("job")
    assert (progress.settled, progress.open_batches) == (0, 1)
    assert claims.finish(batch(), Outcome(embedded=4))


def test_halves_are_counted_as_they_were_split(ledger, claims):
    """Also in the end of a job of one batch of five posters."""
    begin(ledger, batch(count=5))
    first, second = claims.split(batch(count=5))
    assert claims.claim(second, "one#a").posters == 3
    with pytest.raises(ValueError, match=r"job\.1\.1"):
        claims.finish(replace(first, batch=second.batch), Outcome(embedded=2))
    assert claims.finish(first, Outcome(embedded=2))
    assert claims.finish(second, Outcome(reused=3))
    assert ledger.progress("job").is_balanced


def test_a_batch_of_a_producer_of_version_0_1_is_counted(ledger, claims, redis_server):
    """It noted no number of posters beside the batch."""
    begin(ledger, batch(1), batch(2))
    with redis_server.client as client:
        client.delete("posters:job:job:tries")
    assert claims.claim(batch(1), "one#a").posters is None
    assert claims.finish(batch(1), Outcome(embedded=4))
    assert claims.cancel("job") == 4
    progress = ledger.progress("job")
    assert (progress.submitted, progress.embedded, progress.cancelled, progress.at_rest) == (4, 4, 4, True)


def test_a_damaged_record_can_be_cancelled(ledger, claims, redis_server):
    """How many posters it had is noted beside it."""
    begin(ledger, batch())
    with redis_server.client as client:
        client.hset("posters:job:job:open", "job.1", "{")
    assert claims.cancel("job") == 4
    assert ledger.progress("job").is_balanced


def test_signatures_differ_by_delivery_and_not_by_owner():
    """A repeated call is the same holder; a second delivery is another."""
    assert new_holder("w/1").startswith("w/1#")
    assert new_holder("w/1") != new_holder("w/1")


def test_a_claim_keeps_others_away_until_it_expires(brief):
    """Two workers with the same message: one works, the other gets BUSY."""
    ledger, claims = brief
    begin(ledger, batch())
    assert claims.claim(batch(), "one#a")[:3] == (Claim.WORK, 1, False)
    assert claims.claim(batch(), "two#b")[0] is Claim.BUSY
    assert claims.claim(batch(), "on#c")[0] is Claim.BUSY, "an owner's name that another begins with is not the same"
    assert claims.claim(batch(), "one#d")[:3] == (Claim.WORK, 2, True), "a fresh child of the same worker takes over"
    assert claims.claimed(["job.1"]) == {"job.1"}
    time.sleep(0.6)
    assert claims.claimed(["job.1"]) == set()
    assert claims.claim(batch(), "two#e")[:3] == (Claim.WORK, 3, True)


def test_a_claim_that_is_asked_for_twice_is_one_attempt(ledger, claims):
    """A caller that got no answer asks again; a slow network must not look like a death."""
    begin(ledger, batch())
    for _ in range(3):
        assert claims.claim(batch(), "one#a")[:3] == (Claim.WORK, 1, False)


def test_a_beat_renews_the_claim_and_shows_progress(brief):
    """A long batch stays claimed while its worker lives; posters done so far are seen but not counted."""
    ledger, claims = brief
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    for done in range(4):
        time.sleep(0.2)
        assert claims.renew(batch(), "one#a", done)
    assert not claims.renew(batch(), "two#b", 4), "only the holder may renew"
    progress = ledger.progress("job")
    assert (progress.doing, progress.settled) == (3, 0)
    claims.finish(batch(), Outcome(embedded=4))
    progress = ledger.progress("job")
    assert (progress.doing, progress.settled) == (0, 4)
    assert not claims.renew(batch(), "one#a", 4)


def test_a_beat_takes_back_a_claim_that_expired_and_that_nobody_took(ledger, claims, redis_server):
    """As when Redis' clock is put forward by two hours, or a worker was paused."""
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    with redis_server.client as client:
        client.delete("posters:claim:job.1")
    assert claims.renew(batch(), "one#a", 1)
    assert claims.claim(batch(), "two#b")[0] is Claim.BUSY


@pytest.mark.parametrize("end", ["release", "release_dead"])
def test_a_late_heartbeat_does_not_revive_a_released_claim(ledger, claims, redis_server, end):
    """Nobody owns the batch any more: a claim that came back would keep it from the next worker for its lifetime."""
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    assert claims.release(batch(), "one#a") if end == "release" else claims.release_dead(batch(), "one", crashed=False)
    assert not claims.renew(batch(), "one#a", 3)
    assert claims.claimed(["job.1"]) == set()
    assert not claims.release(batch(), "one#a"), "nor is it released twice"
    assert not claims.release_dead(batch(), "one", crashed=False)
    counted = 0 if end == "release" else 1
    with redis_server.client as client:
        assert int(client.hget("posters:job:job:tries", "job.1") or 0) == counted
    assert claims.claim(batch(), "two#b")[:2] == (Claim.WORK, counted + 1)


def test_a_late_heartbeat_does_not_take_the_batch_from_the_next_holder(brief):
    """Also when that one's claim has expired as well: only the last holder may renew."""
    ledger, claims = brief
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    time.sleep(0.5)
    claims.claim(batch(), "two#b")
    time.sleep(0.5)
    assert not claims.renew(batch(), "one#a", 3)
    assert claims.renew(batch(), "two#b", 3)


def test_a_claim_that_expired_is_claimed_again_and_released_as_one_attempt(brief, redis_server):
    """Its holder's answer was lost, or a clock jumped: it is the same attempt, and nobody's crash."""
    ledger, claims = brief
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    time.sleep(0.5)
    assert claims.claim(batch(), "one#a")[:3] == (Claim.WORK, 1, False)
    time.sleep(0.5)
    assert claims.release(batch(), "one#a")
    assert claims.take_returned() == [("job", "job.1")]
    assert claims.claim(batch(), "two#b")[:3] == (Claim.WORK, 1, True)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_ends_while_redis_is_down_is_no_death(tmp_path, is_restarted):
    """A worker that is stopped meanwhile cannot report it. Where Redis was up, who reports nothing has died."""
    with RedisServer(["--appendonly", "yes", "--appendfsync", "always"], tmp_path) as server:
        ledger = JobStore(server.url, claim_s=30)
        claims = Claims(ledger)
        begin(ledger, batch())
        for number in range(3):
            expected = 1 if is_restarted else number + 1
            assert claims.claim(batch(), f"worker{number}#x")[:3] == (Claim.WORK, expected, number > 0)
            if is_restarted:
                server.stop()
                server.start()
            with server.client as client:
                client.delete("posters:claim:job.1")  # it has expired
        assert claims.finish(batch(), Outcome(embedded=4))
        with server.client as client:
            assert client.hgetall("posters:job:job:tries") == {}
        ledger.close()


def test_a_provider_that_forbids_info_costs_no_claim(ledger, claims, redis_server):
    """Whether Redis was restarted is unknown there: whatever is not reported counts."""
    with redis_server.client as client:
        client.acl_setuser(WORKER, enabled=True, commands=["-info"], reset=False)
        begin(ledger, batch())
        assert claims.claim(batch(), "one#a")[:2] == (Claim.WORK, 1)
        client.delete("posters:claim:job.1")
        assert claims.claim(batch(), "two#b")[:2] == (Claim.WORK, 2)
        client.acl_setuser(WORKER, enabled=True, commands=["+info"], reset=False)


def test_a_finished_batch_is_not_worked_on_again(ledger, claims):
    """A message that comes back after its batch was finished is acknowledged without work."""
    begin(ledger, batch())
    claims.finish(batch(), Outcome(embedded=4))
    assert claims.claim(batch(), "one#a")[:3] == (Claim.FINISHED, 0, False)


def test_giving_back_counts_no_attempt(ledger, claims):
    """A passing trouble is nobody's crash: the attempt is not counted, but it is remembered as begun."""
    begin(ledger, batch())
    for _ in range(3):
        assert claims.claim(batch(), holder := new_holder("one"))[:2] == (Claim.WORK, 1)
        assert claims.release(batch(), holder, 0.05)
        assert claims.claim(batch(), new_holder("one"))[0] is Claim.BUSY, "nobody takes it before the pause is over"
        time.sleep(0.08)
    assert claims.claim(batch(), "one#x")[:3] == (Claim.WORK, 1, True)
    assert claims.release(batch(), "one#x", 0.01, count=True)
    time.sleep(0.03)
    assert claims.claim(batch(), "one#y")[1] == 2


def test_only_the_holder_gives_back(ledger, claims):
    """Whose claim was taken over must not free it for a third."""
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    claims.claim(batch(), "one#b")
    assert not claims.release(batch(), "one#a")
    assert claims.claim(batch(), "two#c")[0] is Claim.BUSY


def test_a_released_batch_is_returned_to_one_caller_when_its_pause_is_over(ledger, claims):
    """Not before, and not to two."""
    begin(ledger, batch(1), batch(2))
    claims.claim(batch(1), "one#a")
    claims.release(batch(1), "one#a", 0.3)
    assert claims.take_returned() == []
    time.sleep(0.4)
    assert claims.take_returned() == [("job", "job.1")]
    assert claims.take_returned() == []


def test_a_released_batch_that_was_finished_elsewhere_is_returned_to_nobody(ledger, claims):
    """Its message may have come back by another way."""
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    claims.release(batch(), "one#a")
    claims.finish(batch(), Outcome(embedded=4))
    assert claims.take_returned() == []


def test_the_batch_of_a_child_that_died_is_free_at_once(ledger, claims):
    """Its parent says so: the attempt is counted, and whoever is alive sends the batch again."""
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    assert not claims.release_dead(batch(), "two", crashed=True), "another's batch is not ours to free"
    assert claims.release_dead(batch(), "one", crashed=False)
    assert claims.take_returned() == [("job", "job.1")]
    assert claims.claim(batch(), "two#b")[:3] == (Claim.WORK, 2, True)
    assert claims.crashes(batch()) == 0, "it may have been killed from outside"
    assert claims.release_dead(batch(), "two", crashed=True)
    assert claims.crashes(batch()) == 1
    assert claims.claim(batch(), "two#c")[:3] == (Claim.WORK, 3, True)
    assert claims.release(batch(), "two#c", count=True)
    assert claims.crashes(batch()) == 2
    claims.finish(batch(), Outcome(embedded=4))
    assert not claims.release_dead(batch(), "two", crashed=True)
    assert claims.crashes(batch()) == 0, "nothing of a finished batch is kept"


def test_cutting_a_batch_keeps_every_poster(ledger, claims):
    """The halves replace the whole: same posters, counted once."""
    begin(ledger, batch(count=5))
    claims.claim(batch(count=5), "one#a")
    halves = claims.split(batch(count=5))
    assert claims.split(batch(count=5)) is None
    assert claims.open_batches("job") == {half.batch for half in halves}
    assert claims.claimed([half.batch for half in halves]) == set()
    assert [recorded(ledger, "job", half.batch) for half in halves] == list(halves)
    assert ledger.progress("job").submitted == 5
    for half in halves:
        assert claims.claim(half, "one#b")[:3] == (Claim.WORK, 1, True)
        claims.finish(half, Outcome(embedded=len(half.posters)))
    assert holds(ledger.progress("job"))
    assert ledger.progress("job").at_rest


def test_a_half_of_several_posters_begins_under_suspicion(ledger, claims):
    """So that it is cut after one more death, while a single poster gets all its attempts."""
    begin(ledger, batch(count=3))
    claims.claim(batch(count=3), "one#a")
    one, two = claims.split(batch(count=3), counted=1)
    assert (len(one.posters), len(two.posters)) == (1, 2)
    assert claims.claim(one, "one#b")[:3] == (Claim.WORK, 1, True)
    assert claims.claim(two, "one#c")[:3] == (Claim.WORK, 2, True)


def test_cancelling_withdraws_what_nobody_works_on(ledger, claims):
    """A claimed batch is finished and counted; the others, also those that rest, leave `submitted`."""
    begin(ledger, batch(1), batch(2), batch(3))
    claims.claim(batch(2), "one#a")
    claims.claim(batch(3), "one#b")
    claims.release(batch(3), "one#b", 60)
    assert claims.cancel("job") == 8
    assert claims.claim(batch(1), "one#c")[0] is Claim.FINISHED
    assert not ledger.progress("job").at_rest
    claims.finish(batch(2), Outcome(embedded=4))
    progress = ledger.progress("job")
    assert (progress.state, progress.submitted, progress.embedded, progress.cancelled) == ("cancelled", 4, 4, 8)
    assert progress.at_rest
    assert holds(progress)
    assert claims.take_returned() == []


def test_a_batch_of_a_cancelled_job_is_not_begun(ledger, claims):
    """Its worker died after the cancelling: whoever gets it next withdraws it instead of working on it."""
    begin(ledger, batch())
    claims.claim(batch(), "one#a")
    assert claims.cancel("job") == 0
    claims.release(batch(), "one#a")
    claimed = claims.claim(batch(), "two#b")
    assert claimed.verdict is Claim.CANCELLED
    assert claims.withdraw(batch(), claimed.text) == 4
    progress = ledger.progress("job")
    assert (progress.at_rest, progress.submitted, progress.cancelled) == (True, 0, 4)


def test_a_job_at_rest_cannot_be_cancelled(ledger, claims):
    """It stays what it is: finished."""
    begin(ledger, batch())
    claims.finish(batch(), Outcome(embedded=4))
    assert claims.cancel("job") == 0
    assert ledger.progress("job").state == "finished"


def test_a_job_of_a_newer_version_can_be_cancelled(ledger, claims, redis_server):
    """Its batches cannot be read here, but they can be withdrawn."""
    begin(ledger, batch())
    with redis_server.client as client:
        entry = json.loads(client.hget("posters:job:job:open", "job.1"))
        client.hset("posters:job:job:open", "job.1", json.dumps(entry | {"version": 99}))
    assert claims.cancel("job") == 4
    assert ledger.progress("job").at_rest


def test_queued_batches_are_found_among_thousands_and_rubbish(ledger, claims, redis_server, redis_url):
    """As real producers have sent them, page after page; what is not a message does not stop the search."""
    from producer.queue.messages import BULK, INTERACTIVE, QUEUES
    from producer.queue.sender import create_sender, send
    from producer.settings import load_settings

    with create_sender(load_settings(redis_url=redis_url)) as app, redis_server.client as client:
        send(app, batch(1))
        sample = client.lindex(QUEUES[BULK], 0)
        pipe = client.pipeline()
        for number in range(2, 1001):
            pipe.lpush(QUEUES[BULK if number % 2 else INTERACTIVE], sample.replace("job.1", f"job.{number}"))
        pipe.lpush(QUEUES[BULK], "rubbish", "[]", '{"headers": 5}', '{"headers":{"id":"job.2001"}}')
        pipe.execute()
    wanted = {f"job.{number}" for number in (1, 2, 500, 999, 1000, 2001, 2002)}
    assert claims.queued(wanted) == wanted - {"job.2002"}
