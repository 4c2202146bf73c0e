"""The two rows of a catalogue: an entry that can be used, and the reason why another cannot."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from producer.collection.paths import poster_id
from producer.errors import BadMessage
from producer.queue.messages import check_path, check_poster_id

DRIVE: Final = re.compile(r"^[A-Za-z]:(/|$)")
QUOTED_CHARACTERS: Final = 80  # of a bad value, in the reason


class Entry(NamedTuple):
    """One poster of the catalogue.

    Attributes:
        number: its position in a JSON list, or the line that it begins in; from 1.
        file: relative to the posters root, ``/`` between its parts.
        id: the poster's id.
        json: all its keys, as JSON.
    """

    number: int
    file: str
    id: str
    json: str

    @property
    def about(self) -> Mapping[str, Any]:
        """Every key of the entry, title included; decoded on each call."""
        found: dict[str, Any] = json.loads(self.json)
        return found


class Problem(NamedTuple):
    """An entry that cannot be used: its number, the id it claims, one of errors.FAILURE_WORDS, a predicate."""

    number: int
    id: str | None
    word: str
    reason: str


def parse_entry(number: int, value: object, text: str) -> Entry | Problem:
    r"""Check one item of a catalogue file.

    `file` is relative to the posters root; ``\`` in it is read as ``/``, on every system, so that a
    catalogue made on Windows is the same catalogue elsewhere.

    Args:
        number: its position in a JSON list, or its line.
        value: the item, decoded; an object, or the text that would be its `file`.
        text: the item as JSON.
    """
    if isinstance(value, str):  # a plain name
        value = {"file": value}
        text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict):
        return Problem(number, None, "unsupported", f"is not an object with a `file`, but {str(value)[:40]!r}")
    claimed = _id_text(value.get("id"))
    file = value.get("file")
    if not isinstance(file, str) or not file:
        return Problem(number, claimed, "unsupported", "has no `file`")
    relative = posixpath.normpath(file.replace("\\", "/"))
    quoted = repr(file[:QUOTED_CHARACTERS])
    if relative.startswith(("/", "../")) or relative == ".." or DRIVE.match(relative):
        return Problem(number, claimed, "outside-root", f"names {quoted}; `file` is relative to the posters root")
    if not _is_possible_path(relative):
        return Problem(number, claimed, "unsupported", f"names {quoted}, which no file can be called")
    identity = claimed if value.get("id") is not None else poster_id(relative)
    if identity is None:
        quoted = repr(str(value["id"])[:QUOTED_CHARACTERS])
        return Problem(number, None, "unsupported", f"has an `id` that is neither text nor a whole number: {quoted}")
    return Entry(number, relative, identity, text)


def _is_possible_path(relative: str) -> bool:
    try:
        return check_path(relative) != "."
    except BadMessage:
        return False


def _id_text(value: object) -> str | None:
    """An id as text; None for what cannot be stored and sent as one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        return check_poster_id(str(value))
    except BadMessage:
        return None


def is_encodable(text: str) -> bool:
    """False for text with lone surrogates, which no id has and SQLite refuses."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
