"""Requests and answers as Redis holds them: keys, limits, encoding. Pure functions, for any kind of connection.

posters:requests             list    tokens of images, the oldest at the right; at most max_requests
posters:text-requests        list    the same of texts: they need the text tower, whose loading takes seconds
posters:poster-requests      list    the same of posters: they need the store, for which the others must not wait
posters:request:TOKEN        hash    head, body, at, deaths  KEEP_S, renewed for as long as its caller waits
posters:answer:TOKEN         list    one answer as JSON      ANSWER_S
LIST:owners                  set     workers that hold requests of the list      IN_HAND_S
LIST:by:OWNER                hash    token → stage, of what that worker holds    IN_HAND_S

The scripts in lua/ name their keys and arguments. A request is deleted when it is answered: whoever answers it second
answers nobody.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from producer.embedding import SpacedVectors, with_space
from producer.errors import BadMessage, Busy, NewerMessage, SpaceMismatch, TextUnavailable, UnreadablePoster
from producer.queue.messages import MAX_PATH_CHARACTERS, MAX_SPACE_CHARACTERS, Poster, check_poster, shown
from producer.queue.workers import READY, Announcement

VERSION: Final = 1
IMAGE: Final = "image"  # the bytes of an image file
TEXT: Final = "text"  # UTF-8
POSTER: Final = "poster"  # its entry as in a batch, as JSON; the worker reads the file, and stores the vector
KINDS: Final = (IMAGE, TEXT, POSTER)
REQUESTS: Final = "posters:requests"
TEXT_REQUESTS: Final = "posters:text-requests"
POSTER_REQUESTS: Final = "posters:poster-requests"
LISTS: Final = {IMAGE: REQUESTS, TEXT: TEXT_REQUESTS, POSTER: POSTER_REQUESTS}
REQUEST: Final = "posters:request:"
ANSWER: Final = "posters:answer:"
MAX_IMAGE_BYTES: Final = 32_000_000  # a screenshot of 8K as PNG; Redis holds it only until it is answered
MAX_TEXT_BYTES: Final = 8192  # a tokenizer keeps less than a hundred tokens
MAX_POSTER_BYTES: Final = 16 * MAX_PATH_CHARACTERS  # id and path, of which a character may take six bytes
MAX_BYTES: Final = {IMAGE: MAX_IMAGE_BYTES, TEXT: MAX_TEXT_BYTES, POSTER: MAX_POSTER_BYTES}
ANSWER_S: Final = 60
KEEP_S: Final = 60.0  # how long a request outlives a caller that died while it waited
IN_HAND_S: Final = 3600  # far above what a worker takes for a chunk
POLL_S: Final = 1.0  # of a blocking read; below the client's socket timeout, so that an outage of Redis is noticed
MIN_WAIT_S: Final = 0.01  # 0 would make Redis wait forever
AT_ONCE: Final = 32  # requests of one call, such as for many texts: enough for a chunk, and others have their turn
MIN_RETRY_S, UNKNOWN_RETRY_S, MAX_RETRY_S = 0.05, 1.0, 30.0
_HEAD_BYTES: Final = 2048  # version, kind, and a space of at most MAX_SPACE_CHARACTERS
DECODING, DECODED = "decoding", "decoded"  # stages of a request that a worker holds, after "taken"
CRASH_DEATHS: Final = 2  # of workers that held a request, none of them while decoding it, before it counts as the cause


@dataclass(frozen=True)
class Request:
    """What a vector is wanted of.

    Attributes:
        kind: one of KINDS.
        body: bytes, as the kind says.
        space: id of the only space that the vector may belong to; None: whatever the worker makes.
    """

    kind: str
    body: bytes
    space: str | None = None

    @property
    def list(self) -> str:
        """The list on which it waits."""
        return LISTS[self.kind]

    def poster(self) -> Poster:
        """The poster of a request of that kind, validated; BadMessage says what is wrong with it."""
        fields = _json(self.body, "its poster")
        if not isinstance(fields, list) or len(fields) != len(Poster._fields):
            raise BadMessage(f"its poster must be [id, path, size, mtime_ns], not {shown(fields)}")
        return check_poster(fields)

    def text(self) -> str:
        """The text of a request of that kind; BadMessage if it is not UTF-8."""
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise BadMessage(f"its text is not UTF-8: {error}") from error


def poster_request(poster: Poster, space: str | None = None) -> Request:
    """A request for a poster's vector, which is stored."""
    return Request(POSTER, json.dumps(list(poster)).encode(), space)


def check_size(request: Request, name: str) -> None:
    """UnreadablePoster if the body has more bytes than its kind may; `name` is what the error calls it."""
    if len(request.body) > MAX_BYTES[request.kind]:
        reason = f"it has {len(request.body):,} bytes, the limit is {MAX_BYTES[request.kind]:,}"
        raise UnreadablePoster(name, "too-large", reason)


def new_token() -> str:
    """A random name that nobody can guess."""
    return secrets.token_hex(16)


def is_token(value: object) -> bool:
    """Whether a value has the form of a token, and so can become part of a key."""
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")


