"""One entry of a catalogue: as it stands in the file, and as it may be used."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from producer.collection.paths import poster_id
from producer.queue.messages import MAX_PATH_CHARACTERS

DRIVE: Final = re.compile(r"^[A-Za-z]:(/|$)")
SHOWN_CHARACTERS: Final = 80  # of what somebody wrote where something else belongs


class RawEntry(NamedTuple):
    """An entry as it stands in the file.

    Attributes:
        number: its position in a JSON list, or the line that it begins in; from 1.
        about: its keys; None where there are none, and then `problem` says why.
        text: the same as JSON.
        problem: a predicate, for example "is no JSON"; empty where there is none.
    """

    number: int
    about: Mapping[str, Any] | None
    text: str = ""
    problem: str = ""


class Place(NamedTuple):
    """What a scan needs of an entry: its number, the file relative to the posters root, the poster's id."""

    number: int
    file: str
    id: str


@dataclass(frozen=True)
class Entry:
    """One poster of the catalogue.

    Attributes:
        number: its position in a JSON list, or its line; from 1.
        file: relative to the posters root, ``/`` between its parts.
        id: the poster's id.
        about: every key of the entry, title included.
    """

    number: int
    file: str
    id: str
    about: Mapping[str, Any]


class Row(NamedTuple):
    """An entry as the catalogue keeps it; `key` is its file's poster_id, `file` is None where it is the same."""

    number: int
    key: str
    file: bytes | None
    id: str
    about: str

    @property
    def place(self) -> Place:
        """Number, file and id."""
        return Place(self.number, self.key if self.file is None else os.fsdecode(self.file), self.id)

    @property
    def entry(self) -> Entry:
        """All of it."""
        return Entry(*self.place, json.loads(self.about))


class Problem(NamedTuple):
    """Why an entry cannot be used: its number, the id it claims, one of errors.FAILURE_WORDS, a predicate."""

    number: int
    id: str | None
    word: str
    reason: str


def checked(raw: RawEntry) -> Row | Problem:
    r"""What an entry means, or why it means nothing.

    `file` is relative to the posters root; ``\`` in it is read as ``/``, on every system, so that a
    catalogue made on Windows is the same catalogue elsewhere.
    """
    claimed = _text_of(raw.about.get("id")) if raw.about else None
    if raw.about is None:
        return Problem(raw.number, claimed, "unsupported", raw.problem)
    file = raw.about.get("file")
    if not isinstance(file, str) or not file:
        return Problem(raw.number, claimed, "unsupported", "has no `file`")
    relative = posixpath.normpath(file.replace("\\", "/"))
    shown = repr(file[:SHOWN_CHARACTERS])
    if relative.startswith(("/", "../")) or relative == ".." or DRIVE.match(relative):
        return Problem(raw.number, claimed, "outside-root", f"names {shown}; `file` is relative to the posters root")
    try:
        on_disk = os.fsencode(relative)
    except UnicodeEncodeError:
        on_disk = b"\0"
    if b"\0" in on_disk or relative == "." or len(relative) > MAX_PATH_CHARACTERS:
        return Problem(raw.number, claimed, "unsupported", f"names {shown}, which no file can be called")
    key = poster_id(relative)
    identity = claimed if "id" in raw.about else key
    if identity is None:
        given = repr(str(raw.about["id"])[:SHOWN_CHARACTERS])
        return Problem(raw.number, None, "unsupported", f"has an `id` that is neither text nor a whole number: {given}")
    return Row(raw.number, key, None if relative == key else on_disk, identity, raw.text)


def _text_of(given: object) -> str | None:
    """An id as text; None where it is none that can be stored and sent."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    text = str(given)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text if 0 < len(text) <= MAX_PATH_CHARACTERS and "\0" not in text else None
