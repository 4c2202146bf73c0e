"""Requests and answers as bytes: what one side wrote the other reads, and nothing else is believed."""

import json
import pickle

import numpy as np
import pytest

from producer.embedding import space_of
from producer.errors import BadMessage, Busy, NewerMessage, SpaceMismatch, TextUnavailable, UnreadablePoster
from producer.queue.messages import Poster
from producer.queue.workers import LOADING, READY, Announcement
from producer.requests import codec
from producer.requests.codec import (
    IMAGE,
    TEXT,
    Answer,
    Refusal,
    Request,
    check_size,
    check_waiting,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    poster_request,
    retry_after_s,
)

POSTER = Poster("aé", "a\udce9/b.jpg", 7, -3)


@pytest.mark.parametrize(
    "request_", [Request(IMAGE, b"\xff\x00", "s"), Request(TEXT, "雨".encode()), poster_request(POSTER, "s")]
)
def test_what_is_encoded_is_decoded(request_):
    """Of every kind; its list says whether answering it needs the store."""
    assert decode_request(*encode_request(request_)) == request_
    assert request_.list == codec.LISTS[request_.kind]


def test_content_is_validated_when_it_is_read():
    """A text is UTF-8; a poster is what a batch would accept."""
    assert Request(TEXT, "雨".encode()).text() == "雨"
    assert poster_request(POSTER).poster() == POSTER
    for bad in (b"{}", b"[1]", b'["a", "b", "c", 1]', b'["", "b", 1, 1]', b"\xff", b"[" * 100_000):
        with pytest.raises(BadMessage):
            Request(codec.POSTER, bad).poster()
    with pytest.raises(BadMessage, match="UTF-8"):
        Request(TEXT, b"\xff").text()


@pytest.mark.parametrize(
    ("head", "kind", "text"),
    [
        (b"\xff", BadMessage, "its head is not JSON"),
        (b"[]", BadMessage, "its head must be an object"),
        (b"[" * 100_000, BadMessage, "its head is not JSON"),
        ({"version": "1"}, BadMessage, "its version must be"),
        ({"version": 2}, NewerMessage, "newer"),
        ({"kind": "video"}, NewerMessage, "newer"),
        ({"kind": ["image"]}, BadMessage, "its kind must be"),
        ({"space": 5}, BadMessage, "its space must be"),
        ({"space": "s" * 513}, BadMessage, "its space must be"),
        ({"kind": "text"}, BadMessage, "the limit is 8,192"),
    ],
)
def test_a_request_that_cannot_be_read_says_why(head, kind, text):
    """Whoever may write to Redis decides what it holds."""
    if isinstance(head, dict):
        head = json.dumps({"version": 1, "kind": IMAGE, "space": None} | head).encode()
    with pytest.raises(BadMessage, match=text) as caught:
        decode_request(head, b"x" * 8193)
    assert type(caught.value) is kind


def test_a_request_is_bounded_by_its_kind():
    """Before it is sent: Redis is no place for it."""
    check_size(Request(TEXT, b"x" * codec.MAX_TEXT_BYTES), "a text")
    with pytest.raises(UnreadablePoster, match="a text: too-large: it has 8,193 bytes, the limit is 8,192"):
        check_size(Request(TEXT, b"x" * 8193), "a text")


def test_an_answer_is_a_vector_with_its_space_or_an_error():
    """float32, whatever the byte order of this machine; errors have the caller's name for the image."""
    vector = np.array([1.5, -2], "<f4")
    found = decode_answer(encode_answer(Answer("s", vector.tobytes())), "a.png")
    assert (found.tolist(), found.dtype, space_of(found)) == ([1.5, -2], np.float32, "s")
    with pytest.raises(UnreadablePoster, match=r"a\.png: truncated: it ends early"):
        decode_answer(encode_answer(Refusal("truncated", "it ends early")), "a.png")
    with pytest.raises(SpaceMismatch, match=r"a\.png: another model"):
        decode_answer(encode_answer(Refusal("internal", "another model", is_mismatch=True)), "a.png")
    with pytest.raises(TextUnavailable, match=r"^no tokenizer$"):
        decode_answer(encode_answer(Refusal("unsupported", "no tokenizer", no_text=True)), "a.png")


def ready(**fields):
    return Announcement("w/1/x", READY, fields)


def test_busy_says_when_to_try_again():
    """What the waiting ones take at the rate of all workers; it survives a pickle."""
    check_waiting(3, [], "a.png")
    workers = [ready(requests_per_second="30.0"), ready(requests_per_second="10"), ready()]
    with pytest.raises(Busy, match=r"no vector for a\.png: 20 requests wait already; try again in 0\.5 s") as caught:
        check_waiting(-20, workers, "a.png")
    assert pickle.loads(pickle.dumps(caught.value)).retry_after_s == caught.value.retry_after_s == 0.5
    assert retry_after_s(1, [Announcement("w/1/x", LOADING, {"requests_per_second": "5"})]) == codec.UNKNOWN_RETRY_S
    assert retry_after_s(10**6, workers) == codec.MAX_RETRY_S
    assert retry_after_s(1, workers) == codec.MIN_RETRY_S
