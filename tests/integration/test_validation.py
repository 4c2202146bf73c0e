"""Validation accepts what producers send, and rejects everything that would end or confuse the worker."""

import base64
import copy
import json
import pickle

import pytest

from producer.queue.messages import BULK, MAX_MESSAGE_BYTES, MAX_POSTERS, QUEUES, EmbedBatch, Poster, fitting
from producer.queue.sender import create_sender, send
from producer.settings import load_settings
from worker.broker.validation import rejection_reason


@pytest.fixture(scope="module")
def sent(redis_server):
    """A message as a producer pushes it to its lane."""
    with redis_server.client as client, create_sender(load_settings(redis_url=redis_server.url)) as app:
        client.flushall()
        send(app, EmbedBatch("job", "job.1", (Poster("進撃/a b\n.jpg", "\udcff.jpg", 1, 2**62),)))
        return json.loads(client.rpop(QUEUES[BULK]))


def element(message) -> bytes:
    return json.dumps(message).encode()


def body(*parts) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


def test_a_producers_message_is_valid(sent):
    """Both as it was sent, and as kombu restores it to its lane."""
    assert rejection_reason(element(sent)) is None
    sent = copy.deepcopy(sent)
    sent["headers"]["redelivered"] = sent["properties"]["delivery_info"]["redelivered"] = True
    assert rejection_reason(element(sent)) is None


GARBAGE = {
    "nothing": b"",
    "text": b"hello",
    "bytes that are no text": b"\xff\xfe\x80",
    "half a message": b'{"body": "',
    "a list": b"[]",
    "a number": b"17",
    "null": b"null",
    "an empty object": b"{}",
    "a deep nest": b"[" * 100_000,
    "a pickle": pickle.dumps({"task": "posters.embed"}),
    "too large": b'"' + b"x" * 10_000_000 + b'"',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_rejected(name):
    """The reason is returned, no exception is raised."""
    assert rejection_reason(GARBAGE[name])


def test_an_element_that_is_too_large_is_not_parsed(monkeypatch):
    """Decoding ten megabytes would delay the worker's heartbeat."""
    monkeypatch.setattr(json, "loads", None)
    assert "10,000,002 bytes" in rejection_reason(GARBAGE["too large"])


CHANGES = {
    "no properties": (lambda m: m.pop("properties"), "properties"),
    "no headers": (lambda m: m.pop("headers"), "headers"),
    "headers that are a list": (lambda m: m.update(headers=[]), "headers"),
    "no delivery_tag": (lambda m: m["properties"].pop("delivery_tag"), "delivery_tag"),
    "no delivery_info": (lambda m: m["properties"].pop("delivery_info"), "delivery_info"),
    "no exchange": (lambda m: m["properties"]["delivery_info"].pop("exchange"), "exchange"),
    "no id": (lambda m: m["headers"].pop("id"), "id"),
    "an id that is a number": (lambda m: m["headers"].update(id=7), "id"),
    "an id that is too long": (lambda m: m["headers"].update(id="x" * 1000), "id"),
    "no task": (lambda m: m["headers"].pop("task"), "task"),
    "an unknown task": (lambda m: m["headers"].update(task="os.system"), "os.system"),
    "a task of Celery's own": (lambda m: m["headers"].update(task="celery.chain"), "celery.chain"),
    "an eta": (lambda m: m["headers"].update(eta="2999-01-01T00:00:00"), "eta"),
    "an expiry": (lambda m: m["headers"].update(expires="1999-01-01T00:00:00"), "expires"),
    "a time limit": (lambda m: m["headers"].update(timelimit=[0.001, None]), "timelimit"),
    "compression": (lambda m: m["headers"].update(compression="application/x-gzip"), "compression"),
    "retries that are no number": (lambda m: m["headers"].update(retries="many"), "retries"),
    "pickle": (lambda m: m.update({"content-type": "application/x-python-serialize"}), "python-serialize"),
    "another encoding": (lambda m: m.update({"content-encoding": "binary"}), "binary"),
    "no body": (lambda m: m.pop("body"), "base64"),
    "a body without its encoding": (lambda m: m["properties"].pop("body_encoding"), "base64"),
    "a body that is no base64": (lambda m: m.update(body="§"), "JSON"),
    "a body that is no JSON": (lambda m: m.update(body="AAAA"), "JSON"),
    "a body of another shape": (lambda m: m.update(body=body(1, 2)), "args"),
    "no argument": (lambda m: m.update(body=body([], {}, {})), "argument"),
    "two arguments": (lambda m: m.update(body=body([{}, {}], {}, {})), "argument"),
    "keyword arguments": (lambda m: m.update(body=body([{}], {"a": 1}, {})), "argument"),
    "options that are none": (lambda m: m.update(body=body([{}], {}, None)), "argument"),
    "a task to follow": (lambda m: m.update(body=body([{}], {}, {"callbacks": [{}]})), "chains"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_reason_names_the_field_that_is_wrong(sent, name):
    """Each change would make Celery end the worker, loop, or do what no producer requests."""
    change, field = CHANGES[name]
    message = copy.deepcopy(sent)
    change(message)
    assert field in rejection_reason(element(message))


@pytest.mark.parametrize("letter", ["a", "進", "\udcff", '"'])
def test_no_batch_is_too_large_for_a_message(letter):
    """Posters with the longest names are divided into messages below the limit, and none is lost."""
    posters = [Poster(f"{number}{letter * 8000}", f"{number}{letter * 4000}") for number in range(1200)]
    parts = list(fitting(posters))
    assert [poster for part in parts for poster in part] == posters
    for part in parts:
        text = json.dumps([[EmbedBatch("j", "j.1", part).encode()], {}, {}])
        assert len(base64.b64encode(text.encode())) < MAX_MESSAGE_BYTES - 10_000


def test_a_batch_of_usual_names_is_one_message():
    """Even the largest that the settings allow, with names of a hundred characters."""
    posters = [Poster(f"{number:0100}", f"{number:0100}") for number in range(MAX_POSTERS)]
    assert list(fitting(posters)) == [tuple(posters)]
