"""A job of which Redis has lost some keys: whoever waits for it gets a true result in bounded time.

Every subset of a job's keys is deleted, while one batch is finished, one is claimed, one was returned and the others
wait. A simulated worker takes what lies on the lanes; time is simulated as well.
"""

import base64
import json
from itertools import chain, combinations
from types import SimpleNamespace

import pytest

from producer import Producer
from producer.errors import LedgerSetBack
from producer.indexing.index_job import scan, send_all
from producer.queue.claims import new_holder
from producer.queue.messages import BULK, QUEUES, BatchMessage
from producer.queue.progress import Claim, Failure, Outcome
from producer.queue.redelivery import Redelivery
from producer.settings import load_settings

POSTERS = 6
BAD = "5.jpg"
KEYS = {
    "job": "posters:job:{job}",
    "open": "posters:job:{job}:open",
    "attempts": "posters:job:{job}:tries",
    "done": "posters:job:{job}:doing",
    "failures": "posters:job:{job}:failures",
    "sender": "posters:sender:{job}",
    "claim": "posters:claim:{job}.*",
    "active": "posters:active",
    "returned": "posters:returned",
    "lane": QUEUES[BULK],
}
SUBSETS = list(chain.from_iterable(combinations(KEYS, size) for size in range(1, len(KEYS) + 1)))
SOME = [subset for subset in SUBSETS if len(subset) in (1, 2, len(KEYS) - 1, len(KEYS))]
BOUND_S = 120  # of simulated time; a lost batch is sent again after 13 s, and twice may be necessary


class World:
    """A queue whose clock and worker advance when somebody sleeps."""

    def __init__(self, producer, client):
        self.producer, self.client = producer, client
        self.begin()

    def begin(self):
        self.client.flushall()
        self.now, self.embedded, self.held, self.strike = 0.0, [], None, lambda: None
        producer = self.producer
        producer._redelivery = Redelivery(producer.claims, producer.job_store, producer.send, self.monotonic)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += max(seconds, 0.5)
        assert self.now < BOUND_S, "it waits for ever"
        self.strike()
        self.work()

    def take(self):
        """Claim the next message of the bulk lane, as a worker does."""
        text = self.client.rpop(QUEUES[BULK])
        if text is None:
            return None
        message = BatchMessage.decode(json.loads(base64.b64decode(json.loads(text)["body"]))[0][0])
        holder = new_holder("worker")
        claimed = self.producer.claims.claim(message, holder)
        return (claimed.batch(message), holder) if claimed.verdict is Claim.WORK else None

    def finish(self, batch, holder):
        failures = tuple(Failure(p.id, p.path, "unsupported", "no image") for p in batch.posters if p.id == BAD)
        self.embedded += [poster.id for poster in batch.posters if poster.id != BAD]
        self.producer.claims.finish(batch, Outcome(embedded=len(batch.posters) - len(failures), failures=failures))

    def drain(self):
        """Let workers alone do what is left, such as the batches of a job whose counts are gone."""
        while self.producer.job_store.list_active():
            self.sleep(1)
            self.producer.redeliver_if_due()

    def work(self):
        if self.held:
            self.finish(*self.held)
            self.held = None
        elif taken := self.take():
            self.finish(*taken)


@pytest.fixture
def world(redis_url, redis_server, tmp_path, monkeypatch):
    for number in range(POSTERS):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    settings = {"root": tmp_path, "catalogue": "none", "store": f"sqlite:{tmp_path / 'v.db'}"}
    producer = Producer(load_settings(redis_url=redis_url, posters_per_batch=1, window=4, **settings))
    with redis_server.client as client:
        world = World(producer, client)
        time = SimpleNamespace(monotonic=world.monotonic, sleep=world.sleep)
        for module in ("producer.job", "producer.indexing.dispatch", "producer.indexing.waiting"):
            monkeypatch.setattr(f"{module}.time", time)
        yield world
    producer.close()


def lose(world, subset):
    """Delete these keys of the newest job, in the midst of it: one batch finished, one claimed, one returned."""
    (job,) = world.producer.job_store.list_jobs(limit=1)
    claims = world.producer.claims
    world.work()
    claims.release(*world.take())
    world.held = world.take()
    claims.renew(*world.held, 0)
    for name in subset:
        for key in world.client.keys(KEYS[name].format(job=job)):
            world.client.delete(key)


def strike_once(world, subset, after):
    """Lose the keys at the `after`-th sleep."""
    sleeps = iter(range(after))

    def strike():
        if next(sleeps, None) is None:
            world.strike = lambda: None
            lose(world, subset)

    world.strike = strike


def check_index(world, subset):
    world.begin()
    strike_once(world, subset, 0)
    found = scan(world.producer, ())
    job, progress = send_all(world.producer, found, quiet=True)
    assert progress.at_rest, subset
    assert (progress.submitted, progress.embedded, progress.failed) == (POSTERS, POSTERS - 1, 1), subset
    assert set(world.embedded) == {f"{number}.jpg" for number in range(POSTERS)} - {BAD}, subset
    assert len(world.embedded) <= 2 * POSTERS, subset
    world.drain()
    lasting = [key for key in world.client.keys("posters:*") if world.client.ttl(key) < 0]
    assert lasting == ["posters:jobs"], subset
    assert [failure.id for failure in job.failures()] in ([BAD], []), subset


def check_wait(world, subset):
    """A backend that waits."""
    world.begin()
    job = world.producer.enqueue([f"{number}.jpg" for number in range(POSTERS)])
    lose(world, subset)
    if {"job", "open"} & set(subset):
        with pytest.raises(LedgerSetBack, match=job.id):
            job.wait()
        return
    progress = job.wait()
    assert (progress.submitted, progress.embedded, progress.failed) == (POSTERS, POSTERS - 1, 1), subset


@pytest.mark.parametrize("check", [check_index, check_wait])
def test_lost_keys_few_or_nearly_all(world, check):
    """Any one or two of a job's keys, all but one, and all."""
    for subset in SOME:
        check(world, subset)


@pytest.mark.chaos
@pytest.mark.parametrize("check", [check_index, check_wait])
def test_lost_keys_every_subset(world, check):
    """Each of the 1,023."""
    for subset in SUBSETS:
        check(world, subset)
