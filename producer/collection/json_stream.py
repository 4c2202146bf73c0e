"""A JSON file of any length, value by value, in constant memory, with the line of what is wrong in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, TextIO

BLOCK_CHARACTERS: Final = 1 << 18
LONGEST_VALUE: Final = 1 << 26  # characters; what is longer has lost a quotation mark or a bracket
CUT_OFF: Final = 16  # an error closer to the end of what was read may only mean that the value goes on
BLANKS: Final = re.compile(r"[ \t\n\r]*")


class BadJSON(ValueError):
    """The file is no JSON; the text says where and why."""


class JSONStream:
    """Reads a text as the standard library's decoder does, but never more of it than one value."""

    def __init__(self, file: TextIO) -> None:
        """`file` is read from where it stands."""
        self._file, self._text, self._at, self._ended = file, "", 0, False
        self._lines = self._columns = 0  # before the first character of _text
        self._decoder = JSONDecoder()

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blank = BLANKS.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def take(self, wanted: str) -> str:
        """The next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.wrong(f"expected {' or '.join(wanted)}, not {found or 'the end'}")
        self._at += 1
        return found

    def value(self) -> tuple[Any, str]:
        """The next value, and the text that it was read from."""
        if not self.peek():
            raise self.wrong("it ends where a value is expected")
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                cut_off = error.pos >= len(self._text) - CUT_OFF or error.msg.startswith("Unterminated string")
                if self._ended or not cut_off:
                    raise self.wrong(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
                raise self.wrong(str(error)) from error
            else:
                if end < len(self._text) or self._ended:  # else a number might go on
                    text = self._text[self._at : end]
                    self._at = end
                    return found, text
            if len(self._text) - self._at > LONGEST_VALUE:
                raise self.wrong("a value is longer than any entry: is a quotation mark or a bracket missing?")
            self._read_on()

    def wrong(self, why: str, at: int | None = None) -> BadJSON:
        """An error that says why, and at which line and column."""
        at = self._at if at is None else at
        lines, columns = self._position(at)
        return BadJSON(f"line {lines + 1}, column {columns + 1}: {why}")

    def _position(self, at: int) -> tuple[int, int]:
        """Lines, and columns of the last of them, before the character at `at`."""
        newline = self._text.rfind("\n", 0, at)
        columns = self._columns + at if newline < 0 else at - newline - 1
        return self._lines + self._text.count("\n", 0, at), columns

    def _read_on(self) -> None:
        """Drop what was used and read as much again as is left, so that long values cost no square of their length."""
        self._lines, self._columns = self._position(self._at)
        left = self._text[self._at :]
        more = self._file.read(max(BLOCK_CHARACTERS, len(left)))
        self._text, self._at, self._ended = left + more, 0, not more


def listed(stream: JSONStream, key: str) -> Iterator[tuple[Any, str]]:
    """The elements of a list, or of the list under `key` of an object: each with its text.

    Raises:
        BadJSON: it is neither; or it is no JSON, which may show only after many elements.
    """
    if stream.peek() == "[":
        yield from _elements(stream)
    elif stream.peek() == "{":
        yield from _under(stream, key)
    else:
        raise stream.wrong(f"it must be a list, or an object with `{key}`")
    if stream.peek():
        raise stream.wrong("there is something behind its end")


def _under(stream: JSONStream, key: str) -> Iterator[tuple[Any, str]]:
    seen = False
    stream.take("{")
    while stream.peek() != "}":
        name, _ = stream.value()
        if not isinstance(name, str):
            raise stream.wrong("a key must be text")
        stream.take(":")
        if name != key:
            stream.value()
        elif seen:
            raise stream.wrong(f"`{key}` stands there twice")
        elif stream.peek() != "[":
            raise stream.wrong(f"`{key}` must be a list")
        else:
            seen = True
            yield from _elements(stream)
        if stream.peek() != "}":
            stream.take(",}")
            if stream.peek() == "}":
                raise stream.wrong("a comma stands before }")
    stream.take("}")
    if not seen:
        raise stream.wrong(f"it must be a list, or an object with `{key}`")


def _elements(stream: JSONStream) -> Iterator[tuple[Any, str]]:
    stream.take("[")
    if stream.peek() == "]":
        stream.take("]")
        return
    while True:
        yield stream.value()
        if stream.take(",]") == "]":
            return
