"""The ledger as a state machine: producers, workers and redelivery do what they may, in any order, on a real Redis.

A model says what must be counted. Messages are lost and duplicated, owners crash, claims expire, holders that were
replaced still act; nothing may be counted twice, or stay open once everything is quiet.
"""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from producer.errors import LedgerSetBack
from producer.queue.claims import Claims, new_holder
from producer.queue.jobs import JobStore
from producer.queue.keys import NOBODY
from producer.queue.messages import BULK, QUEUES, BatchMessage, EmbedBatch, Poster
from producer.queue.progress import Claim, Failure, Outcome
from producer.queue.redelivery import GRACE_S, SCAN_EVERY_S, Redelivery

OWNERS = ("one", "two", "three")
OWNER, NUMBER = st.sampled_from(OWNERS), st.integers(0, 7)
STEPS = 50  # of an example
QUICK, LONG = 50, 10 * int(os.environ.get("CHAOS_SECONDS", "60"))  # examples, a tenth of a second each
ROUNDS = 60  # within which everything is quiet
NAMES = ("embedded", "reused", "unchanged", "failed")
LANE = QUEUES[BULK]
SNAPSHOT = """
local found = {}
for _, key in ipairs(redis.call('KEYS', 'posters:job:*')) do found[key] = redis.call('HGETALL', key) end
for _, key in ipairs(redis.call('KEYS', 'posters:claim:*')) do found[key] = redis.call('GET', key) end
return cjson.encode(found)
"""
redis = None  # a client that may do everything


def newest(things, number):
    """The newest for 0, and so on."""
    return things[-1 - number % len(things)]


