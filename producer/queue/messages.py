"""Messages of the queue, and batches as the ledger records them: lanes, task names, fields and their validation.

A message says which batch it is for; what the batch holds, the ledger alone says. So the two cannot disagree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from producer.errors import BadMessage, NewerMessage
from producer.files import EARLIEST_NS

INTERACTIVE: Final = "interactive"  # drained first
BULK: Final = "bulk"
LANES: Final = (INTERACTIVE, BULK)
QUEUES: Final = {lane: f"posters.{lane}" for lane in LANES}  # names of the lists in Redis
EMBED_TASK: Final = "posters.embed"
QUERY_TASK: Final = "posters.query"  # an image request of a producer that knew no requests yet; nobody sends it
QUERY_VERSION: Final = 1
TASKS: Final = frozenset((EMBED_TASK, QUERY_TASK))  # each takes one JSON object
MESSAGE_VERSION: Final = 2  # version 1 held the whole batch, as the ledger still records it
RECORD_VERSION: Final = 1  # older workers read it, and send it again as their messages
MAX_VERSION: Final = 2**31 - 1
MAX_POSTERS: Final = 4096  # as settings.posters_per_batch allows
MAX_ID_CHARACTERS: Final = 128  # job and batch ids
MAX_SPACE_CHARACTERS: Final = 512  # a model's name and 13 more
MAX_PATH_CHARACTERS: Final = 8192  # Linux stops at 4096 bytes, Windows at 32,767 characters on request
# Of a batch as a message of version 1: as it may still lie on a lane, and as an older worker sends it again. 4096
# posters with paths of 80 Japanese characters have 6 MB, most batches 40 kB. A message of version 2 has 1 kB.
MAX_MESSAGE_BYTES: Final = 8 << 20
_BYTES_PER_CHARACTER: Final = 8  # at most: six as JSON (\uXXXX), a third more in kombu's base64
_BYTES_PER_POSTER: Final = 80  # quotes, commas, size and time, in base64


class Poster(NamedTuple):
    """One poster of a batch, as the producer saw it.

    Attributes:
        id: under which its vector is stored.
        path: relative to the posters root, POSIX separators. Bytes that are not UTF-8 travel as
            lone surrogates, as os.fsdecode makes them.
        size: bytes; -1 when the producer did not read it.
        mtime_ns: nanoseconds since 1970, below zero for dates before it; means nothing where size is -1.
    """

    id: str
    path: str
    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class BatchMessage:
    """A message: the name of an open batch.

    Attributes:
        job: id of the job.
        batch: id of the batch; also the Celery task id.
        lane: INTERACTIVE or BULK.
    """

    job: str
    batch: str
    lane: str = BULK

    def encode(self) -> dict[str, Any]:
        """The message as JSON types."""
        return {"version": MESSAGE_VERSION, "job": self.job, "batch": self.batch, "lane": self.lane}

    @classmethod
    def decode(cls, message: object) -> BatchMessage:
        """The inverse of encode, with every field validated; of a message of version 1, what these fields say.

        Raises:
            BadMessage: names the field, what it must be, and what it was.
        """
        fields = _object(message, MESSAGE_VERSION)
        unknown = set(fields) - set(cls.__dataclass_fields__) - {"version"}
        if unknown and fields["version"] != 1:
            raise _unknown_fields(unknown)
        return cls(check_id(fields.get("job"), "job"), check_id(fields.get("batch"), "batch"), _lane(fields))


@dataclass(frozen=True)
class EmbedBatch:
    """A batch as the ledger records it: up to MAX_POSTERS posters of one job.

    Attributes:
        job: id of the job.
        batch: id of the batch, unique over all jobs; also the Celery task id.
        posters: what to embed.
        lane: INTERACTIVE or BULK.
        space: id of the only space that these vectors may land in; None: the worker's own.
        force: embed even what the store already holds.
        verify: compare contents; a file of the same size and time is read all the same.
    """

    job: str
    batch: str
    posters: tuple[Poster, ...]
    lane: str = BULK
    space: str | None = None
    force: bool = False
    verify: bool = False

    def encode(self) -> dict[str, Any]:
        """The record as JSON types."""
        return {
            "version": RECORD_VERSION,
            "job": self.job,
            "batch": self.batch,
            "lane": self.lane,
            "space": self.space,
            "force": self.force,
            "reply": False,  # older workers expect it
            "posters": [list(poster) for poster in self.posters],
            **({"verify": True} if self.verify else {}),  # left out, older workers understand the rest
        }

    @classmethod
    def decode(cls, record: object) -> EmbedBatch:
        """The inverse of encode, with every field validated.

        A producer that knew no requests set `reply` for a caller that waited: its posters are stored like all others.

        Raises:
            BadMessage: names the field, what it must be, and what it was.
        """
        fields = _object(record, RECORD_VERSION)
        if unknown := set(fields) - set(cls.__dataclass_fields__) - {"version", "reply"}:
            raise _unknown_fields(unknown)
        return cls(
            job=_text(fields.get("job"), "job", MAX_ID_CHARACTERS),
            batch=_text(fields.get("batch"), "batch", MAX_ID_CHARACTERS),
            posters=_posters(fields.get("posters")),
            **check_options({"verify": False, **fields}),
        )

    def halves(self) -> tuple[EmbedBatch, EmbedBatch]:
        """Two batches with half the posters each, for finding the one that kills its worker."""
        if len(self.posters) < 2:
            raise ValueError(f"batch {self.batch} holds one poster and cannot be split")
        middle = len(self.posters) // 2
        first = replace(self, batch=f"{self.batch}.0", posters=self.posters[:middle])
        return first, replace(self, batch=f"{self.batch}.1", posters=self.posters[middle:])


AnyBatch = BatchMessage | EmbedBatch  # names a batch


def check_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lane, space and flags of a batch, validated: by a producer before it begins a job, by a worker when it decodes.

    Raises:
        BadMessage: names the field, what it must be, and what it was.
    """
    space = fields.get("space")
    if space is not None:
        space = _text(space, "space", MAX_SPACE_CHARACTERS)
    flags = {name: _flag(fields.get(name), name) for name in ("force", "verify")}
    return {"lane": _lane(fields), "space": space, **flags}


