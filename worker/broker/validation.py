"""Validation of the elements of a lane: is it a message that kombu and Celery can pass on to one of our tasks?

They trust what they read from Redis: an element that is not JSON kills the worker process, one without an id is
taken for a lost connection. Each element is therefore checked before they see it; the task checks its argument
(messages.py). The format was read in kombu 5.7.0 (transport/virtual/base.py) and celery 5.7.0 (task protocol 2).
"""

from __future__ import annotations

import base64
import json
from typing import Any

from producer.queue.messages import MAX_ID_CHARACTERS, MAX_MESSAGE_BYTES, TASKS


def rejection_reason(element: bytes) -> str | None:
    """Why an element of a lane must be rejected; None when it is valid.

    Takes a third of a millisecond for a batch of 256 posters; an element that is too large is not parsed.
    """
    if len(element) > MAX_MESSAGE_BYTES:
        return f"it has {len(element):,} bytes, the limit is {MAX_MESSAGE_BYTES:,}"
    try:
        message = json.loads(element)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    if not isinstance(message, dict):
        return f"it is a JSON {type(message).__name__}, not a Celery message"
    return _check_envelope(message) or _check_body(message)


def _check_envelope(message: dict[str, Any]) -> str | None:
    """Check the fields that kombu and Celery need to deliver a message and to restore it."""
    properties, headers = message.get("properties"), message.get("headers")
    if not isinstance(properties, dict) or not isinstance(headers, dict):
        return "it has no properties or no headers, as a Celery message has"
    delivery = properties.get("delivery_info")
    if not isinstance(properties.get("delivery_tag"), str) or not isinstance(delivery, dict):
        return "it has no delivery_tag or no delivery_info"
    if not all(isinstance(delivery.get(name), str) for name in ("exchange", "routing_key")):
        return "its delivery_info names no exchange or no routing_key"
    if headers.get("task") not in TASKS:
        return f"its task {headers.get('task')!r:.80} is not one of this worker's tasks"
    task_id = headers.get("id")
    if not isinstance(task_id, str) or not 1 <= len(task_id) <= MAX_ID_CHARACTERS:
        return f"its id must be 1 to {MAX_ID_CHARACTERS} characters, not {task_id!r:.80}"
    for name in ("eta", "expires", "timelimit", "compression"):
        if headers.get(name) not in (None, [None, None]):
            return f"its header {name} is {headers[name]!r:.80}, which a producer never sets"
    if type(headers.get("retries", 0)) is not int:
        return f"its header retries must be an integer, not {headers['retries']!r:.80}"
    return None


def _check_body(message: dict[str, Any]) -> str | None:
    content_type, encoding = message.get("content-type"), message.get("content-encoding")
    if (content_type, encoding) != ("application/json", "utf-8"):
        return f"its content type is {content_type!r:.80} in {encoding!r:.80}, not application/json in utf-8"
    if message["properties"].get("body_encoding") != "base64" or not isinstance(message.get("body"), str):
        return "its body is not base64"
    try:
        body = json.loads(base64.b64decode(message["body"], validate=True))
    except (ValueError, RecursionError) as error:
        return f"its body is not JSON: {error}"
    if not isinstance(body, list) or len(body) != 3:
        return "its body is not a list of args, kwargs and options"
    args, kwargs, options = body
    if not isinstance(args, list) or len(args) != 1 or kwargs != {} or not isinstance(options, dict):
        return "it must call its task with exactly one positional argument"
    if any(options.get(name) for name in ("callbacks", "errbacks", "chain", "chord")):
        return "it chains other tasks, which a producer never does"
    return None
