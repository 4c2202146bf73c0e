"""Celery's remote control and events: a worker that has them on answers inspections, tells Flower of its tasks, and
nothing controls or ends it.
"""

import base64
import json
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from producer.queue.messages import EmbedBatch, Poster
from producer.settings import load_settings
from tests.support.installation import Installation
from tests.support.project import PROJECT
from tests.support.redis_server import ACL
from worker.broker.consumer import INSPECTIONS
from worker.celery import create_app

ANSWER_S = 3.0
MAILBOX = "/0.posters.pidbox"
CHANNELS = (MAILBOX, "/0.celery.pidbox", "/0.posters.events/worker.heartbeat", "/0.celeryev/worker.heartbeat")


@pytest.fixture(scope="module")
def started(redis_server, tmp_path_factory):
    """One worker for all tests of this file, started without a node name, with remote control switched on."""
    with redis_server.client as client:
        client.flushall()
    # The users of docs/redis.acl may neither publish nor subscribe.
    installation = Installation(
        tmp_path_factory.mktemp("controlled"),
        redis_server,
        redis_url=f"redis://127.0.0.1:{redis_server.port}/0",
        remote_control="true",
        events="true",
    )
    installation.forks_workers = False  # tests count its processes
    worker = installation.worker("").wait_until_ready()
    yield installation, worker
    installation.close()


@pytest.fixture
def control(started):
    """Celery's own client for this worker."""
    app = create_app(started[0].settings)
    yield app.control
    app.close()


@pytest.fixture
def unharmed(started):
    """After the test: the same parent and the same single child, which still do a job to its end."""
    installation, worker = started
    before = children(worker)
    assert len(before) == 1
    yield
    progress = installation.producer.enqueue(installation.draw(2, f"{uuid.uuid4().hex}-")).wait(30)
    assert (progress.at_rest, progress.embedded) == (True, 2)
    assert worker.process.poll() is None, worker.log_text()
    assert children(worker) == before


def children(worker):
    """Process ids of the parent's children that run tasks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == worker.process.pid and "semaphore_tracker" not in (process / "cmdline").read_text():
                found.append(int(process.name))
    return found


def mail(content, headers=None, **changes):
    """A message on the mailbox as kombu publishes it."""
    properties = {
        "delivery_info": {"exchange": "posters.pidbox", "routing_key": ""},
        "delivery_tag": str(uuid.uuid4()),
        "body_encoding": "base64",
    }
    message = {
        "body": base64.b64encode(json.dumps(content).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers or {},
        "properties": properties,
    }
    return json.dumps(message | changes)


def test_it_answers_ping_under_the_name_of_this_program(control, started, unharmed):
    """`celery -A worker worker`, typed without a name, is posters@HOST."""
    _, worker = started
    assert worker.name.startswith("posters@")
    assert control.ping(destination=[worker.name], timeout=ANSWER_S) == [{worker.name: {"ok": "pong"}}]
    assert worker.name in (control.inspect(timeout=ANSWER_S, limit=1).stats() or {})


COMMANDS = {
    "pool_grow": {"n": 2},
    "pool_shrink": {"n": 1},
    "pool_restart": {},
    "cancel_consumer": {"queue": "posters.bulk"},
    "add_consumer": {"queue": "else"},
    "rate_limit": {"task_name": "posters.embed", "rate_limit": "1/h"},
    "time_limit": {"task_name": "posters.embed", "hard": 1},
    "autoscale": {"max": 9, "min": 9},
    "hello": {"from_node": "x@y", "revoked": ["a"]},
    "conf": {"with_defaults": True},
    "memdump": {},
    "shutdown": {},
}


def test_it_obeys_no_command(control, unharmed):
    """No answer, and no effect."""
    for command, arguments in COMMANDS.items():
        control.broadcast(command, arguments=arguments)
    for command in ("pool_grow", "conf"):
        assert not control.broadcast(command, reply=True, timeout=0.5)


def test_a_revoked_batch_is_embedded_all_the_same(control, started, unharmed):
    """Otherwise its message would be dropped, and its job would never end."""
    installation, _ = started
    job = installation.producer.begin()
    batch = EmbedBatch(job.id, f"{job.id}.1", tuple(Poster(name, name) for name in installation.draw(1, "revoked-")))
    control.revoke([batch.batch], terminate=True)
    time.sleep(0.5)
    installation.producer.job_store.record_step(job.id, 1, batch=batch)
    installation.producer.send(batch)
    installation.producer.job_store.mark_sent(job.id, 1)
    assert job.wait(30).embedded == 1


def test_another_programs_shutdown_is_not_ours(started, unharmed):
    """Celery's default names are shared by every program on this Redis."""
    installation, _ = started
    with Celery("shop", broker=installation.settings.redis_url, set_as_current=False) as shop:
        shop.control.shutdown()
        time.sleep(0.5)


