"""RequestRunner on a real Redis: each request gets one answer, outages give all back, defects end the process."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import worker.runtime.heartbeat
import worker.runtime.request_runner as module
from producer.errors import DeviceLost, SpaceMismatch, StoreUnavailable, UnreadablePoster, WrongVectors
from producer.queue.jobs import JobStore
from producer.requests import codec
from producer.requests.client import RequestClient
from producer.requests.codec import IMAGE, REQUESTS, TEXT, Answer, Request, request_key
from producer.requests.inbox import Inbox
from producer.settings import load_settings
from tests.support.wait import wait_for
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.request_runner import RequestRunner

VECTOR = np.full(4, 0.5, "<f4")


class FakeEmbedder:
    """Embeds every image as the same vector; `error` is raised by the forward pass, `hold` stops it."""

    space, kinds, limit = "space-1", (IMAGE,), 8
    error = None

    def __init__(self):
        self.share = SimpleNamespace(wait_for_turn=lambda timeout_s: True)
        self.groups, self.refuse, self.hold = [], {}, threading.Event()
        self.hold.set()

    def submit(self, call):
        return SimpleNamespace(result=call)

    def prepare(self, request):
        if request.body in self.refuse:
            raise self.refuse[request.body]
        return request.body

    def embed(self, prepared):
        self.groups.append(prepared)
        self.hold.wait(10)
        if self.error:
            raise self.error
        return [Answer(self.space, VECTOR.tobytes()) for _ in prepared]

    def close(self):
        """Nothing to end."""


@pytest.fixture
def client(redis_server, redis_url):
    """The caller's side."""
    client = RequestClient(redis_server.as_backend(redis_url), 64, list)
    yield client
    client.close()


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def ended(monkeypatch):
    """The statuses with which the process would have ended; the thread ends in its place."""
    statuses = []
    monkeypatch.setattr(module, "exit_now", statuses.append)
    return statuses


@pytest.fixture
def start(redis_url, embedder, ended, monkeypatch):
    """Start a RequestRunner without a model."""
    monkeypatch.setattr(module, "wait", lambda futures: None)
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    job_store = JobStore(redis_url)
    heartbeat = Heartbeat(load_settings(redis_url=redis_url), "w@tests/1/a", job_store)
    runners = []

    def start(url=redis_url):
        runners.append(RequestRunner(Inbox(url, REQUESTS, "w@tests/1/a"), embedder, heartbeat, 60))
        runners[-1].start()
        return runners[-1]

    start.heartbeat = heartbeat
    yield start
    embedder.hold.set()
    for runner in runners:
        runner.close()
    heartbeat.stop()
    job_store.close()


def test_requests_are_answered_with_vector_and_space(start, client, embedder):
    """What has gathered meanwhile shares a forward pass; the rate is published for those who are Busy."""
    start()
    assert client.embed(Request(IMAGE, b"one"), 5, "a").tolist() == VECTOR.tolist()
    embedder.hold.clear()
    first = client.put(Request(IMAGE, b"first"), 5)
    wait_for(lambda: len(embedder.groups) == 2, "the first in its forward pass")
    others = [client.put(Request(IMAGE, b"another"), 5) for _ in range(5)]
    embedder.hold.set()
    for token in (first, *others):
        assert client.wait(Request(IMAGE, b""), token, 5).space == "space-1"
    assert [len(group) for group in embedder.groups] == [1, 1, 5]
    assert float(start.heartbeat.fields["requests_per_second"]) > 0


