"""Queries: an image that is no poster. Taken once, answered once, bounded, forgotten; nothing of it is stored."""

import math
import threading
import time

import pytest

from producer.errors import BadMessage, RedisUnreachable, UnreadablePoster
from producer.queue import image_requests as module
from producer.queue.image_requests import CRASHED, Answer, ImageRequests, decode_query, encode_query


@pytest.fixture
def queries(redis_server, redis_url):
    """The backend's side."""
    queries = ImageRequests(redis_server.as_backend(redis_url))
    yield queries
    queries.close()


@pytest.fixture
def answering(redis_url):
    """The worker's side."""
    answering = ImageRequests(redis_url)
    yield answering
    answering.close()


def test_an_image_is_taken_once_and_answered(queries, answering, redis_server):
    """Whoever takes it second gets nothing; after the answer Redis holds nothing of it."""
    data = bytes(range(256)) * 10
    token = queries.put(data, 5)
    assert answering.take(token) == data
    assert answering.take(token) is None
    answering.answer(token, Answer("space", b"\x00\x01\xff\x00"))
    assert queries.wait(token, 5) == Answer("space", b"\x00\x01\xff\x00")
    with redis_server.client as client:
        assert client.keys("posters:*") == []


def test_a_failure_has_its_word_and_reason(queries, answering):
    """And the name that the asker gave the image; the worker never learns it."""
    token = queries.put(b"x", 5)
    answering.answer(token, {"word": "truncated", "reason": "the file ends too early"})
    with pytest.raises(UnreadablePoster, match=r"shot\.png: truncated: the file ends too early"):
        queries.wait(token, 5, "shot.png")


def test_without_an_answer_the_image_is_withdrawn(queries, answering):
    """In the time that was given, and a worker that comes later finds nothing to do."""
    token = queries.put(b"x", 60)
    began = time.monotonic()
    assert queries.wait(token, 0.3) is None
    assert 0.25 < time.monotonic() - began < 2
    assert answering.take(token) is None


def test_everything_in_redis_expires(queries, answering, redis_server):
    """The image when nobody waits any more, the answer a minute later."""
    token = queries.put(b"x", 0.2)
    answering.answer(token, CRASHED)
    with redis_server.client as client:
        assert 0 < client.pttl(f"posters:query:{token}") <= 200
        assert 0 < client.ttl(f"posters:answer:{token}") <= module.ANSWER_S
    time.sleep(0.3)
    assert answering.take(token) is None


def test_whoever_waits_without_limit_keeps_the_image(queries, answering, redis_server, monkeypatch):
    """It expires soon after its caller died, and not before."""
    token = queries.put(b"x", math.inf)
    with redis_server.client as client:
        assert 0 < client.ttl(f"posters:query:{token}") <= module.KEEP_S
    monkeypatch.setattr(module, "KEEP_S", 1.5)
    token = queries.put(b"x", math.inf)
    timer = threading.Timer(3.5, lambda: answering.answer(token, Answer(answering.take(token).decode(), b"1234")))
    timer.start()
    assert queries.wait(token, math.inf) == Answer("x", b"1234")
    timer.join()


def test_an_answer_wakes_whoever_waits(queries, answering):
    """At once, not at the next look."""
    token = queries.put(b"x", 10)
    timer = threading.Timer(0.2, answering.answer, (token, Answer("s", b"1234")))
    timer.start()
    began = time.monotonic()
    assert queries.wait(token, 10) == Answer("s", b"1234")
    assert time.monotonic() - began < 0.9 * module.POLL_S
    timer.join()


def test_an_image_is_bounded(queries, answering, monkeypatch):
    """Too large an image is refused before it is sent; Redis is no place for it."""
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(UnreadablePoster, match=r"big\.png: too-large: it has 11 bytes, the limit is 10"):
        queries.put(b"x" * 11, 5, "big.png")
    token = queries.put(b"x" * 10, 5)
    assert answering.take(token) == b"x" * 10


def test_the_message_holds_a_token_and_nothing_else():
    """Never a path, never pixels; what is no query is refused with what it was."""
    token = "0123456789abcdef" * 2
    assert encode_query(token) == {"version": 1, "query": token}
    assert decode_query(encode_query(token)) == token
    for bad in (
        None,
        [],
        {},
        {"version": 2, "query": token},
        {"version": 1, "query": token, "path": "/etc/passwd"},
        {"version": 1, "query": "../" + token[3:]},
        {"version": 1, "query": token.upper()},
        {"version": 1, "query": 5},
    ):
        with pytest.raises(BadMessage):
            decode_query(bad)


def test_a_redis_that_is_away_is_said():
    """Within seconds, by every step."""
    queries = ImageRequests("redis://127.0.0.1:1/0")
    for call in (lambda: queries.put(b"x", 1), lambda: queries.take("t"), lambda: queries.wait("t", 1)):
        with pytest.raises(RedisUnreachable, match=r"127\.0\.0\.1:1"):
            call()
    queries.close()
