"""What does not belong on the queue, and what is there twice: the worker lives on, and nothing is lost."""

import base64
import json
import pickle
import uuid

import pytest
from chaos_table import scenario
from patience import wait_for

from worker.messages import EMBED_TASK, QUEUES, EmbedBatch, Poster

BULK = QUEUES["bulk"]
BIG_BYTES = 10_000_000


def envelope(body, task=EMBED_TASK, content_type="application/json", encoding="utf-8"):
    """A message as kombu lays it on the list; `body` bytes."""
    name = str(uuid.uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": name, "root_id": name, "retries": 0, "argsrepr": "()"},
            "properties": {
                "correlation_id": name,
                "reply_to": None,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": BULK},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def call(*arguments):
    """A body that calls the task with these arguments."""
    return json.dumps([arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def a_batch(**changes):
    batch = EmbedBatch("a-job", "a-job.1", (Poster("a.jpg", "a.jpg"),)).encode()
    return batch | changes


UNKNOWN_JOB = "a batch whose job the ledger does not know"
STRANGE = {
    "bytes that are no text": b"\xff\xfe\x00\x80garbage",
    "text that is no JSON": "not json {",
    "a JSON list": "[1, 2, 3]",
    "a JSON number": "42",
    "an object without a body": "{}",
    "an object whose parts are of other types": json.dumps({"body": 7, "headers": [], "properties": "x"}),
    "a body that is no base64": envelope(b"x").replace(base64.b64encode(b"x").decode(), "***"),
    "a body that is no JSON": envelope(b"\x80\x81"),
    "a pickled body": envelope(
        pickle.dumps(((), {}, {})), content_type="application/x-python-serialize", encoding="binary"
    ),
    "an unknown content type": envelope(b"<a/>", content_type="text/xml"),
    "an unknown task": envelope(call(a_batch()), task="somebody.elses"),
    "no arguments": envelope(call()),
    "too many arguments": envelope(call(a_batch(), 2)),
    "a batch of a newer version": envelope(call(a_batch(version=99))),
    "a batch with an unknown field": envelope(call(a_batch(colour="red"))),
    UNKNOWN_JOB: envelope(call(a_batch())),
    "garbage of 10 MB": "x" * BIG_BYTES,
    "a body of 10 MB": envelope(call(a_batch(padding="x" * BIG_BYTES))),
}


COMMON = (  # one of each kind for every day; `make chaos` sends all
    *["text that is no JSON", "a JSON list", "a pickled body", "an unknown task", "a batch of a newer version"],
    "a body of 10 MB",
)


def quarantined(world):
    with world.redis.client as client:
        return client.llen("posters:quarantine")


@pytest.mark.parametrize(
    "what", [what if what in COMMON else pytest.param(what, marks=pytest.mark.chaos) for what in STRANGE]
)
@scenario(
    "on the queue: garbage, lists, a pickle, an unknown task, a newer version, 10 MB, and a dozen more, each by itself",
    "put aside with its reason, `doctor` shows how many; worker and child live on, the jobs around it are done",
)
def test_what_is_no_batch(enduring, measured, what):
    """Pushed between two batches of an honest job; the job is done, the same processes live."""
    world, worker = enduring, enduring.workers[-1]
    place = f"strange-{list(STRANGE).index(what)}/"
    names, aside, child = world.draw(4, place), quarantined(world), worker.child()
    with world.redis.client as client:
        client.lpush(BULK, STRANGE[what])
    ledger = world.index(str(world.root / place), "--batch", "2")
    world.check(ledger["job"], names)
    assert worker.process.poll() is None
    assert worker.child() == child
    if what != UNKNOWN_JOB:  # nothing is wrong with that one: its job ended long ago
        wait_for(lambda: quarantined(world) == aside + 1, "the quarantine", 5)
        assert world.producer.announcements.hear(worker.name).state == "ready"
    measured()


def test_doctor_shows_what_was_put_aside(enduring):
    """How many, for a person to look at."""
    aside = quarantined(enduring)
    with enduring.redis.client as client:
        client.lpush(BULK, "not json {")
    wait_for(lambda: quarantined(enduring) == aside + 1, "the quarantine", 10)
    assert f"{aside + 1} message(s) put aside" in enduring.run("doctor").stdout
