"""Validation rebuilds what producers send, and rejects everything that would end or confuse the worker."""

import base64
import copy
import json
import pickle
import time

import pytest

from producer.errors import BadMessage
from producer.queue.messages import (
    BULK,
    EMBED_TASK,
    INTERACTIVE,
    MAX_MESSAGE_BYTES,
    MAX_POSTERS,
    QUERY_TASK,
    QUEUES,
    BatchMessage,
    EmbedBatch,
    Poster,
    encode_query,
    fitting,
)
from producer.queue.sender import create_sender, send
from producer.settings import load_settings
from tests.support.fixtures.validation_v0_1 import rejection_reason
from tests.support.lane_elements import QUEUE, TOKEN, received
from tests.support.old_ledger import LEDGER
from worker import tasks
from worker.broker.validation import MAX_RETRIES, rebuild


@pytest.fixture(scope="module")
def elements(redis_server):
    """A batch as a producer pushes it to its lane, and an image request as older ones do."""
    with redis_server.client as client, create_sender(load_settings(redis_url=redis_server.url)) as app:
        client.flushall()
        send(app, BatchMessage("job", "job.1"))
        app.send_task(QUERY_TASK, args=[encode_query(TOKEN)], task_id=TOKEN, queue=QUEUES[INTERACTIVE])
        return {
            EMBED_TASK: json.loads(client.rpop(QUEUES[BULK])),
            QUERY_TASK: json.loads(client.rpop(QUEUES[INTERACTIVE])),
        }


@pytest.fixture
def sent(elements):
    """The message of a batch."""
    return copy.deepcopy(elements[EMBED_TASK])


def element(message) -> bytes:
    return json.dumps(message).encode()


def body(*parts) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


def test_a_producers_message_arrives(elements):
    """Task, id, and what it names."""
    message = BatchMessage("job", "job.1").encode()
    assert received(rebuild(element(elements[EMBED_TASK]), QUEUE)) == (EMBED_TASK, "job.1", message)
    assert received(rebuild(element(elements[QUERY_TASK]), QUEUE)) == (QUERY_TASK, TOKEN, encode_query(TOKEN))


def test_a_message_is_small(elements):
    """Redis holds one for each queued batch, beside the record in the ledger."""
    assert len(element(elements[EMBED_TASK])) < 1200


def test_a_message_that_kombu_returned_to_its_lane_arrives(elements):
    """After a restart, or a visibility timeout; and an older worker takes it as well."""
    once = json.loads(rebuild(element(elements[EMBED_TASK]), QUEUE))
    once["headers"]["redelivered"] = once["properties"]["delivery_info"]["redelivered"] = True
    assert rejection_reason(element(once)) is None
    assert received(rebuild(element(once), QUEUE))[1] == "job.1"


def test_a_message_that_celery_sent_again_keeps_its_count(sent):
    """After a lost child; Celery stops counting at the task's max_retries."""
    sent["headers"]["retries"] = 7
    assert json.loads(rebuild(element(sent), QUEUE))["headers"]["retries"] == 7
    assert tasks.embed.max_retries <= MAX_RETRIES


def test_a_message_of_version_1_arrives_as_the_name_of_its_batch():
    """It may have waited on a lane during an update."""
    (text,) = json.loads(LEDGER.read_text(encoding="utf-8"))["posters.bulk"]["value"]
    name = json.loads(text)["headers"]["id"]
    message = BatchMessage(name.rpartition(".")[0], name).encode()
    assert received(rebuild(text.encode(), QUEUE)) == (EMBED_TASK, name, message)


def test_of_a_newer_message_its_version_arrives(sent):
    """The task makes a dead letter of it, and leaves the batch to a newer worker."""
    sent["body"] = body([{"version": 3, "pages": {"__type__": 1}}], {}, {})
    assert received(rebuild(element(sent), QUEUE)) == (EMBED_TASK, "job.1", {"version": 3})


def test_what_a_producer_does_not_send_has_no_effect(sent):
    """Nothing but task, id and content is taken over, whatever kombu or Celery would make of the rest."""
    expected = json.loads(rebuild(element(sent), QUEUE))
    for name in ("eta", "expires", "timelimit", "stamped_headers", "shadow", "compression", "ignore_result", "group"):
        sent["headers"][name] = 1
    sent["properties"] = {"delivery_tag": [], "delivery_info": 5, "priority": {}, "body_encoding": "rot13"}
    sent["content-type"], sent["content-encoding"] = "application/x-python-serialize", "binary"
    sent["body"] = body([BatchMessage("job", "job.1").encode()], {"a": 1}, {"callbacks": [{}], "chord": {}})
    found = json.loads(rebuild(element(sent), QUEUE))
    assert expected["properties"].pop("delivery_tag") != found["properties"].pop("delivery_tag")
    assert found == expected


