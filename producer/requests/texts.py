"""A text as a request carries it: UTF-8, and what errors call it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Final

from producer.errors import UnreadablePoster

SHOWN_CHARACTERS: Final = 60  # of a text in an error


def as_texts(text: object) -> list[str]:
    """One text, or several, as a list; TypeError for what is neither, and for what has no order."""
    if isinstance(text, str):
        return [text]
    if isinstance(text, (bytes, bytearray, Set, Mapping)) or not isinstance(text, Iterable):
        raise TypeError(f"a text must be str, and several a list of str, not {type(text).__name__}")
    texts = list(text)
    for position, item in enumerate(texts):
        if not isinstance(item, str):
            raise TypeError(f"[{position}] is {type(item).__name__}, not a text")
    return texts


def text_name(text: str) -> str:
    """What errors call a text: its beginning, in quotes."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return f"the text {shown!r}"


def text_bytes(text: str) -> bytes:
    """UTF-8; UnreadablePoster for half of a character (a lone surrogate), which no encoding has."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        reason = f"it holds half of a character (a lone surrogate, {text[error.start]!r})"
        raise UnreadablePoster(text_name(text), "unsupported", reason) from error