def test_each_failure_has_its_word_and_reason(start, client, embedder, caplog, monkeypatch):
    """Of an image, of a request that nobody can read, of a defect, which is logged; their neighbors have vectors."""
    monkeypatch.setitem(codec.LISTS, TEXT, REQUESTS)  # as a program that knows no better might
    embedder.refuse = {
        b"large": UnreadablePoster("the image", "too-large", "it has 9 pixels"),
        b"defect": ZeroDivisionError("oops"),
    }
    tokens = {body: client.put(Request(IMAGE, body), 5) for body in (b"large", b"defect", b"good")}
    tokens[b"text"] = client.put(Request(TEXT, b"rain"), 5)
    tokens[b"other space"] = client.put(Request(IMAGE, b"x", "space-2"), 5)
    broken = client.put(Request(IMAGE, b"x"), 5)
    client._redis.hset(request_key(broken), "head", "{")
    start()
    for body, error, text in (
        (b"large", UnreadablePoster, "a: too-large: it has 9 pixels"),
        (b"defect", UnreadablePoster, "a: internal: ZeroDivisionError: oops"),
        (b"text", UnreadablePoster, "a: unsupported: this worker does not answer requests of the kind text"),
        (b"other space", SpaceMismatch, "it was sent for the space space-2, and the worker that took it makes space-1"),
    ):
        with pytest.raises(error, match=text):
            client.wait(Request(IMAGE, b""), tokens[body], 5, "a")
    with pytest.raises(UnreadablePoster, match="a: internal: the worker cannot read the request"):
        client.wait(Request(IMAGE, b""), broken, 5, "a")
    assert client.wait(Request(IMAGE, b""), tokens[b"good"], 5) is not None
    assert "ZeroDivisionError" in caplog.text


def test_what_a_predecessor_died_with_is_judged(start, client, redis_url):
    """The child that replaces a dead one answers what was being decoded; the other is done."""
    guilty, other = client.put(Request(IMAGE, b"x"), 5), client.put(Request(IMAGE, b"y"), 5)
    dead = Inbox(redis_url, REQUESTS, "w@tests/1/a")
    dead.take(8)
    dead.mark(guilty, "decoding")
    dead.close()
    start()
    with pytest.raises(UnreadablePoster, match="the image: crashed-worker"):
        client.wait(Request(IMAGE, b""), guilty, 5)
    assert client.wait(Request(IMAGE, b""), other, 5) is not None


def test_an_outage_of_the_store_gives_all_back(start, client, embedder, monkeypatch):
    """They are tried again until their callers give up, and none of them is suspected."""
    monkeypatch.setattr("worker.runtime.backoff.FIRST_PAUSE_S", 0.1)
    embedder.error = StoreUnavailable("locked")
    runner = start()
    runner._backoff.reset()
    token = client.put(Request(IMAGE, b"x"), 20)
    wait_for(lambda: len(embedder.groups) > 2, "three tries")
    embedder.error = None
    assert client.wait(Request(IMAGE, b""), token, 10) is not None


def test_an_outage_of_redis_loses_no_request(start, client, embedder, redis_server, caplog):
    """A connection that ends while the device works: the request is asked again."""
    embedder.hold.clear()
    runner = start()
    token = client.put(Request(IMAGE, b"x"), 20)
    wait_for(lambda: embedder.groups, "its forward pass")
    give, runner._inbox.answer = runner._inbox.answer, lambda answers: runner._inbox._redis.translated(fail)
    embedder.hold.set()
    wait_for(lambda: "requests: Redis at" in caplog.text, "the outage")
    runner._inbox.answer = give
    assert client.wait(Request(IMAGE, b""), token, 10) is not None
    assert len(embedder.groups) >= 2


def fail():
    raise OSError("connection reset")


def test_a_lost_device_ends_the_process_and_loses_no_request(start, client, embedder, ended, redis_url):
    """A fresh process takes over; it is not the request's fault."""
    embedder.error = DeviceLost("the context is broken")
    token = client.put(Request(IMAGE, b"x"), 5)
    runner = start()
    runner.join(5)
    assert ended == [70]
    successor = Inbox(redis_url, REQUESTS, "w@tests/1/a")
    assert successor.recover() == 0
    assert [taken.token for taken in successor.take(8)] == [token]
    successor.close()


