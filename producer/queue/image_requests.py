"""Image requests: an image that is not a poster is embedded and answered, and its vector is not stored.

    posters:query:TOKEN    string  the image file's bytes    KEEP_S, renewed for as long as its caller is waiting
    posters:answer:TOKEN   list    one answer as JSON        ANSWER_S

The message holds the token alone. A request is tried once: the worker takes the image out of Redis, so that an
image that kills its worker kills only one; the next delivery finds no image, and answers the caller at once.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import math
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from producer.errors import BadMessage, UnreadablePoster
from producer.files import read_file
from producer.queue.messages import shown
from producer.redis_client import connect

VERSION: Final = 1
MAX_BYTES: Final = 32_000_000  # a screenshot of 8K as PNG; Redis holds it only until a worker takes it
ANSWER_S: Final = 60
KEEP_S: Final = 60.0  # how long an image outlives a caller that died while it waited
POLL_S: Final = 1.0  # below the client's socket timeout, so that an outage of Redis is noticed
MIN_WAIT_S: Final = 0.01  # 0 would make Redis wait forever
PNG_MODES: Final = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))  # of Pillow; TIFF holds the others
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
        """Put an image into Redis for a worker; its token. It is kept for `keep_s`, at most KEEP_S; `wait` renews that.

        Raises:
            UnreadablePoster: it has more than MAX_BYTES.
        """
        if len(data) > MAX_BYTES:
            reason = f"it has {len(data):,} bytes, the limit is {MAX_BYTES:,}"
            raise UnreadablePoster(name, "too-large", reason)
        token = secrets.token_hex(16)
        self._redis.set(f"posters:query:{token}", data, px=max(1, math.ceil(min(keep_s, KEEP_S) * 1000)))
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
        """The answer; None when none came within `timeout` seconds (inf: no limit), and the image is withdrawn.

        Raises:
            UnreadablePoster: the image failed; says why.
        """
        renewed_at = time.monotonic()
        deadline = renewed_at + timeout
        while (left := deadline - time.monotonic()) > 0:
            if time.monotonic() - renewed_at > KEEP_S / 3:
                renewed_at = time.monotonic()
                self._redis.expire(f"posters:query:{token}", math.ceil(min(left, KEEP_S)))
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


def image_bytes(image: object, name: str) -> tuple[bytes, str]:
    """The bytes of an image file, and what errors call it: `name`, or else its path.

    Args:
        image: bytes; a pathlib.Path; a binary file, which is read from its beginning; or a Pillow image, which is
            encoded without loss.
        name: empty: the path, or "the image".

    Raises:
        TypeError: it is something else.
        UnreadablePoster: the file cannot be read; or the Pillow image cannot be encoded.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), name or "the image"
    if isinstance(image, os.PathLike):
        name = name or str(os.fspath(image))
        return read_file(image, max_bytes=MAX_BYTES).data, name
    if all(hasattr(image, attribute) for attribute in ("mode", "getexif", "save")):
        return _encoded(image, name or "the image"), name or "the image"
    if callable(read := getattr(image, "read", None)) and not inspect.iscoroutinefunction(read):
        if getattr(image, "seekable", lambda: False)():
            image.seek(0)  # type: ignore[attr-defined]
        data = read(MAX_BYTES + 1)
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data), name or "the image"
    hint = f" {image[:40]!r}; a path must be a pathlib.Path" if isinstance(image, str) else ""
    hint = "; of an upload, pass .file or the bytes" if hasattr(image, "file") else hint
    raise TypeError(
        f"an image must be bytes, a pathlib.Path, a binary file or a Pillow image, not {type(image).__name__}{hint}"
    )


def _encoded(image: Any, name: str) -> bytes:
    """A Pillow image as a file with the same pixels, orientation and profile."""
    file = io.BytesIO()
    try:
        if image.mode in PNG_MODES:
            image.save(file, "PNG", compress_level=1, exif=image.getexif())
        else:
            image.save(file, "TIFF", exif=image.getexif())
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadablePoster(
            name, "unreadable", f"this image of mode {image.mode} cannot be encoded: {error}"
        ) from error
    return file.getvalue()
