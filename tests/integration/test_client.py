"""The producer's end of the queue, on a real Redis and without a worker: bounded in time and in memory."""

import gc
import os
import signal
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from producer import Producer
from producer.errors import ConfigurationError, JobUnknown, LedgerSetBack, RedisUnreachable
from producer.queue.messages import BULK, QUEUES, Poster
from producer.queue.workers import READY
from producer.settings import load_settings
from tests.support.redis_server import RedisServer

CALL_S = 5.0  # within which a call fails when Redis is unreachable, full or hangs


@pytest.fixture
def make(tmp_path):
    """Makes producers and closes them."""
    producers = []

    def one(url, **settings):
        producers.append(Producer(load_settings(redis_url=url, root=tmp_path, catalogue="none", **settings)))
        return producers[-1]

    yield one
    for producer in producers:
        producer.close()


@pytest.fixture
def producer(make, redis_url):
    return make(redis_url, posters_per_batch=10)


def test_paths_are_read_lazily_and_duplicates_within_a_batch_are_sent_once(producer):
    """25 paths of which one is named three times are three batches; the ledger adds up."""
    job = producer.enqueue(["a.jpg", "a.jpg", "./a.jpg", *(f"{number}.jpg" for number in range(22))])
    progress = job.progress()
    assert (progress.submitted, progress.open_batches, progress.steps) == (23, 3, 3)


def test_a_wrong_path_leaves_nothing_behind(producer, redis_server):
    """Among the first it is found before anything is written; later, what was queued is withdrawn."""
    with pytest.raises(ConfigurationError, match="outside"):
        producer.enqueue(["a.jpg", "/etc/hostname"])
    with redis_server.client as client:
        assert client.keys("posters:job*") == []
    with pytest.raises(ConfigurationError, match="outside"):
        producer.enqueue([*(f"{number}.jpg" for number in range(25)), "/etc/hostname"])
    (job,) = producer.job_store.list_jobs()
    progress = producer.job(job).progress()
    assert (progress.state, progress.submitted, progress.cancelled, progress.at_rest) == ("cancelled", 0, 20, True)


def test_many_posters_are_never_in_memory_at_once(make, redis_url):
    """Posters are made, sent and forgotten a batch at a time: 50,000 of them, in a fraction of a list of them."""
    producer = make(redis_url, posters_per_batch=1000)
    posters = (Poster(f"folder/{number:020}.jpg", f"folder/{number:020}.jpg", 1, 1) for number in range(50_000))
    job = producer.begin()
    gc.collect()
    tracemalloc.start()
    for _ in producer.feed(job, posters):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert job.progress().submitted == 50_000
    assert peak < 4_000_000, f"{peak:,} bytes at once; a list of such posters has 20,000,000"


def test_a_redis_that_lost_steps_is_an_error_for_whoever_sent_them(producer, redis_server):
    """Whoever waits must not take the rest for the whole."""
    job = producer.enqueue([f"{number}.jpg" for number in range(30)])
    assert job.progress().submitted == 30
    with redis_server.client as client:
        client.hset(f"posters:job:{job.id}", "step", "1")
        with pytest.raises(LedgerSetBack, match="2 of the 3 steps"):
            job.wait(timeout=1)
        client.flushall()
    with pytest.raises(LedgerSetBack, match="3 of the 3 steps"):
        job.progress()
    with pytest.raises(JobUnknown, match="status"):
        producer.job(job.id).progress()


CALLS = {
    "enqueue": lambda producer: producer.enqueue(["a.jpg"]),
    "embed": lambda producer: producer.embed("a.jpg", timeout=2),
    "workers": lambda producer: producer.workers(),
    "progress": lambda producer: producer.job("some").progress(),
    "failures": lambda producer: producer.job("some").failures(),
    "cancel": lambda producer: producer.job("some").cancel(),
    "repair": lambda producer: producer._redelivery._claims.take_returned(),
}