def request_key(token: str) -> str:
    """Key of a request."""
    return REQUEST + token


def answer_key(token: str) -> str:
    """Key of its answer."""
    return ANSWER + token


def put_call(request: Request, token: str, keep_s: float, most: int) -> tuple[list[str], list[Any]]:
    """Keys and arguments of put_request.lua."""
    keep_ms = max(1, math.ceil(min(keep_s, KEEP_S) * 1000))
    return [request.list, request_key(token)], [token, *encode_request(request), keep_ms, most, REQUEST]


def withdraw_commands(request: Request, token: str) -> list[tuple[Any, ...]]:
    """The Redis commands that leave nothing behind of a request whose caller waits no longer."""
    return [("LREM", request.list, 1, token), ("DEL", request_key(token), answer_key(token))]


def encode_request(request: Request) -> tuple[bytes, bytes]:
    """Head and body."""
    head = {"version": VERSION, "kind": request.kind, "space": request.space}
    return json.dumps(head).encode(), request.body


def decode_request(head: bytes, body: bytes) -> Request:
    """The inverse of encode_request, trusting nothing.

    Raises:
        NewerMessage: it is of a newer version.
        BadMessage: names the field, what it must be, and what it was.
    """
    fields = _json(head[:_HEAD_BYTES], "its head")
    if not isinstance(fields, Mapping):
        raise BadMessage(f"its head must be an object, not {shown(fields)}")
    version, kind, space = (fields.get(name) for name in ("version", "kind", "space"))
    if type(version) is not int or version < 1:
        raise BadMessage(f"its version must be a positive whole number, not {shown(version)}")
    if version > VERSION or (isinstance(kind, str) and kind not in KINDS):
        raise NewerMessage(f"version {version}, kind {shown(kind)}: a newer worker can read it")
    if kind not in KINDS:
        raise BadMessage(f"its kind must be one of {', '.join(KINDS)}, not {shown(kind)}")
    if not isinstance(space, str | None) or len(space or "") > MAX_SPACE_CHARACTERS:
        raise BadMessage(f"its space must be the id of one, or none, not {shown(space)}")
    if len(body) > MAX_BYTES[kind]:
        raise BadMessage(f"it has {len(body):,} bytes, the limit is {MAX_BYTES[kind]:,}")
    return Request(kind, body, space)


@dataclass(frozen=True)
class Answer:
    """A vector as little-endian float32 bytes, and the id of its space."""

    space: str
    vector: bytes


@dataclass(frozen=True)
class Refusal:
    """Why there is no vector.

    Attributes:
        word: one of FAILURE_WORDS.
        reason: one sentence for a person.
        is_mismatch: the request was for another space than the worker's.
        no_text: the worker embeds no text at all.
    """

    word: str
    reason: str
    is_mismatch: bool = False
    no_text: bool = False


CRASHED: Final = Refusal("crashed-worker", "the worker died while processing it")


def encode_answer(answer: Answer | Refusal) -> str:
    """JSON, which callers of version 0.1 and of the versions before requests read as well."""
    if isinstance(answer, Answer):
        return json.dumps({"space": answer.space, "vector": base64.b64encode(answer.vector).decode()})
    marks = {"mismatch": answer.is_mismatch, "no_text": answer.no_text}
    return json.dumps({"word": answer.word, "reason": answer.reason} | {name: 1 for name in marks if marks[name]})


def decode_answer(text: bytes | str, name: str) -> SpacedVectors:
    """The vector of an answer, float32 (dimension,).

    Args:
        name: what an error calls the image, text or poster.

    Raises:
        SpaceMismatch: the worker makes vectors of another space than the request was for.
        TextUnavailable: the worker embeds no text.
        UnreadablePoster: it has no vector; says why.
    """
    fields = json.loads(text)
    if "mismatch" in fields:
        raise SpaceMismatch(f"{name}: {fields['reason']}")
    if "no_text" in fields:
        raise TextUnavailable(fields["reason"])
    if "word" in fields:
        raise UnreadablePoster(name, fields["word"], fields["reason"])
    vector = np.frombuffer(base64.b64decode(fields["vector"]), "<f4").astype(np.float32)
    return with_space(vector, fields["space"])


def check_waiting(waiting: int, workers: Iterable[Announcement], name: str) -> None:
    """Busy if put_request.lua refused a request, which it answers with the negative number of those that wait."""
    if waiting >= 0:
        return
    seconds = retry_after_s(-waiting, workers)
    raise Busy(f"no vector for {name}: {-waiting} requests wait already; try again in {seconds:.2g} s", seconds)


def retry_after_s(waiting: int, workers: Iterable[Announcement]) -> float:
    """Seconds in which the waiting requests are answered, at the rate at which the workers answered lately.

    UNKNOWN_RETRY_S while no worker has published a rate.
    """
    rates = (worker.get("requests_per_second") for worker in workers if worker.state == READY)
    rate = sum(float(text) for text in rates if text)
    return min(max(waiting / rate, MIN_RETRY_S), MAX_RETRY_S) if rate else UNKNOWN_RETRY_S


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{what} is not JSON in UTF-8: {error!s:.200}") from error