class LedgerMachine(RuleBasedStateMachine):
    """The model: of each job its counts, of each open batch its posters, and who was last granted it.

    A rule picks jobs, batches and deliveries by number, the newest first, so that no rule ever lacks one to act on.
    """

    store: JobStore  # connected once, for all histories

    @initialize()
    def begin(self):
        """Two jobs with some batches."""
        redis.flushall()
        self.claims, self.now = Claims(self.store), 0.0
        self.redeliveries = [Redelivery(self.claims, self.store, self.send, lambda: self.now) for _ in range(2)]
        self.steps, self.counts, self.failures, self.cancelled = {}, {}, {}, set()
        self.open, self.holder, self.attempts, self.crashes, self.granted = {}, {}, {}, {}, {}
        self.in_an_earlier_run = set()  # of Redis: their holders claimed them before it was restarted
        self.batches, self.deliveries = [], []  # all that ever were; a delivery is (batch, holder)
        for job in range(2):
            self.create()
            for posters in (1, 2, 5):
                self.record(job, posters, 0, 0, 1, True)

    def teardown(self):
        if hasattr(self, "redeliveries"):
            self.come_to_rest()

    # the lane, as kombu keeps it, with the task's id where Redis looks for it

    def send(self, message):
        redis.lpush(LANE, json.dumps({"body": "", "headers": {"id": message.batch, "job": message.job}}))

    def next_message(self):
        text = redis.rpop(LANE)
        headers = json.loads(text)["headers"] if text else None
        return BatchMessage(headers["job"], headers["id"]) if headers else None

    # producers

    @rule()
    def create(self):
        job = f"job{len(self.steps)}"
        self.store.create(job)
        self.steps[job], self.failures[job] = 0, set()
        self.counts[job] = dict.fromkeys((*NAMES, "submitted"), 0)

    @rule(
        job=NUMBER,
        posters=st.integers(0, 5),
        unchanged=st.integers(0, 2),
        failed=st.integers(0, 2),
        repeats=st.integers(1, 2),
        is_sent=st.booleans(),
    )
    def record(self, job, posters, unchanged, failed, repeats, is_sent):
        """A step, perhaps twice since its answer was lost; the producer may die before it sends the message."""
        job = newest(list(self.steps), job)
        number = self.steps[job] + 1
        names = tuple(Poster(f"{job}.{number}-{n}", f"{n}.jpg") for n in range(posters))
        batch = EmbedBatch(job, f"{job}.{number}", names) if names else None
        failures = [Failure(f"{job}.{number}!{n}", "x", "missing", "no") for n in range(failed)]
        for _ in range(repeats):
            taken = self.store.record_step(job, number, batch=batch, unchanged=unchanged, failures=failures)
            assert taken == (job not in self.cancelled)
        if not taken:
            return
        self.steps[job] = number
        self.failures[job] |= {failure.id for failure in failures}
        self.count(job, submitted=posters + unchanged + failed, unchanged=unchanged, failed=failed)
        if batch is not None:
            self.add(batch, 0)
            if is_sent:
                self.send(batch)

    @rule(job=NUMBER)
    def record_after_a_gap(self, job):
        job = newest(list(self.steps), job)
        if job not in self.cancelled:
            with pytest.raises(LedgerSetBack):
                self.store.record_step(job, self.steps[job] + 2)

    @rule(job=NUMBER, dies=st.booleans())
    def end_sending(self, job, dies):
        """The producer is done, or dies."""
        job = newest(list(self.steps), job)
        if dies:
            redis.delete(f"posters:sender:{job}")
        else:
            self.store.mark_sent(job, self.steps[job])

    @rule(job=NUMBER)
    def cancel(self, job):
        """Whatever no worker holds leaves the job."""
        job = newest(list(self.steps), job)
        free = [name for name, batch in self.open.items() if batch.job == job and not self.is_held(name)]
        assert self.claims.cancel(job) == sum(len(self.open[name].posters) for name in free)
        for name in free:
            self.withdraw(name)
        if redis.hget(f"posters:job:{job}", "state") == "cancelled":
            self.cancelled.add(job)
        else:
            assert not any(batch.job == job for batch in self.open.values()), "only a job at rest stays as it is"

    # the broker

    @rule()
    def lose_a_message(self):
        """Also what Celery's `revoke` does: the message is taken off the lane, and nobody works on it."""
        redis.rpop(LANE)

    @rule(batch=NUMBER)
    def duplicate_a_message(self, batch):
        """Of a batch that may be finished long since."""
        self.send(newest(self.batches, batch))

    @rule(seconds=st.sampled_from([1, SCAN_EVERY_S, GRACE_S, 60]), by=st.integers(0, 1))
    def redeliver(self, seconds, by):
        self.now += seconds
        self.redeliveries[by].run()

    # workers

    @rule(owner=OWNER)
    def claim(self, owner):
        """The next message of the lane."""
        if message := self.next_message():
            self.claim_as(message, new_holder(owner))

    @rule(batch=NUMBER, owner=OWNER)
    def claim_out_of_order(self, batch, owner):
        """A message that overtook the others, or is one of many, of any batch that ever was."""
        self.claim_as(newest(self.batches, batch), new_holder(owner))

    @rule(delivery=NUMBER)
    def claim_again(self, delivery):
        """The answer to the claim was lost."""
        batch, holder = self.delivery(delivery)
        if self.is_holders(batch, holder):
            claimed = self.claims.claim(batch, holder)
            assert (claimed.verdict, claimed.attempt) == (Claim.WORK, self.attempts[batch.batch] + 1)
            self.holder[batch.batch] = holder

    @rule(delivery=NUMBER, done=st.integers(0, 5))
    def renew(self, delivery, done):
        """A heartbeat, perhaps of a holder that released the batch, or was replaced."""
        batch, holder = self.delivery(delivery)
        renewed = self.claims.renew(batch, holder, done)
        assert renewed == self.is_holders(batch, holder)
        if renewed:
            self.holder[batch.batch] = holder

    @rule(delivery=NUMBER, pause_s=st.sampled_from([0, 3600]), is_counted=st.booleans())
    def release(self, delivery, pause_s, is_counted):
        """Then a heartbeat that comes late, and a second release: neither changes anything."""
        batch, holder = self.delivery(delivery)
        released = self.claims.release(batch, holder, pause_s, count=is_counted)
        assert released == self.is_holders(batch, holder)
        if released:
            self.attempts[batch.batch] += is_counted
            self.crashes[batch.batch] += is_counted
            self.granted.pop(batch.batch)
            self.holder[batch.batch] = NOBODY if pause_s else None
        assert not self.claims.renew(batch, holder, 1)
        assert not self.claims.release(batch, holder, pause_s)

    @rule(delivery=NUMBER, parts=st.lists(st.sampled_from(NAMES), min_size=5, max_size=5))
    def finish(self, delivery, parts):
        """Also by a holder that was replaced: its vectors are stored, so they count."""
        self.finish_as(self.delivery(delivery)[0], parts)

    @rule(batch=NUMBER, more=st.integers(1, 3))
    def finish_more_than_was_recorded(self, batch, more):
        """An outcome that does not add up to what was recorded is refused, whatever its batch is said to hold."""
        batch = newest(self.batches, batch)
        forged = tuple(Poster(f"forged{n}", "x.jpg") for n in range(more))
        for claimed in (batch, replace(batch, posters=batch.posters + forged)):
            if claimed is batch or batch.batch in self.open:
                with pytest.raises(ValueError, match="outcome"):
                    self.claims.finish(claimed, Outcome(embedded=len(batch.posters) + more))

    @rule(delivery=NUMBER, counted=st.integers(0, 1))
    def split(self, delivery, counted):
        batch, _ = self.delivery(delivery)
        if len(batch.posters) < 2:
            return
        halves = self.claims.split(batch, counted)
        assert bool(halves) == (batch.batch in self.open)
        if halves:
            self.close(batch.batch)
            for half in halves:
                self.add(half, counted if len(half.posters) > 1 else 0)

    @rule(batch=NUMBER, owner=OWNER, crashed=st.booleans())
    def release_what_a_child_died_with(self, batch, owner, crashed):
        batch = newest(self.batches, batch)
        last = self.granted.get(batch.batch, "")
        is_its_own = last.startswith(f"{owner}#") and self.is_holders(batch, last)
        assert self.claims.release_dead(batch, owner, crashed=crashed) == is_its_own
        if is_its_own:
            self.attempts[batch.batch] += 1
            self.crashes[batch.batch] += crashed
            self.granted.pop(batch.batch)
            self.holder[batch.batch] = None

    @rule(batch=NUMBER)
    def expire(self, batch):
        """A claim, or the pause after a release, is over: its owner crashed, or was too slow."""
        name = newest(self.batches, batch).batch
        redis.delete(f"posters:claim:{name}")
        self.holder.pop(name, None)

    @rule()
    def restart_redis(self):
        """What tells a claim's run of Redis from the present one is its id: all are claims of an earlier run now."""
        for name in self.granted:
            if name in self.open:
                redis.hset(f"posters:job:{self.open[name].job}:tries", f"{name}~", "0")
                self.in_an_earlier_run.add(name)

    # what must hold

    @invariant()
    def ledger_is_as_the_model(self):
        """Counts are conserved, what is open is open once, a claim is its claimer's, no attempt is negative."""
        if not hasattr(self, "redeliveries"):
            return  # nothing has begun
        found = json.loads(redis.eval(SNAPSHOT, 0))
        for job in self.counts:
            key = f"posters:job:{job}"
            entry, opened, tries, failures = (
                dict(zip(*[iter(found.get(key + kind, ()))] * 2, strict=True))
                for kind in ("", ":open", ":tries", ":failures")
            )
            self.check_job(job, entry, opened, tries, set(failures))
        claims = {key: value for key, value in found.items() if key.startswith("posters:claim:")}
        assert claims == {f"posters:claim:{name}": holder for name, holder in self.holder.items() if holder}

    def check_job(self, job, entry, opened, tries, failures):
        counts, batches = self.counts[job], {name for name, batch in self.open.items() if batch.job == job}
        assert {name: int(entry[name]) for name in counts} == counts
        waiting = sum(len(self.open[name].posters) for name in batches)
        assert counts["submitted"] == sum(counts[name] for name in NAMES) + waiting
        assert (set(opened), failures) == (batches, self.failures[job])
        assert {field.rstrip("#!@~+") for field in tries} <= batches
        for known, mark in ((self.attempts, ""), (self.crashes, "!")):
            assert {name: int(tries.get(name + mark, 0)) for name in batches} == {name: known[name] for name in batches}
        assert all(self.attempts[name] >= 0 for name in batches)

    # helpers

    def is_held(self, name):
        return self.holder.get(name) not in (None, NOBODY)

    def is_holders(self, batch, holder):
        """True for the last one that was granted the batch, until it releases it or another takes it."""
        name = batch.batch
        return name in self.open and self.granted.get(name) == holder and self.holder.get(name) in (None, holder)

    def delivery(self, number):
        """A batch and its holder, as a worker remembers them, for as long as it likes."""
        if not self.deliveries:
            self.claim_as(self.batches[0], new_holder(OWNERS[0]))
        return newest(self.deliveries, number) if self.deliveries else (self.batches[0], new_holder(OWNERS[0]))

    def add(self, batch, attempts):
        self.open[batch.batch], self.attempts[batch.batch], self.crashes[batch.batch] = batch, attempts, 0
        self.batches.append(batch)

    def count(self, job, **more):
        for name, number in more.items():
            self.counts[job][name] += number

    def close(self, name):
        for known in (self.open, self.holder, self.attempts, self.crashes, self.granted):
            known.pop(name, None)
        self.in_an_earlier_run.discard(name)

    def withdraw(self, name):
        self.count(self.open[name].job, submitted=-len(self.open[name].posters))
        self.close(name)

    def claim_as(self, message, holder):
        name, owner = message.batch, holder.partition("#")[0]
        claimed = self.claims.claim(message, holder)
        held = self.holder.get(name)
        if name not in self.open:
            assert claimed.verdict is Claim.FINISHED
        elif held and not held.startswith(f"{owner}#"):
            assert claimed.verdict is Claim.BUSY
        elif message.job in self.cancelled:
            assert claimed.verdict is Claim.CANCELLED
            posters = len(self.open[name].posters)
            is_free = not self.is_held(name)
            assert self.claims.withdraw(message, claimed.text) == (posters if is_free else 0)
            if is_free:
                self.withdraw(name)
        else:
            self.attempts[name] += name in self.granted and name not in self.in_an_earlier_run
            self.in_an_earlier_run.discard(name)
            self.holder[name] = self.granted[name] = holder
            assert (claimed.verdict, claimed.attempt) == (Claim.WORK, self.attempts[name] + 1)
            assert claimed.batch(message) == self.open[name]
            self.deliveries.append((self.open[name], holder))
        return claimed.verdict is Claim.WORK

    def finish_as(self, batch, parts):
        kinds = [kind for kind, _ in zip(parts, batch.posters, strict=False)]
        failed = [poster for kind, poster in zip(kinds, batch.posters, strict=True) if kind == "failed"]
        failures = tuple(Failure(poster.id, poster.path, "missing", "no") for poster in failed)
        numbers = {name: kinds.count(name) for name in NAMES}
        outcome = Outcome(**{name: numbers[name] for name in NAMES if name != "failed"}, failures=failures)
        counted = self.claims.finish(batch, outcome)
        assert counted == (batch.batch in self.open)
        if counted:
            self.failures[batch.job] |= {failure.id for failure in failures}
            self.count(batch.job, **numbers)
            self.close(batch.batch)

    def come_to_rest(self):
        """All owners but a new one are gone, claims expire, producers are done or dead: nothing stays open."""
        for number in range(len(self.steps)):
            self.end_sending(number, dies=number % 2 > 0)
        for _ in range(ROUNDS):
            redis.delete(*(f"posters:claim:{batch.batch}" for batch in self.batches))
            self.holder.clear()
            self.now += SCAN_EVERY_S
            for redelivery in self.redeliveries:
                redelivery.run()
            while redis.llen(LANE):
                message = self.next_message()
                if self.claim_as(message, new_holder("last")):
                    self.finish_as(self.open[message.batch], ["embedded"] * 5)
            if not self.store.list_active():
                break
        self.ledger_is_as_the_model()
        assert not self.open
        assert self.store.list_active() == []
        lasting = {key for key in redis.keys("*") if redis.ttl(key) < 0}
        assert lasting <= {"posters:jobs"}, lasting


@pytest.fixture(autouse=True)
def _server(redis_server, redis_url, monkeypatch):
    store = JobStore(redis_url, claim_s=3600)
    monkeypatch.setattr(LedgerMachine, "store", store, raising=False)
    with redis_server.client as client:
        monkeypatch.setitem(globals(), "redis", client)
        yield
    store.close()


def run(examples):
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_ledger_keeps_its_promises_in_any_order():
    """A few dozen histories."""
    run(QUICK)


@pytest.mark.chaos
def test_the_ledger_keeps_its_promises_in_many_orders():
    """As many as CHAOS_SECONDS allow."""
    run(LONG)
