"""Requests on a real Redis: bounded, answered once, judged when a worker dies, forgotten when nobody waits."""

import math
import threading
import time

import numpy as np
import pytest

from producer.embedding import space_of
from producer.errors import Busy, RedisUnreachable, UnreadablePoster
from producer.queue.workers import READY, WorkerRegistry
from producer.requests import client as client_module
from producer.requests import codec
from producer.requests.client import RequestClient
from producer.requests.codec import CRASHED, DECODED, DECODING, IMAGE, POSTER_REQUESTS, REQUESTS, Answer, Request
from producer.requests.inbox import Inbox
from tests.support.wait import wait_for

IMAGE_REQUEST = Request(IMAGE, b"an image", "s")
ANSWER = Answer("s", np.array([1, 2], "<f4").tobytes())


@pytest.fixture
def backend(redis_server, redis_url):
    """The caller's side, with the rights of a backend."""
    backend = RequestClient(redis_server.as_backend(redis_url), 4, list)
    yield backend
    backend.close()


@pytest.fixture
def inbox(redis_url):
    """The worker's side, with the rights of a worker."""
    inbox = Inbox(redis_url, REQUESTS, "w@h/1/a")
    yield inbox
    inbox.close()


@pytest.fixture
def keys(redis_server):
    """The keys of requests that Redis holds."""
    with redis_server.client as client:
        yield lambda: sorted(key for key in client.keys("posters:*") if "worker" not in key)


def test_a_request_is_taken_once_and_answered_once(backend, inbox, keys):
    """After the answer Redis holds nothing of it."""
    token = backend.put(IMAGE_REQUEST, 5)
    ((taken, head, body, _),) = inbox.take(8)
    assert (taken, codec.decode_request(head, body)) == (token, IMAGE_REQUEST)
    assert inbox.take(8, held=1) == []
    inbox.answer({token: ANSWER})
    inbox.answer({token: Answer("other", b"1234")})
    vector = backend.wait(IMAGE_REQUEST, token, 5)
    assert (vector.tolist(), space_of(vector)) == ([1, 2], "s")
    assert keys() == []


def test_the_oldest_are_taken_first_up_to_a_number_and_a_size(backend, inbox, monkeypatch):
    """Several at once, so that they share a forward pass; one reply of Redis is bounded."""
    tokens = [backend.put(IMAGE_REQUEST, 5) for _ in range(4)]
    assert [taken.token for taken in inbox.take(2)] == tokens[:2]
    monkeypatch.setattr("producer.requests.inbox.TAKE_BYTES", 1)
    assert [taken.token for taken in inbox.take(8, held=2)] == tokens[2:3]


def test_a_worker_is_woken_and_takes_nothing_by_waiting(backend, inbox):
    """At once, however many wait; whoever is killed between waiting and taking has lost nothing."""
    assert inbox.wait(1) is False
    timer = threading.Timer(0.3, backend.put, (IMAGE_REQUEST, 5))
    began = time.monotonic()
    timer.start()
    assert inbox.wait(1) is True
    assert 0.2 < time.monotonic() - began < 0.9
    timer.join()
    first, second = backend.put(IMAGE_REQUEST, 5), backend.put(IMAGE_REQUEST, 5)
    assert inbox.wait(1) is True
    assert [taken.token for taken in inbox.take(8)][1:] == [first, second]


def test_an_answer_wakes_whoever_waits(backend, inbox):
    """At once, not at the next look."""
    token = backend.put(IMAGE_REQUEST, 10)
    timer = threading.Timer(0.2, inbox.answer, ({token: ANSWER},))
    timer.start()
    began = time.monotonic()
    assert backend.wait(IMAGE_REQUEST, token, 10) is not None
    assert time.monotonic() - began < 0.9 * codec.POLL_S
    timer.join()