def test_a_device_that_computes_wrong_vectors_costs_the_batch_beside_no_attempt(start, client, embedder, ended):
    """It is released before the process ends, which would count as its crash."""
    released = []
    start.heartbeat._claims = SimpleNamespace(release=lambda *claim, count=False: released.append((*claim, count)))
    embedder.error = WrongVectors("the device computes wrong vectors")
    client.put(Request(IMAGE, b"x"), 5)
    with start.heartbeat.watch("a batch", ("batch", "holder")):
        start().join(5)
    assert (released, ended[0]) == ([("batch", "holder", False)], 79)
    assert start.heartbeat.fields["wrong_vectors"] == 1


def test_what_a_late_stop_interrupts_is_given_back(start, client, embedder, ended, redis_url):
    """`close` ends the threads that decode when they take too long, which is no defect."""
    embedder.hold.clear()
    runner = start()
    token = client.put(Request(IMAGE, b"x"), 5)
    wait_for(lambda: embedder.groups, "its forward pass")
    embedder.error = RuntimeError("cannot schedule new futures after shutdown")
    runner.stop()
    embedder.hold.set()
    runner.join(5)
    assert ended == []
    other = Inbox(redis_url, REQUESTS, "w@tests/2/b")
    assert [taken.token for taken in other.take(8)] == [token]
    other.close()


def test_a_full_redis_is_asked_at_a_moderate_pace(start, client):
    """It refuses to wait for requests, and lets taking them through."""
    runner = start()
    takes = []
    take, runner._inbox.wait = runner._inbox.take, lambda timeout_s: runner._inbox._redis.translated(fail)
    runner._inbox.take = lambda *arguments: takes.append(arguments) or take(*arguments)
    wait_for(lambda: takes, "the first look")
    seen = len(takes)
    time.sleep(0.5)
    assert 2 <= len(takes) - seen <= 20
    assert client.embed(Request(IMAGE, b"one"), 5, "a") is not None


def test_a_defect_of_the_thread_ends_the_process(start, client, embedder, ended, caplog):
    """Nobody else would answer, and nobody would notice."""
    embedder.error = KeyError("defect")
    client.put(Request(IMAGE, b"x"), 5)
    start().join(5)
    assert ended == [70]
    assert "the thread that answers requests failed" in caplog.text


def test_a_worker_that_stops_answers_what_is_in_hand_and_leaves_the_rest(start, client, embedder, redis_url):
    """Another worker finds it at once."""
    embedder.hold.clear()
    runner = start()
    first = client.put(Request(IMAGE, b"x"), 20)
    wait_for(lambda: embedder.groups, "its forward pass")
    second = client.put(Request(IMAGE, b"y"), 20)
    threading.Timer(0.3, embedder.hold.set).start()
    runner.close()
    assert client.wait(Request(IMAGE, b""), first, 1) is not None
    other = Inbox(redis_url, REQUESTS, "w@tests/2/b")
    assert [taken.token for taken in other.take(8)] == [second]
    other.close()


def test_a_request_that_hangs_ends_the_process(redis_url, monkeypatch):
    """After a limit of its own. A batch beside it is released, and not charged."""
    ended, released = threading.Event(), []
    monkeypatch.setattr(worker.runtime.heartbeat, "exit_now", lambda status: ended.set())
    settings = load_settings(redis_url=redis_url, batch_time_limit_s=60, claim_s=3)
    heartbeat = Heartbeat(settings, "w@tests", JobStore(redis_url, claim_s=3))
    monkeypatch.setattr(heartbeat._claims, "renew", lambda *_: True)
    monkeypatch.setattr(heartbeat._claims, "release", lambda *claim, count: released.append((*claim, count)))
    heartbeat.start()

    def run_batch():
        with heartbeat.watch("batch 1", ("batch", "holder")):
            ended.wait(5)

    batch = threading.Thread(target=run_batch)
    batch.start()
    with heartbeat.watch("a request", limit_s=0.2):
        began = time.monotonic()
        assert ended.wait(5)
        assert time.monotonic() - began < 3
    batch.join()
    heartbeat.stop()
    assert released[0] == ("batch", "holder", False)
