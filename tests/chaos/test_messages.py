"""What does not belong on the queue, and what is there twice: the worker lives on, and nothing is lost."""

import base64
import json
import pickle
import uuid

import pytest

from producer.queue.messages import EMBED_TASK, QUEUES, EmbedBatch, Poster
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for

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
    "a batch with an unknown field": envelope(call(a_batch(color="red"))),
    UNKNOWN_JOB: envelope(call(a_batch())),
    "garbage of 10 MB": "x" * BIG_BYTES,
    "a body of 10 MB": envelope(call(a_batch(padding="x" * BIG_BYTES))),
}


COMMON = (  # one of each kind for every day; `make chaos` sends all
    *["text that is no JSON", "a JSON list", "a pickled body", "an unknown task", "a batch of a newer version"],
    "a body of 10 MB",
)


def quarantined(installation):
    with installation.redis.client as client:
        return client.llen("posters:quarantine")


@pytest.mark.parametrize(
    "what", [what if what in COMMON else pytest.param(what, marks=pytest.mark.chaos) for what in STRANGE]
)
@scenario(
    "on the queue: garbage, lists, a pickle, an unknown task, a newer version, 10 MB, and a dozen more, each by itself",
    "put aside with its reason, `doctor` shows how many; worker and child live on, the jobs around it are done",
)
def test_what_is_no_batch(shared_installation, measured, what):
    """Pushed between two batches of an honest job; the job is done, the same processes live."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    place = f"strange-{list(STRANGE).index(what)}/"
    names, aside, child = installation.draw(4, place), quarantined(installation), worker.child()
    with installation.redis.client as client:
        client.lpush(BULK, STRANGE[what])
    ledger = installation.index(str(installation.root / place), "--batch", "2")
    installation.check(ledger["job"], names)
    assert worker.process.poll() is None
    assert worker.child() == child
    if what != UNKNOWN_JOB:  # nothing is wrong with that one: its job ended long ago
        wait_for(lambda: quarantined(installation) == aside + 1, "the quarantine", 5)
        assert installation.producer.registry.find(worker.name).state == "ready"
    measured()


def test_doctor_shows_what_was_put_aside(shared_installation):
    """How many, for a person to look at."""
    aside = quarantined(shared_installation)
    with shared_installation.redis.client as client:
        client.lpush(BULK, "not json {")
    wait_for(lambda: quarantined(shared_installation) == aside + 1, "the quarantine", 10)
    assert f"{aside + 1} message(s) rejected" in shared_installation.run("doctor").stdout