def test_too_many_are_busy_and_expired_ones_do_not_count(redis_server, redis_url, inbox, keys):
    """What a worker holds does not count either: it waits no more."""
    registry = WorkerRegistry(redis_url)
    registry.publish("w@h/1/a", READY, {"requests_per_second": "8"})
    backend = RequestClient(redis_server.as_backend(redis_url), 3, registry.alive)
    lost = [backend.put(IMAGE_REQUEST, 0.2) for _ in range(2)]
    backend.put(IMAGE_REQUEST, 5)
    with pytest.raises(Busy) as caught:
        backend.put(IMAGE_REQUEST, 5)
    assert caught.value.retry_after_s == 3 / 8
    time.sleep(0.3)
    kept = [backend.put(IMAGE_REQUEST, 5) for _ in range(2)]
    with pytest.raises(Busy):
        backend.put(IMAGE_REQUEST, 5)
    assert not {codec.request_key(token) for token in lost} & set(keys())
    assert len(inbox.take(2)) == 2
    backend.put(IMAGE_REQUEST, 5)
    assert inbox.take(8, held=2)[0].token == kept[1]
    backend.close()
    registry.close()


def test_nothing_is_left_of_a_request_that_nobody_waits_for(backend, inbox, keys, monkeypatch):
    """Withdrawn at the timeout or by an error, whether it waits, is in hand, or was answered; a late answer is none."""
    began = time.monotonic()
    assert backend.embed(IMAGE_REQUEST, 0.3, "a") is None
    assert 0.25 < time.monotonic() - began < 2
    assert keys() == []
    token = backend.put(IMAGE_REQUEST, 5)
    inbox.take(8)
    assert backend.wait(IMAGE_REQUEST, token, 0.1) is None
    inbox.answer({token: ANSWER})
    assert keys() == []
    token = backend.put(IMAGE_REQUEST, 5)
    inbox.take(8)
    inbox.answer({token: ANSWER})
    backend.withdraw(IMAGE_REQUEST, token)
    assert keys() == []
    monkeypatch.setattr(backend, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        backend.embed(IMAGE_REQUEST, 5, "a")
    assert keys() == []


def test_everything_in_redis_expires(backend, inbox, redis_server):
    """Requests whose caller died, answers that nobody fetched, and the notes of workers."""
    expired, held = backend.put(IMAGE_REQUEST, 0.2), backend.put(IMAGE_REQUEST, math.inf)
    time.sleep(0.3)
    assert [taken.token for taken in inbox.take(8)] == [held]
    answered = backend.put(IMAGE_REQUEST, 5)
    inbox.take(8, held=1)
    inbox.answer({answered: CRASHED})
    with redis_server.client as client:
        assert not client.exists(codec.request_key(expired))
        assert {key: client.ttl(key) > 0 for key in client.keys("*")} == {
            f"{REQUESTS}:owners": True,
            f"{REQUESTS}:by:w@h/1/a": True,
            codec.request_key(held): True,
            codec.answer_key(answered): True,
        }
        assert client.ttl(codec.request_key(held)) <= codec.KEEP_S


def test_whoever_waits_without_limit_keeps_the_request(backend, inbox, monkeypatch):
    """It expires soon after its caller died, and not before."""
    for module in (codec, client_module):
        monkeypatch.setattr(module, "KEEP_S", 1.5)
    token = backend.put(IMAGE_REQUEST, math.inf)
    timer = threading.Timer(3.5, lambda: inbox.answer({taken.token: ANSWER for taken in inbox.take(8)}))
    timer.start()
    assert backend.wait(IMAGE_REQUEST, token, math.inf) is not None
    timer.join()


def test_whoever_waits_without_limit_puts_a_lost_request_again(backend, inbox, monkeypatch, redis_server, keys):
    """Redis was emptied, or the answer was lost on its way: nobody waits forever."""
    monkeypatch.setattr(client_module, "KEEP_S", 0.6)
    token = backend.put(IMAGE_REQUEST, math.inf)
    with redis_server.client as client:
        client.flushdb()

    def answer():
        wait_for(lambda: keys() == [codec.request_key(token), REQUESTS], "the request")
        inbox.answer({taken.token: ANSWER for taken in inbox.take(8)})

    thread = threading.Thread(target=answer)
    thread.start()
    assert backend.wait(IMAGE_REQUEST, token, math.inf).tolist() == [1, 2]
    thread.join()
    assert keys() == []


def test_a_request_that_ends_its_worker_is_taken_once_and_others_are_asked_again(backend, inbox):
    """The one that was being decoded is the cause. All others go back, in front."""
    guilty, decoded, taken = (backend.put(IMAGE_REQUEST, 5) for _ in range(3))
    inbox.take(8)
    backend.put(IMAGE_REQUEST, 5)
    inbox.mark(guilty, DECODING)
    inbox.mark(decoded, DECODING)
    inbox.mark(decoded, DECODED)
    assert inbox.recover() == 3
    with pytest.raises(UnreadablePoster, match="a: crashed-worker"):
        backend.wait(IMAGE_REQUEST, guilty, 1, "a")
    assert {again.token for again in inbox.take(2)} == {decoded, taken}
    assert inbox.recover() == 2, "and the second death with them in hand is enough"
    for token in (decoded, taken):
        with pytest.raises(UnreadablePoster, match="crashed-worker"):
            backend.wait(IMAGE_REQUEST, token, 1)
    assert len(inbox.take(8)) == 1


def test_what_is_given_back_is_no_suspect(backend, inbox):
    """A worker that stops, or that lost Redis in between, died of nothing."""
    tokens = {backend.put(IMAGE_REQUEST, 5) for _ in range(2)}
    for _ in range(3):
        taken = inbox.take(8)
        assert {each.token for each in taken} == tokens
        inbox.mark(taken[0].token, DECODING)
        inbox.give_back()
    assert inbox.recover() == 0
    assert len(inbox.take(8)) == 2


def test_what_was_taken_by_a_call_whose_answer_was_lost_is_taken_again(backend, inbox):
    """The connection ended in between, and the client repeated the call."""
    first, second = backend.put(IMAGE_REQUEST, 5), backend.put(IMAGE_REQUEST, 5)
    inbox.take(1)
    assert [taken.token for taken in inbox.take(1, held=1)] == [second]
    assert {taken.token for taken in inbox.take(8)} == {first, second}


def test_another_worker_takes_over_what_a_dead_one_held(backend, inbox, redis_url):
    """Once its registry entry has expired, and not before."""
    token = backend.put(IMAGE_REQUEST, 5)
    other, registry = Inbox(redis_url, REQUESTS, "w@h/2/b"), WorkerRegistry(redis_url)
    registry.publish("w@h/1/a", READY, {})
    inbox.take(8)
    assert other.recover_orphans() == 0
    registry.withdraw("w@h/1/a")
    assert other.recover_orphans() == 1
    assert [taken.token for taken in other.take(8)] == [token]
    assert inbox.recover() == 0
    other.close()
    registry.close()


def test_posters_wait_in_a_list_of_their_own(backend, inbox, redis_url):
    """The others must not wait for a store that is away."""
    posters = Inbox(redis_url, POSTER_REQUESTS, "w@h/1/a")
    token = backend.put(codec.poster_request(("a", "a.jpg", 1, 1)), 5)
    assert inbox.take(8) == []
    assert [taken.token for taken in posters.take(8)] == [token]
    posters.close()


def test_the_image_of_an_older_producer_waits_with_the_others(inbox, redis_server, keys):
    """Under the same token, so that its caller finds the answer; one that has expired does not."""
    token = "0" * 32
    with redis_server.client as client:
        client.set(f"posters:query:{token}", "an image", ex=60)
    inbox.adopt(token)
    inbox.adopt("1" * 32)
    ((taken, head, body, _),) = inbox.take(8)
    assert (taken, codec.decode_request(head, body)) == (token, Request(IMAGE, b"an image"))
    inbox.answer({token: ANSWER})
    assert keys() == [codec.answer_key(token)]


def test_a_redis_that_is_away_is_said(redis_url):
    """Within seconds, by every step of both sides."""
    away = "redis://127.0.0.1:1/0"
    backend, inbox = RequestClient(away, 4, list), Inbox(away, REQUESTS, "w")
    calls = (
        lambda: backend.put(IMAGE_REQUEST, 1),
        lambda: backend.wait(IMAGE_REQUEST, "t", 1),
        lambda: inbox.wait(1),
        lambda: inbox.take(1),
        lambda: inbox.answer({"t": ANSWER}),
    )
    for call in calls:
        with pytest.raises(RedisUnreachable, match=r"127\.0\.0\.1:1"):
            call()
    backend.close()
    inbox.close()
