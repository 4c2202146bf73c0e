"""Image requests: an image that is not a poster is embedded and answered, and its vector is not stored.

    posters:query:TOKEN    string  the image file's bytes    for as long as its caller is waiting
    posters:answer:TOKEN   list    one answer as JSON        ANSWER_S

The message holds the token alone. A request is tried once: the worker takes the image out of Redis, so that an
image that kills its worker kills only one; the next delivery finds no image, and answers the caller at once.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from producer.errors import BadMessage, UnreadablePoster
from producer.queue.messages import shown
from producer.redis_client import connect

VERSION: Final = 1
MAX_BYTES: Final = 32_000_000  # a screenshot of 8K as PNG; Redis holds it only until a worker takes it
ANSWER_S: Final = 60
POLL_S: Final = 1.0  # below the client's socket timeout, so that an outage of Redis is noticed
MIN_WAIT_S: Final = 0.01  # 0 would make Redis wait forever
CRASHED: Final = {"word": "crashed-worker", "reason": "the worker died while processing this image"}


@dataclass(frozen=True)
class Answer:
    """The vector of an image as little-endian float32 bytes, and the id of its space."""

    space: str
    vector: bytes


class ImageRequests:
    """Post images, and answer them. Every method raises RedisUnreachable; threads may share an instance."""

    def __init__(self, url: str) -> None:
        """`url` as settings.redis_url."""
        self.url = url
        self._redis = connect(url, decode_responses=False)

    def put(self, data: bytes, keep_s: float, name: str = "the image") -> str:
        """Put an image into Redis for a worker; its token.

        Raises:
            UnreadablePoster: it has more than MAX_BYTES.
        """
        if len(data) > MAX_BYTES:
            reason = f"it has {len(data):,} bytes, the limit is {MAX_BYTES:,}"
            raise UnreadablePoster(name, "too-large", reason)
        token = secrets.token_hex(16)
        self._redis.set(f"posters:query:{token}", data, px=max(1, math.ceil(keep_s * 1000)))
        return token

    def take(self, token: str) -> bytes | None:
        """Take the image; None when it was taken or withdrawn before, or its caller waits no longer."""
        key = f"posters:query:{token}"
        pipe = self._redis.pipeline(transaction=True)
        pipe.getrange(key, 0, MAX_BYTES - 1)  # a key that another program wrote may be larger
        pipe.delete(key)
        data, was_there = pipe.execute()
        return cast(bytes, data) if was_there else None

    def answer(self, token: str, answer: Answer | Mapping[str, str]) -> None:
        """Answer with a vector, or with the word and the reason of a failure."""
        if isinstance(answer, Answer):
            answer = {"space": answer.space, "vector": base64.b64encode(answer.vector).decode()}
        key = f"posters:answer:{token}"
        pipe = self._redis.pipeline(transaction=True)
        pipe.rpush(key, json.dumps(answer))
        pipe.expire(key, ANSWER_S)
        pipe.execute()

    def wait(self, token: str, timeout: float, name: str = "the image") -> Answer | None:
        """The answer; None when none came within `timeout` seconds, and the image is withdrawn.

        Raises:
            UnreadablePoster: the image failed; says why.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            pause = min(max(left, MIN_WAIT_S), POLL_S)
            if found := cast(Any, self._redis.blpop([f"posters:answer:{token}"], timeout=pause)):
                fields = json.loads(found[1])
                if "word" in fields:
                    raise UnreadablePoster(name, fields["word"], fields["reason"])
                return Answer(fields["space"], base64.b64decode(fields["vector"]))
        self._redis.delete(f"posters:query:{token}")
        return None

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def encode_query(token: str) -> dict[str, Any]:
    """The message for a token."""
    return {"version": VERSION, "query": token}


def decode_query(message: object) -> str:
    """The token of a message, trusting nothing; BadMessage says what is wrong with it."""
    if not isinstance(message, Mapping) or message.get("version") != VERSION or set(message) != {"version", "query"}:
        raise BadMessage(f"a query must be an object of version {VERSION} with a token, not {shown(message)}")
    token = message["query"]
    if not isinstance(token, str) or len(token) != 32 or not set(token) <= set("0123456789abcdef"):
        raise BadMessage(f"the token of a query must be 32 hex digits, not {shown(token)}")
    return token
