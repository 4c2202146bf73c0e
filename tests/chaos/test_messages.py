"""Malformed and foreign messages in the queue: the worker keeps running, and nothing is lost."""

import base64
import json
import os
import pickle
import random
import uuid

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from producer.queue.messages import EMBED_TASK, QUEUES, BatchMessage
from tests.support.lane_elements import came_back, elements
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for

BULK, INTERACTIVE = QUEUES["bulk"], QUEUES["interactive"]
BIG_BYTES = 10_000_000
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 31))
ELEMENTS = 10_000


def raw_message(body, task=EMBED_TASK, content_type="application/json", encoding="utf-8"):
    """A message as kombu pushes it to the list, with the bytes `body`."""
    name = "a-job.1"
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
    """The body of a message that calls a task with these arguments."""
    return json.dumps([arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def encoded_batch(**changes):
    return BatchMessage("a-job", "a-job.1").encode() | changes


UNKNOWN_JOB = "a batch whose job the ledger does not know"
MALFORMED = {
    "bytes that are no text": b"\xff\xfe\x00\x80garbage",
    "text that is no JSON": "not json {",
    "a JSON list": "[1, 2, 3]",
    "a JSON number": "42",
    "an object without a body": "{}",
    "an object whose parts are of other types": json.dumps({"body": 7, "headers": [], "properties": "x"}),
    "a body that is no base64": raw_message(b"x").replace(base64.b64encode(b"x").decode(), "***"),
    "a body that is no JSON": raw_message(b"\x80\x81"),
    "a pickled body": raw_message(
        pickle.dumps(((), {}, {})), content_type="application/x-python-serialize", encoding="binary"
    ),
    "an unknown content type": raw_message(b"<a/>", content_type="text/xml"),
    "an unknown task": raw_message(call(encoded_batch()), task="somebody.elses"),
    "no arguments": raw_message(call()),
    "too many arguments": raw_message(call(encoded_batch(), 2)),
    "a batch of a newer version": raw_message(call(encoded_batch(version=99))),
    "a batch with an unknown field": raw_message(call(encoded_batch(color="red"))),
    UNKNOWN_JOB: raw_message(call(encoded_batch())),
    "garbage of 10 MB": "x" * BIG_BYTES,
    "a body of 10 MB": raw_message(call(encoded_batch(padding="x" * BIG_BYTES))),
}


COMMON = (  # one of each kind for `make test`; `make chaos` sends all
    *["text that is no JSON", "a JSON list", "a pickled body", "an unknown task", "a batch of a newer version"],
    "a body of 10 MB",
)


def dead_letter_count(installation):
    with installation.redis.client as client:
        return client.llen("posters:quarantine")


@pytest.mark.parametrize(
    "what", [what if what in COMMON else pytest.param(what, marks=pytest.mark.chaos) for what in MALFORMED]
)
@scenario(
    "in a queue: garbage, lists, a pickle, an unknown task, a newer version, 10 MB, and a dozen more, each on its own",
    "dead-lettered with its reason, `doctor` shows how many; worker and child keep running, other jobs are done",
)
def test_a_malformed_message_is_dead_lettered(shared_installation, measured, what):
    """Pushed between two batches of a regular job, which is done by the same two processes."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    folder = f"malformed-{list(MALFORMED).index(what)}/"
    names, before, child = installation.draw(4, folder), dead_letter_count(installation), worker.child()
    with installation.redis.client as client:
        client.lpush(BULK, MALFORMED[what])
    counts = installation.index(str(installation.root / folder), "--batch", "2")
    installation.check(counts["job"], names)
    assert worker.process.poll() is None
    assert worker.child() == child
    if what != UNKNOWN_JOB:  # that one is well-formed: its job ended long ago
        wait_for(lambda: dead_letter_count(installation) == before + 1, "the dead letter", 5)
        assert installation.producer.registry.find(worker.name).state == "ready"
    measured()


def drawn(count):
    """Elements of a lane at random."""
    found = []

    @seed(SEED)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(elements())
    def draw(element):
        found.append(element)

    draw()
    return found


@pytest.mark.chaos
@scenario(
    f"in a queue: {ELEMENTS:,} elements at random: any bytes, any JSON, real messages with parts changed",
    "each is dead-lettered or done; worker and child keep running, other jobs are done",
)
def test_no_element_ends_the_worker(shared_installation, measured):
    """On both lanes, among them every one that ended each worker of version 0.1 that was started."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    print(f"seed {SEED}")
    child, folder = worker.child(), "elements/"
    names = installation.draw(4, folder)
    with installation.redis.client as client:
        for number, element in enumerate([*came_back().values(), *drawn(ELEMENTS)]):
            client.lpush(BULK if number % 2 else INTERACTIVE, element)
        done = lambda: not client.exists(BULK, INTERACTIVE, "unacked")  # noqa: E731
        wait_for(done, "the end of the elements", 300)
    counts = installation.index(str(installation.root / folder), "--batch", "2")
    installation.check(counts["job"], names)
    assert worker.process.poll() is None
    assert worker.child() == child
    measured()


def test_doctor_shows_the_number_of_dead_letters(shared_installation):
    """So that a person knows that there are some to look at."""
    before = dead_letter_count(shared_installation)
    with shared_installation.redis.client as client:
        client.lpush(BULK, "not json {")
    wait_for(lambda: dead_letter_count(shared_installation) == before + 1, "the dead letter", 10)
    assert f"{before + 1} message(s) rejected" in shared_installation.run("doctor").stdout
