"""Validation of the elements of a lane, and the message that kombu and Celery get in their place.

They trust what they read from Redis: what is no message, or one with an unexpected type somewhere, ends the worker. So
they never see an element. What a producer sends is taken from it and checked: task, id, and the names of the batch or
the image request. The message is then built anew from these, and everything else in the element has no effect.
The format was read in kombu 5.7.0 (transport/virtual/base.py) and celery 5.7.0 (app/amqp.py, task protocol 2).
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any, Final

from producer.errors import BadMessage, NewerMessage
from producer.queue.messages import (
    EMBED_TASK,
    MAX_MESSAGE_BYTES,
    QUERY_TASK,
    BatchMessage,
    check_id,
    decode_query,
    encode_query,
    shown,
)

MAX_RETRIES: Final = 100  # after a lost child; the ledger splits or fails a batch that crashes its child long before


def rebuild(element: bytes, queue: str) -> bytes:
    """The message that an element of a lane stands for, built anew, as kombu reads it from Redis.

    Takes 0.04 ms. An element that is too large is not parsed.

    Args:
        element: what was found.
        queue: the lane's list, to which kombu returns the message if it is not done.

    Raises:
        BadMessage: it is not a message of ours; says why.
    """
    if len(element) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"it has {len(element):,} bytes, the limit is {MAX_MESSAGE_BYTES:,}")
    try:
        task, task_id, retries, argument = _content(_parse(element, "it"))
        return json.dumps(_message(queue, task, task_id, retries, argument)).encode()
    except BadMessage:
        raise
    except Exception as error:  # whatever it is: this runs in the process that must not end
        raise BadMessage(f"it cannot be read: {type(error).__name__}: {error!s:.200}") from error


def _content(message: Any) -> tuple[str, str, int, dict[str, Any]]:
    """Task, task id, retries, and the task's argument."""
    headers = _field(message, "headers", dict, "it")
    task, retries = _field(headers, "task", str, "its headers"), headers.get("retries", 0)
    if type(retries) is not int or not 0 <= retries <= MAX_RETRIES:
        raise BadMessage(f"its header retries must be 0 to {MAX_RETRIES}, not {shown(retries)}")
    body = _parse(_decoded(_field(message, "body", str, "it")), "its body")
    if not isinstance(body, list) or len(body) != 3 or not isinstance(body[0], list) or len(body[0]) != 1:
        raise BadMessage("its body does not call a task with exactly one positional argument")
    ((sent,), _, _) = body
    task_id = check_id(headers.get("id"), "its id")
    if task == EMBED_TASK:
        named, argument = _batch(sent, task_id)
    elif task == QUERY_TASK:
        named = decode_query(sent)
        argument = encode_query(named)
    else:
        raise BadMessage(f"its task {shown(task)} is not one of this worker's tasks")
    if named != task_id:
        raise BadMessage(f"its id {task_id} is not that of its content, {named}")
    return task, task_id, retries, argument


def _batch(sent: object, task_id: str) -> tuple[str, dict[str, Any]]:
    """Id and argument of a batch; of a newer version its number, of which the task makes a dead letter."""
    try:
        message = BatchMessage.decode(sent)
    except NewerMessage:
        return task_id, {"version": sent["version"]}  # type: ignore[index]
    return message.batch, message.encode()


def _message(queue: str, task: str, task_id: str, retries: int, argument: dict[str, Any]) -> dict[str, Any]:
    """A message as a producer's kombu would have put it on the lane."""
    options = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    body = json.dumps([[argument], {}, options])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            **{"lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None},
            **{"retries": retries, "eta": None, "expires": None, "timelimit": [None, None], "shadow": None},
            **{"argsrepr": "", "kwargsrepr": "", "ignore_result": True},
        },
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),  # names it until it is acknowledged; two elements may have shared one
        },
    }


def _decoded(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise BadMessage(f"its body is not base64: {error}") from error


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode())  # UTF-8 alone: given bytes, json would guess the encoding
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{what} is not JSON in UTF-8: {error!s:.200}") from error


def _field(holder: Any, name: str, kind: type, where: str) -> Any:
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        raise BadMessage(
            f"{where} must have {name} of type {kind.__name__}, as a Celery message has, not {shown(value)}"
        )
    return value