DEEP = "[" * 100_000 + "]" * 100_000
ENCODED_PING = {"method": "ping", "ticket": "t", "reply_to": {"exchange": "reply.posters.pidbox", "routing_key": "r"}}
MALFORMED = {
    "bytes": b"\xff\xfe\x00",
    "not JSON": "not json {",
    "a list": "[1, 2]",
    "a number": "42",
    "an empty object": "{}",
    "parts of other types": json.dumps({"body": 7, "headers": [], "properties": "x", "content-type": {}}),
    "deeply nested": DEEP,
    "a body deeply nested": mail({}, body=base64.b64encode(DEEP.encode()).decode()),
    "no body": mail({}, body=None),
    "a body that is no object": mail(["ping"]),
    "a pickled body": mail({}, **{"content-type": "application/x-python-serialize"}),
    "an unknown command": mail({**ENCODED_PING, "method": "nothing"}),
    "a command that is a list": mail({**ENCODED_PING, "method": ["ping"]}),
    "arguments of another type": mail({**ENCODED_PING, "arguments": 7}),
    "unknown fields": mail({**ENCODED_PING, "more": 1}),
    "a pattern that takes hours": mail({**ENCODED_PING, "pattern": "(.*)*x", "matcher": "pcre"}),
    "a destination of another type": mail({**ENCODED_PING, "destination": 7}),
    "a reply to nowhere": mail({**ENCODED_PING, "reply_to": {"exchange": 1}}),
    "a clock that is no number": mail(ENCODED_PING, headers={"clock": "soon"}),
    "a huge clock": mail(ENCODED_PING, headers={"clock": 10**300}),
}


def test_no_published_message_ends_it(started, control, unharmed):
    """Whoever may publish decides what arrives; on Celery's own names nothing of it is even received."""
    installation, worker = started
    with installation.redis.client as client:
        for channel in CHANNELS:
            for data in MALFORMED.values():
                client.publish(channel, data)
        assert client.pubsub_numpat() == 1, "nothing but the mailbox is subscribed to"
    assert control.ping(destination=[worker.name], timeout=ANSWER_S) == [{worker.name: {"ok": "pong"}}], (
        worker.log_text()
    )


def test_what_is_answered_changes_nothing():
    """Of Celery's commands, only some that read."""
    from celery.worker.control import Panel

    assert set(Panel.data) >= INSPECTIONS
    assert {Panel.meta[name].type for name in INSPECTIONS} == {"inspect"}


def test_flower_is_told_of_each_batch(started, unharmed):
    """Received, started, succeeded, by the id of the batch; and that the worker is alive."""
    installation, worker = started
    with create_app(installation.settings) as app, app.connection_for_read() as connection:
        seen = []
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        captured = receiver.itercapture(limit=None, timeout=30, wakeup=False)
        next(captured)  # it is subscribed
        job = installation.producer.enqueue(installation.draw(1, "flower-"))

        def of_batch():
            return [event["type"] for event in seen if str(event.get("uuid")).startswith(f"{job.id}.")]

        while of_batch()[-1:] != ["task-succeeded"] or "worker-heartbeat" not in {event["type"] for event in seen}:
            next(captured)
        captured.close()
    assert of_batch() == ["task-received", "task-started", "task-succeeded"]
    assert {event["hostname"] for event in seen} == {worker.name}


RIGHTS = re.search(r"for its events,\s+`([^`]+)`", (PROJECT / "docs" / "delivery.md").read_text(encoding="utf-8"))[1]


@pytest.mark.parametrize("rights", ["", RIGHTS], ids=["without the rights", "with the rights of docs/delivery.md"])
def test_events_need_a_right_and_are_dropped_without_it(started, rights, caplog):
    """Said once, and not kept: Celery would try all of them again with each new one."""
    installation, _ = started
    line = next(
        line for line in ACL.read_text(encoding="utf-8").splitlines() if line.startswith("user posters-worker ")
    )
    rules = re.findall(r"\([^)]*\)|\S+", line)[2:]
    with installation.redis.client as client:
        client.execute_command("ACL", "SETUSER", "events", "reset", *rules, *rights.split(), "nopass")
        settings = load_settings(redis_url=f"redis://events:x@127.0.0.1:{installation.redis.port}/0", events=True)
        pubsub = client.pubsub()
        pubsub.psubscribe("/0.posters.events/task.*")  # not what the worker of this file may send meanwhile
        pubsub.get_message(timeout=5)
        with create_app(settings) as app, app.connection_for_write() as connection:
            dispatcher = app.events.Dispatcher(connection, hostname="w@tests")
            for _ in range(3):
                dispatcher.send("task-started", uuid="J.1")
            assert not dispatcher._outbound_buffer
        message = pubsub.get_message(timeout=5 if rights else 0.2)
        pubsub.close()
    assert (message is not None) == bool(rights)
    assert caplog.text.count("events cannot be published") == (0 if rights else 1)


def test_a_person_names_the_node():
    """`-n` is obeyed; without it, the default is this program's, also where Celery's module was loaded before."""
    import click
    from celery.bin.base import CLIContext
    from celery.bin.celery import celery as command_line
    from celery.bin.worker import worker as worker_command

    import worker.celery
    from producer.settings import Settings

    with click.Context(command_line, info_name="python -m celery") as context:
        worker.celery._name_node()
        context.obj = CLIContext(worker.celery.create_app(Settings()), no_color=True, workdir=None)
        chosen = [
            worker_command.make_context("worker", list(arguments), parent=context).params["hostname"]
            for arguments in ([], ["-n", "celery@here"])
        ]
    assert chosen[0].startswith("posters@")
    assert chosen[1] == "celery@here"
