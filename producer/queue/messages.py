"""Messages of the queue: lanes, task names, and EmbedBatch with its validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from producer.errors import BadMessage, NewerMessage
from producer.files import EARLIEST_NS

INTERACTIVE: Final = "interactive"  # a caller waits for the answer; drained first
BULK: Final = "bulk"
LANES: Final = (INTERACTIVE, BULK)
QUEUES: Final = {lane: f"posters.{lane}" for lane in LANES}  # names of the lists in Redis
EMBED_TASK: Final = "posters.embed"
QUERY_TASK: Final = "posters.query"
TASKS: Final = frozenset((EMBED_TASK, QUERY_TASK))  # each takes one JSON object
VERSION: Final = 1
MAX_POSTERS: Final = 4096  # as settings.posters_per_batch allows
MAX_ID_CHARACTERS: Final = 128  # job and batch ids
MAX_SPACE_CHARACTERS: Final = 512  # a model's name and 13 more
MAX_PATH_CHARACTERS: Final = 8192  # Linux stops at 4096 bytes, Windows at 32,767 characters on request
# As a message lies on its lane. 4096 posters with paths of 80 Japanese characters have 6 MB, most batches 40 kB.
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
class EmbedBatch:
    """One message: up to MAX_POSTERS posters of one job.

    Attributes:
        job: id of the job.
        batch: id of the batch, unique over all jobs; also the Celery task id.
        posters: what to embed.
        lane: INTERACTIVE or BULK.
        space: id of the only space that these vectors may land in; None: the worker's own.
        force: embed even what the store already holds.
        reply: put the vectors into the job as well, for a waiting caller.
        verify: compare contents; a file of the same size and time is read all the same.
    """

    job: str
    batch: str
    posters: tuple[Poster, ...]
    lane: str = BULK
    space: str | None = None
    force: bool = False
    reply: bool = False
    verify: bool = False

    def encode(self) -> dict[str, Any]:
        """The message as JSON types."""
        return {
            "version": VERSION,
            "job": self.job,
            "batch": self.batch,
            "lane": self.lane,
            "space": self.space,
            "force": self.force,
            "reply": self.reply,
            "posters": [list(poster) for poster in self.posters],
            **({"verify": True} if self.verify else {}),  # left out, older workers understand the rest
        }

    @classmethod
    def decode(cls, message: object) -> EmbedBatch:
        """The inverse of encode, with every field validated.

        Raises:
            BadMessage: names the field, what it must be, and what it was.
        """
        if not isinstance(message, Mapping):
            raise BadMessage(f"a batch must be an object, not {type(message).__name__}")
        version = message.get("version")
        if type(version) is not int or version < 1:
            raise BadMessage(f"version must be a positive whole number, not {version!r}")
        if version > VERSION:
            raise NewerMessage(f"version {version} is newer than this program reads ({VERSION}): update the worker")
        unknown = set(message) - set(cls.__dataclass_fields__) - {"version"}
        if unknown:
            raise BadMessage(f"unknown fields {', '.join(sorted(map(repr, unknown)))}")
        lane, space = message.get("lane"), message.get("space")
        if lane not in LANES:
            raise BadMessage(f"lane must be one of {', '.join(LANES)}, not {lane!r}")
        if space is not None:
            space = _text(space, "space", MAX_SPACE_CHARACTERS)
        return cls(
            job=_text(message.get("job"), "job", MAX_ID_CHARACTERS),
            batch=_text(message.get("batch"), "batch", MAX_ID_CHARACTERS),
            posters=_posters(message.get("posters")),
            lane=lane,
            space=space,
            force=_flag(message.get("force"), "force"),
            reply=_flag(message.get("reply"), "reply"),
            verify=_flag(message.get("verify", False), "verify"),
        )

    def halves(self) -> tuple[EmbedBatch, EmbedBatch]:
        """Two batches with half the posters each, for finding the one that kills its worker."""
        if len(self.posters) < 2:
            raise ValueError(f"batch {self.batch} holds one poster and cannot be split")
        middle = len(self.posters) // 2
        first = replace(self, batch=f"{self.batch}.0", posters=self.posters[:middle])
        return first, replace(self, batch=f"{self.batch}.1", posters=self.posters[middle:])


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


# Of the names that these put into an error, `{}` is the number of a poster: 4096 times, formatting takes longer than
# the check.


def _text(value: object, name: str, limit: int = MAX_PATH_CHARACTERS, number: int = 0) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limit or "\0" in value:
        shown = repr(value)
        if isinstance(value, str) and len(value) > 40:
            shown = f"{value[:40]!r}… of {len(value)} characters"
        raise BadMessage(f"{name.format(number)} must be 1 to {limit} characters, none of them NUL, not {shown}")
    return value


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadMessage(f"{name} must be true or false, not {value!r}")
    return value


def _whole(value: object, name: str, least: int, number: int) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise BadMessage(f"{name.format(number)} must be a whole number from {least} to 2**63-1, not {value!r}")
    return value


def _posters(value: object) -> tuple[Poster, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= MAX_POSTERS:
        count = len(value) if isinstance(value, Sequence) else type(value).__name__
        raise BadMessage(f"posters must be a list of 1 to {MAX_POSTERS}, not {count}")
    posters = []
    for number, entry in enumerate(value):
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != len(Poster._fields):
            raise BadMessage(f"posters[{number}] must be [id, path, size, mtime_ns], not {entry!r:.80}")
        poster = Poster(
            _text(entry[0], "posters[{}].id", number=number),
            _text(entry[1], "posters[{}].path", number=number),
            _whole(entry[2], "posters[{}].size", -1, number),
            _whole(entry[3], "posters[{}].mtime_ns", EARLIEST_NS, number),
        )
        posters.append(poster)
    if len({poster.id for poster in posters}) != len(posters):
        raise BadMessage("posters holds an id twice")
    return tuple(posters)
