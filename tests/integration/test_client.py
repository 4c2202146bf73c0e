"""The producer's end of the queue, on a real Redis and without a worker: bounded in time and in memory."""

import gc
import os
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from producer import Producer
from producer.collection.scan import was_sent
from producer.errors import ConfigurationError, JobUnknown, LedgerSetBack, RedisUnreachable
from producer.queue.messages import BULK, QUEUES, Poster, shown
from producer.queue.workers import READY
from producer.requests.client import RequestClient
from producer.requests.codec import IMAGE, Request
from producer.settings import load_settings
from tests.support.ledger_jobs import recorded
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


class Unopened:
    """A path object of another library."""

    def __fspath__(self):
        return b"a.jpg"


BAD_PATHS = {
    "": "unsupported",
    "/etc/hostname": "outside-root",
    "../a.jpg": "outside-root",
    "a\0b.jpg": "unsupported",
    "\0": "unsupported",
    "x" * 8193: "unsupported",
    "x/" * 8193: "unsupported",
    "\ud800.jpg": "unsupported",
    None: "unsupported",
    5: "unsupported",
    b"a.jpg": "unsupported",
    ("a.jpg",): "unsupported",
    Unopened(): "unsupported",
}


@pytest.mark.parametrize("at", [0, 7, 13], ids=["first", "amidst", "in a later batch"])
@pytest.mark.parametrize("path", BAD_PATHS, ids=[f"path{number}" for number in range(len(BAD_PATHS))])
def test_a_bad_path_fails_by_name_and_its_neighbors_are_queued(producer, path, at):
    """What a worker would refuse fails in the producer: every batch that it records can be read by a worker."""
    paths = [f"{number}.jpg" for number in range(15)]
    job = producer.enqueue([*paths[:at], path, *paths[at:]])
    progress, (failure,) = job.progress(), job.failures()
    assert (progress.state, progress.submitted, progress.failed) == ("sent", 16, 1)
    assert failure.word == BAD_PATHS[path]
    name = os.fspath(path) if isinstance(path, Unopened) else path
    assert failure.path == (shown(name) if failure.word == "unsupported" else name)
    batches = [recorded(producer.job_store, job.id, name) for name in producer.claims.open_batches(job.id)]
    assert sorted(poster.path for batch in batches for poster in batch.posters) == sorted(paths)


def test_every_bad_path_of_a_list_is_named(producer):
    """Also where two of them read alike: their number in the list tells them apart. `retry` sends none of them."""
    job = producer.enqueue([*BAD_PATHS, *BAD_PATHS])
    failures = job.failures()
    assert (job.progress().failed, len(failures)) == (2 * len(BAD_PATHS),) * 2
    assert not any(was_sent(failure, None) for failure in failures)


def test_posters_that_no_worker_could_read_fail_by_name(producer):
    """Also those that a program makes by itself, and hands to `feed`."""
    bad = [
        Poster("", "a.jpg"),
        Poster("a", ""),
        Poster("a", "b\0"),
        Poster("a\0", "b"),
        Poster("i" * 8193, "a.jpg"),
        Poster("\ud800", "a.jpg"),
        Poster(7, "a.jpg"),
        Poster("a", Path("a.jpg")),
        Poster("a", "a.jpg", -2),
        Poster("a", "a.jpg", 1.5),
        Poster("a", "a.jpg", 1, 2**63),
    ]
    job = producer.begin()
    for _ in producer.feed(job, [*bad, Poster("good", "good.jpg")]):
        pass
    progress, failures = job.progress(), job.failures()
    assert (progress.submitted, progress.failed, len(failures)) == (len(bad) + 1, len(bad), len(bad))
    (batch,) = (recorded(producer.job_store, job.id, name) for name in producer.claims.open_batches(job.id))
    assert [poster.id for poster in batch.posters] == ["good"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"lane": "fast"}, "lane must be one of interactive, bulk, not 'fast'"),
        ({"lane": None}, "lane"),
        ({"lane": ["bulk"]}, "lane"),
        ({"force": 1}, "force must be true or false, not 1"),
        ({"paths": "a.jpg"}, "a list of paths"),
        ({"paths": b"a.jpg"}, "a list of paths"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_recorded(producer, redis_server, arguments, named):
    """No job is begun."""
    with pytest.raises(ConfigurationError, match=named):
        producer.enqueue(**{"paths": ["a.jpg"], **arguments})
    with redis_server.client as client:
        assert client.keys("*") == []


def test_a_folder_means_the_posters_in_it(producer, tmp_path):
    """At any depth, by any of its names, the posters root as well; what is no image and what is hidden is left out."""
    for name in ("b/1.jpg", "b/c/2.png", "b/notes.txt", "b/.hidden/3.jpg", "4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def queued(*paths):
        job = producer.enqueue(paths)
        batches = [recorded(producer.job_store, job.id, name) for name in producer.claims.open_batches(job.id)]
        assert job.progress().failed == 0
        return sorted(poster.path for batch in batches for poster in batch.posters)

    assert queued("b") == queued("b/") == queued(tmp_path / "b") == queued("b/c/..") == ["b/1.jpg", "b/c/2.png"]
    assert queued(tmp_path) == ["4.jpg", "b/1.jpg", "b/c/2.png"]
    assert queued("4.jpg", "b/c", "b/c/2.png", "b/notes.txt") == ["4.jpg", "b/c/2.png", "b/notes.txt"]
    with pytest.raises(ConfigurationError, match="is a folder"):
        producer.poster("b")


def test_an_error_leaves_no_job_open(producer):
    """Whatever it is, and however late: what was queued is withdrawn."""

    def paths():
        yield from (f"{number}.jpg" for number in range(25))
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        producer.enqueue(paths())
    (job,) = producer.job_store.list_jobs()
    progress = producer.job(job).progress()
    assert (progress.state, progress.submitted, progress.cancelled, progress.at_rest) == ("cancelled", 0, 20, True)
    assert producer.job_store.list_active() == []


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


def test_a_redis_that_hangs_while_a_caller_waits_is_an_error_within_5_seconds(hanging):
    """Its request was put before; no answer can come, and withdrawing it must not take as long again."""
    request = Request(IMAGE, b"an image")
    with closing(RequestClient(hanging.url, 9, list)) as client:
        timer = threading.Timer(0.3, os.kill, (hanging.pid, signal.SIGSTOP))
        timer.start()
        began = time.monotonic()
        with pytest.raises(RedisUnreachable, match=str(hanging.port)):
            client.embed(request, 60, "a.png")
        took = time.monotonic() - began
        os.kill(hanging.pid, signal.SIGCONT)
        timer.join()
    assert took < 5.5


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