def check_poster(poster: Sequence[Any]) -> Poster:
    """[id, path, size, mtime_ns], validated: by a producer before it is recorded, by a worker when it decodes a batch.

    Raises:
        BadMessage: names the field, what it must be, and what it was.
    """
    identity, path, size, mtime_ns = poster
    return Poster(
        check_poster_id(identity), check_path(path), _whole(size, "size", -1), _whole(mtime_ns, "mtime_ns", EARLIEST_NS)
    )


def check_poster_id(value: object) -> str:
    """A poster's id that messages and stores can hold; BadMessage if it is none."""
    return _text(value, "id")


def check_path(value: object) -> str:
    """A path that a file can have and a message can hold; BadMessage if it is none."""
    return _text(value, "path", encode=os.fsencode)


def fitting(posters: Sequence[Poster]) -> Iterator[tuple[Poster, ...]]:
    """Split posters into parts that stay well below MAX_MESSAGE_BYTES, whatever their names are made of."""
    start = size = 0
    for number, poster in enumerate(posters):
        more = _BYTES_PER_CHARACTER * (len(poster.id) + len(poster.path)) + _BYTES_PER_POSTER
        if size and size + more > MAX_MESSAGE_BYTES - (1 << 20):  # a megabyte for headers is plenty
            yield tuple(posters[start:number])
            start, size = number, 0
        size += more
    if start < len(posters):
        yield tuple(posters[start:])


def check_id(value: object, name: str) -> str:
    """An id of a job, a batch or a task, which becomes part of a Redis key; BadMessage when it cannot be one."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise BadMessage(f"{name} must be 1 to {MAX_ID_CHARACTERS} characters, not {shown(value)}")
    if not value.isascii() or not value.isprintable():
        raise BadMessage(f"{name} must be printable ASCII, not {shown(value)}")
    return value


def encode_query(token: str) -> dict[str, Any]:
    """The message of QUERY_TASK for a token."""
    return {"version": QUERY_VERSION, "query": token}


def decode_query(message: object) -> str:
    """The token of a message, trusting nothing; BadMessage says what is wrong with it."""
    if (
        not isinstance(message, Mapping)
        or message.get("version") != QUERY_VERSION
        or set(message) != {"version", "query"}
    ):
        raise BadMessage(f"a query must be an object of version {QUERY_VERSION} with a token, not {shown(message)}")
    token = message["query"]
    if not isinstance(token, str) or len(token) != 32 or not set(token) <= set("0123456789abcdef"):
        raise BadMessage(f"the token of a query must be 32 hex digits, not {shown(token)}")
    return token


def shown(value: object) -> str:
    """A value for an error: of what may be large or deep, the type alone."""
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _object(value: object, newest: int) -> Mapping[str, Any]:
    """An object of a version that this program reads."""
    if not isinstance(value, Mapping):
        raise BadMessage(f"a batch must be an object, not {type(value).__name__}")
    version = value.get("version")
    if type(version) is not int or not 1 <= version <= MAX_VERSION:
        raise BadMessage(f"version must be a positive whole number, not {shown(version)}")
    if version > newest:
        raise NewerMessage(f"version {version} is newer than this program reads ({newest}): update the worker")
    return value


def _lane(fields: Mapping[str, Any]) -> str:
    lane = fields.get("lane")
    if not isinstance(lane, str) or lane not in LANES:
        raise BadMessage(f"lane must be one of {', '.join(LANES)}, not {shown(lane)}")
    return lane


def _unknown_fields(names: set[str]) -> BadMessage:
    return BadMessage(f"unknown fields {', '.join(map(repr, sorted(names)[:3])):.200}")


def _text(
    value: object, name: str, limit: int = MAX_PATH_CHARACTERS, encode: Callable[[str], bytes] = str.encode
) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limit or "\0" in value:
        raise BadMessage(f"{name} must be 1 to {limit} characters, none of them NUL, not {shown(value)}")
    if not value.isascii():
        try:
            encode(value)  # what cannot be encoded, neither Redis nor a store nor a file system takes
        except UnicodeEncodeError:
            raise BadMessage(f"{name} holds surrogates that stand for no byte: {shown(value)}") from None
    return value


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadMessage(f"{name} must be true or false, not {shown(value)}")
    return value


def _whole(value: object, name: str, least: int) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise BadMessage(f"{name} must be a whole number from {least} to 2**63-1, not {shown(value)}")
    return value


def _posters(value: object) -> tuple[Poster, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= MAX_POSTERS:
        count = len(value) if isinstance(value, Sequence) else type(value).__name__
        raise BadMessage(f"posters must be a list of 1 to {MAX_POSTERS}, not {count}")
    posters = []
    for number, entry in enumerate(value):
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != len(Poster._fields):
            raise BadMessage(f"posters[{number}] must be [id, path, size, mtime_ns], not {entry!r:.80}")
        try:
            posters.append(check_poster(entry))
        except BadMessage as error:
            raise BadMessage(f"posters[{number}].{error}") from None
    if len({poster.id for poster in posters}) != len(posters):
        raise BadMessage("posters holds an id twice")
    return tuple(posters)
