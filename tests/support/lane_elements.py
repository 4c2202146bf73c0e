"""What may lie on a lane (real messages, changed ones, any JSON, any bytes), and what arrives of it at the task."""

from __future__ import annotations

import base64
import copy
import json
from functools import cache
from typing import Any

from celery.worker.request import Request
from hypothesis import strategies as st
from kombu import Connection
from kombu.utils.json import loads

from producer.queue.messages import BULK, EMBED_TASK, INTERACTIVE, QUERY_TASK, QUEUES, BatchMessage, encode_query
from tests.support.old_ledger import LEDGER
from worker import tasks

TOKEN = "0123456789abcdef" * 2
QUEUE = QUEUES[BULK]
# Names and values to which kombu, Celery or Python's json give a meaning of their own.
NAMES = (
    *("task", "id", "headers", "properties", "body", "retries", "eta", "expires", "timelimit", "compression", "shadow"),
    *("stamped_headers", "stamps", "callbacks", "chord", "content-type", "content-encoding", "body_encoding", "lang"),
    *("delivery_tag", "delivery_info", "exchange", "routing_key", "priority", "argsrepr", "origin", "reply_to"),
    *("version", "job", "batch", "lane", "query", "posters", "__type__", "__value__", "__reduce__"),
)
WORDS = (*NAMES, EMBED_TASK, QUERY_TASK, BULK, INTERACTIVE, TOKEN, "celery.chain", "os.system", "base64", "\ud800", "")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-7")
NEST = 900  # below what Python's json refuses, above what others stand


@cache
def _samples() -> tuple[dict[str, Any], ...]:
    """Messages of both tasks and both versions; `body` as what it encodes."""
    (text,) = json.loads(LEDGER.read_text(encoding="utf-8"))[QUEUE]["value"]
    old = json.loads(text)
    old["body"] = json.loads(base64.b64decode(old["body"]))
    samples = [old]
    for task, name, sent in (
        (EMBED_TASK, "job.1", BatchMessage("job", "job.1").encode()),
        (EMBED_TASK, "job.1", {"version": 3, "batches": ["job.1"]}),
        (QUERY_TASK, TOKEN, encode_query(TOKEN)),
    ):
        sample = copy.deepcopy(old)
        sample["headers"] |= {"task": task, "id": name, "root_id": name}
        sample["body"][0] = [sent]
        samples.append(sample)
    return tuple(samples)


def _with(*place: str, value: Any) -> str:
    """A real message with one part replaced."""
    message = copy.deepcopy(_samples()[1])
    holder = message
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    return _text(message, encode_body=True)


def came_back() -> dict[str, bytes]:
    """What validation of version 0.1 let pass, or raised at: it ended every worker that was started.

    Except for what is in these places, the messages are real.
    """
    return {
        "a task that is a list": _with("headers", "task", value=[EMBED_TASK]).encode(),
        "a type of kombu's": _with("properties", "reply_to", value={"__type__": "datetime", "__value__": 1}).encode(),
        "UTF-16": _with("headers", "lang", value="py").encode("utf-16"),
        "a byte order mark": _with("headers", "lang", value="py").encode("utf-8-sig"),
        "stamped headers that are a number": _with("headers", "stamped_headers", value=5).encode(),
        "a nest of 900": _with("headers", "stamps", value=_nested(NEST)).encode(),
    }


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


words = st.sampled_from(WORDS) | st.text(max_size=8)
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from((0, 1, 2, 3, -1))
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(
    scalars | st.builds(_nested, st.just(NEST)),  # a new one each time: it may be changed
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed_messages(draw: st.DrawFn) -> Any:
    """A real message with up to three parts replaced, removed or added."""
    message = copy.deepcopy(draw(st.sampled_from(_samples())))
    for _ in range(draw(st.integers(0, 3))):
        place = message
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.integers(0, 3)):
                place = place[key]
                continue
            match draw(st.sampled_from(("replace", "remove", "add"))):
                case "remove":
                    del place[key]
                case "add" if isinstance(place, dict):
                    place[draw(words)] = draw(values)
                case _:
                    place[key] = draw(values)
            break
    return message


def _text(message: Any, *, encode_body: bool) -> str:
    if encode_body and isinstance(message, dict) and "body" in message:
        message = message | {"body": base64.b64encode(json.dumps(message["body"]).encode()).decode()}
    return json.dumps(message)


@st.composite
def elements(draw: st.DrawFn) -> bytes:
    """Anything that may lie on a lane; four of five are changed messages."""
    match draw(st.integers(0, 9)):
        case 0:
            return draw(st.binary(max_size=64))
        case 1:
            text = json.dumps(draw(values))
        case _:
            text = _text(draw(changed_messages()), encode_body=draw(st.integers(0, 9)) > 0)
    encoding = draw(st.sampled_from(ENCODINGS)) if not draw(st.integers(0, 9)) else "utf-8"
    element = text.encode(encoding)
    if not draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(element)))
        element = element[:at] + draw(st.binary(max_size=3)) + element[at + draw(st.integers(0, 3)) :]
    return element


def received(text: bytes) -> tuple[str, str, Any]:
    """Task, id and argument of a message, as kombu and Celery parse it on its way to the task."""
    with Connection("memory://") as connection:
        message = connection.channel().message_to_python(loads(text.decode()))
        message.accept = {"application/json"}
        request = Request(message, app=tasks.embed.app, task=tasks.embed, hostname="w@tests")
    (argument,) = request.args
    assert (request.kwargs, request.eta, request.expires) == ({}, None, None)
    assert message.delivery_info == {"exchange": "", "routing_key": QUEUE}
    return request.name, request.id, argument