@pytest.fixture(scope="module")
def hanging():
    """A Redis that tests let hang."""
    with RedisServer() as server:
        yield server
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def hang(server):
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("known", [False, True], ids=["first calls", "later calls"])
def test_a_redis_that_hangs_is_an_error_within_5_seconds(make, hanging, known):
    """For every call of a backend, whether its connection is new or was used before."""
    producers = {name: make(hanging.url) for name in CALLS}
    if known:
        for producer in producers.values():
            producer.enqueue(["a.jpg"])
            producer.workers()

    def call(name):
        began = time.monotonic()
        with pytest.raises(RedisUnreachable, match=str(hanging.port)):
            CALLS[name](producers[name])
        return time.monotonic() - began

    with ThreadPoolExecutor(len(CALLS)) as threads, hang(hanging):
        took = dict(zip(CALLS, threads.map(call, CALLS), strict=True))
    assert max(took.values()) < CALL_S, took


def test_a_redis_that_begins_to_hang_between_writing_and_sending_is_an_error_in_time(make, hanging):
    """The worst moment: the batch stands in the ledger, and stays there to be sent again."""
    producer = make(hanging.url)
    step = producer.job_store.record_step

    def step_then_hang(*arguments, **options):
        taken = step(*arguments, **options)
        os.kill(hanging.pid, signal.SIGSTOP)  # until the test ends
        return taken

    producer.job_store.record_step = step_then_hang
    try:
        began = time.monotonic()
        with pytest.raises(RedisUnreachable):
            producer.enqueue(["a.jpg"])
        assert time.monotonic() - began < CALL_S
    finally:
        os.kill(hanging.pid, signal.SIGCONT)
    assert producer.job("last").progress().open_batches == 1


def test_a_full_redis_is_an_error_that_says_so_and_leaves_nothing_half_written(producer, redis_server):
    """Neither a job nor a message; and what was there before can be read."""
    before = producer.enqueue(["a.jpg"])
    with redis_server.client as client:
        keys = set(client.keys("*"))
        client.config_set("maxmemory", "1")
        try:
            began = time.monotonic()
            for call in (lambda: producer.enqueue(["b.jpg"]), lambda: producer.send(_batch(producer, before))):
                with pytest.raises(RedisUnreachable, match="full"):
                    call()
            assert time.monotonic() - began < CALL_S
            assert before.progress().open_batches == 1
            assert set(client.keys("*")) == keys
            assert client.llen(QUEUES[BULK]) == 1
        finally:
            client.config_set("maxmemory", "0")


def _batch(producer, job):
    return producer.claims.message(job.id, f"{job.id}.1")


def test_a_refused_login_names_the_server(make, redis_server):
    """A wrong password, and a command that the user may not give: no secret in the error."""
    producer = make(redis_server.url.replace(":only-for-tests@", ":wrong-secret@"))
    for call in (lambda: producer.enqueue(["a.jpg"]), producer.workers):
        with pytest.raises(RedisUnreachable, match="refuses the user or password") as caught:
            call()
        assert "wrong-secret" not in str(caught.value)
    with redis_server.client as client:
        client.acl_setuser("poor", enabled=True, nopass=True, keys=["*"], commands=["+hgetall", "+ping"])
    poor = make(redis_server.url.replace("posters-worker:only-for-tests@", "poor:x@"))
    with pytest.raises(RedisUnreachable, match=r"forbids a command.*docs/redis\.acl"):
        poor.enqueue(["a.jpg"])


def test_secrets_are_in_no_text_about_the_settings(make):
    """Somebody will print them."""
    producer = make("redis://me:the-secret@127.0.0.1:1/0", store="redis://me:the-secret@127.0.0.1:1/1")
    assert "the-secret" not in repr(producer.settings) + str(producer.settings)


def test_threads_share_one_producer(producer):
    """Eight at once, as in a backend: every poster once."""

    def one(number):
        job = producer.enqueue([f"{number}-{poster}.jpg" for poster in range(20)])
        producer.redeliver_if_due()
        return job.progress().submitted

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(one, range(40))) == 800


def test_the_space_comes_from_a_worker_that_is_ready(producer):
    """None while nobody is."""
    assert producer.space() is None
    producer.registry.publish("w", READY, {})
    assert producer.space() is None
