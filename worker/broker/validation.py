"""The door: is this element of a lane a message that the task behind it can be given?

Celery and kombu trust what they take from Redis: an element that is no JSON ends the worker's process, one
without an id looks to it like a lost connection. So each is looked at before they see it. What the message
says is checked by the task itself (messages.py).
"""

from __future__ import annotations

import base64
import json
from typing import Any

from producer.queue.messages import MAX_ID_CHARACTERS, MAX_MESSAGE_BYTES, TASKS


def objection(element: bytes) -> str | None:
    """Why an element of a lane cannot be worked on; None when it can.

    Costs a third of a millisecond for a batch of 256 posters, and nothing for what is too large.
    """
    if len(element) > MAX_MESSAGE_BYTES:
        return f"it has {len(element):,} bytes, the limit is {MAX_MESSAGE_BYTES:,}"
    try:
        message = json.loads(element)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    if not isinstance(message, dict):
        return f"it is a JSON {type(message).__name__}, not a message of Celery"
    return _address(message) or _body(message)


def _address(message: dict[str, Any]) -> str | None:
    """What kombu and Celery need to pass the message on and to put it back."""
    properties, headers = message.get("properties"), message.get("headers")
    if not isinstance(properties, dict) or not isinstance(headers, dict):
        return "it has no properties or no headers, as a message of Celery has"
    delivery = properties.get("delivery_info")
    if not isinstance(properties.get("delivery_tag"), str) or not isinstance(delivery, dict):
        return "it has no delivery_tag or no delivery_info"
    if not all(isinstance(delivery.get(name), str) for name in ("exchange", "routing_key")):
        return "its delivery_info names no exchange or no routing_key"
    if headers.get("task") not in TASKS:
        return f"its task {headers.get('task')!r:.80} is none of ours"
    task_id = headers.get("id")
    if not isinstance(task_id, str) or not 1 <= len(task_id) <= MAX_ID_CHARACTERS:
        return f"its id must be 1 to {MAX_ID_CHARACTERS} characters, not {task_id!r:.80}"
    for name in ("eta", "expires", "timelimit", "compression"):
        if headers.get(name) not in (None, [None, None]):
            return f"its header {name} is {headers[name]!r:.80}, and no message of ours sets that"
    if type(headers.get("retries", 0)) is not int:
        return f"its header retries must be a whole number, not {headers['retries']!r:.80}"
    return None


def _body(message: dict[str, Any]) -> str | None:
    kind, coding = message.get("content-type"), message.get("content-encoding")
    if (kind, coding) != ("application/json", "utf-8"):
        return f"its content is {kind!r:.80} in {coding!r:.80}; only application/json in utf-8 is read"
    if message["properties"].get("body_encoding") != "base64" or not isinstance(message.get("body"), str):
        return "its body is not in base64"
    try:
        body = json.loads(base64.b64decode(message["body"], validate=True))
    except (ValueError, RecursionError) as error:
        return f"its body is not JSON: {error}"
    if not isinstance(body, list) or len(body) != 3:
        return "its body is not [arguments, keywords, options]"
    arguments, keywords, options = body
    if not isinstance(arguments, list) or len(arguments) != 1 or keywords != {} or not isinstance(options, dict):
        return "it must call its task with one argument and nothing else"
    if any(options.get(name) for name in ("callbacks", "errbacks", "chain", "chord")):
        return "it asks for other tasks to follow, and no message of ours does"
    return None