GARBAGE = {
    "nothing": b"",
    "text": b"hello",
    "bytes that are no text": b"\xff\xfe\x80",
    "half a message": b'{"body": "',
    "a list": b"[]",
    "a number": b"17",
    "a number of 5,000 digits": b"1" * 5000,
    "null": b"null",
    "an empty object": b"{}",
    "a nest of 900": b'{"headers": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a deep nest": b"[" * 100_000,
    "a pickle": pickle.dumps({"task": "posters.embed"}),
    "too large": b'"' + b"x" * 10_000_000 + b'"',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_rejected(name):
    """With a reason, and never by another exception."""
    with pytest.raises(BadMessage):
        rebuild(GARBAGE[name], QUEUE)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_a_message_in_another_encoding_is_rejected(sent, encoding):
    """Python's json guesses it; kombu does not, and the worker ended at every start."""
    with pytest.raises(BadMessage, match="UTF-8"):
        rebuild(json.dumps(sent).encode(encoding), QUEUE)


def test_an_element_that_is_too_large_is_not_parsed(monkeypatch):
    """Decoding ten megabytes would delay the worker's heartbeat."""
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(BadMessage, match="10,000,002 bytes"):
        rebuild(GARBAGE["too large"], QUEUE)


BATCH = BatchMessage("job", "job.1").encode()
CHANGES = {
    "no headers": (lambda m: m.pop("headers"), "headers"),
    "headers that are a list": (lambda m: m.update(headers=[]), "headers"),
    "headers of a type of kombu's": (lambda m: m.update(headers={"__type__": "set", "__value__": []}), "task"),
    "no id": (lambda m: m["headers"].pop("id"), "id"),
    "an id that is a number": (lambda m: m["headers"].update(id=7), "id"),
    "an id that is too long": (lambda m: m["headers"].update(id="x" * 1000), "id"),
    "an id that is no text": (lambda m: m["headers"].update(id="\ud800"), "id"),
    "the id of another batch": (lambda m: m["headers"].update(id="job.2"), "job.2"),
    "no task": (lambda m: m["headers"].pop("task"), "task"),
    "a task that is a list": (lambda m: m["headers"].update(task=["posters.embed"]), "task"),
    "an unknown task": (lambda m: m["headers"].update(task="os.system"), "os.system"),
    "a task of Celery's own": (lambda m: m["headers"].update(task="celery.chain"), "celery.chain"),
    "the other task": (lambda m: m["headers"].update(task=QUERY_TASK), "query"),
    "retries that are no number": (lambda m: m["headers"].update(retries="many"), "retries"),
    "retries without end": (lambda m: m["headers"].update(retries=-1), "retries"),
    "no body": (lambda m: m.pop("body"), "body"),
    "a body that is an object": (lambda m: m.update(body={"__type__": "bytes"}), "body"),
    "a body that is no base64": (lambda m: m.update(body="§"), "base64"),
    "a body that is no JSON": (lambda m: m.update(body="AAAA"), "JSON"),
    "a pickled body": (lambda m: m.update(body=base64.b64encode(pickle.dumps(([BATCH], {}, {}))).decode()), "JSON"),
    "a body of another shape": (lambda m: m.update(body=body(1, 2)), "argument"),
    "no argument": (lambda m: m.update(body=body([], {}, {})), "argument"),
    "two arguments": (lambda m: m.update(body=body([BATCH, BATCH], {}, {})), "argument"),
    "an argument that is a list": (lambda m: m.update(body=body([[]], {}, {})), "object"),
    "a type of kombu's": (lambda m: m.update(body=body([{"__type__": "uuid", "__value__": "x"}], {}, {})), "version"),
    "an unknown field": (lambda m: m.update(body=body([BATCH | {"color": "red"}], {}, {})), "color"),
    "an unknown lane": (lambda m: m.update(body=body([BATCH | {"lane": "fast"}], {}, {})), "lane"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_reason_names_what_is_wrong(sent, name):
    """Each change would make Celery end the worker, loop, or do what no producer requests."""
    change, field = CHANGES[name]
    change(sent)
    with pytest.raises(BadMessage, match=field):
        rebuild(element(sent), QUEUE)


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


def test_a_reason_is_short_and_soon_written(sent):
    """It shows no more than the type of what may be large: the process that rejects it has messages to fetch."""
    sent["headers"] = [[] for _ in range(1_000_000)]
    began = time.process_time()
    with pytest.raises(BadMessage, match="not a list") as caught:
        rebuild(element(sent), QUEUE)
    assert len(str(caught.value)) < 200
    assert time.process_time() - began < 3
