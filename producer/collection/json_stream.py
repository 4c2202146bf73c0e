"""Decode a JSON list of any length item by item, in constant memory, with line and column of the first error.

Built on the standard library's decoder and not on ijson: ijson 3.6.0 (yajl2_c) replaces a lone surrogate in a file's
name by `?`, and crashes the process on deeply nested brackets and on numbers of thousands of digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, TextIO

BLOCK_CHARACTERS: Final = 1 << 18
MAX_VALUE_CHARACTERS: Final = 1 << 26  # what is longer has lost a quotation mark or a bracket
CUT_OFF_CHARACTERS: Final = 16  # an error closer to the end of the block may only mean that the value continues
BLANKS: Final = re.compile(r"[ \t\n\r]*")


class BadJSON(ValueError):
    """The file is not JSON; the text says where and why."""


class JSONStream:
    """A JSON text of which at most one value, or one block, is in memory."""

    def __init__(self, file: TextIO) -> None:
        """Start at the current position of `file`."""
        self._file, self._text, self._position, self._ended = file, "", 0, False
        self._lines = self._columns = 0  # before the first character of _text
        self._decoder = JSONDecoder()

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blank = BLANKS.match(self._text, self._position)
            self._position = blank.end() if blank else self._position
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1]
            self._read_block()

    def take(self, expected: str) -> str:
        """Consume the next character, which must be one of `expected`."""
        character = self.peek()
        if not character or character not in expected:
            raise self.error(f"expected {' or '.join(expected)}, not {character or 'the end'}")
        self._position += 1
        return character

    def value(self) -> tuple[Any, str]:
        """Consume the next value; the value and its text."""
        if not self.peek():
            raise self.error("it ends where a value is expected")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except JSONDecodeError as error:
                is_cut_off = error.pos >= len(self._text) - CUT_OFF_CHARACTERS
                if self._ended or not (is_cut_off or error.msg.startswith("Unterminated string")):
                    raise self.error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deeply
                raise self.error(str(error)) from error
            else:
                if end < len(self._text) or self._ended:  # else a number might continue in the next block
                    text = self._text[self._position : end]
                    self._position = end
                    return value, text
            if len(self._text) - self._position > MAX_VALUE_CHARACTERS:
                raise self.error("a value is longer than any entry: is a quotation mark or a bracket missing?")
            self._read_block()

    def elements(self, brackets: str) -> Iterator[None]:
        """Consume the `brackets` and the commas of a list or an object; the caller consumes each element in between."""
        self.take(brackets[0])
        if self.peek() == brackets[1]:
            self.take(brackets[1])
            return
        yield
        while self.take("," + brackets[1]) == ",":
            yield

    def error(self, reason: str, position: int | None = None) -> BadJSON:
        """An error with the reason, and its line and column."""
        lines, columns = self._line_and_column(self._position if position is None else position)
        return BadJSON(f"line {lines + 1}, column {columns + 1}: {reason}")

    def _line_and_column(self, position: int) -> tuple[int, int]:
        newline = self._text.rfind("\n", 0, position)
        columns = self._columns + position if newline < 0 else position - newline - 1
        return self._lines + self._text.count("\n", 0, position), columns

    def _read_block(self) -> None:
        """Drop what was consumed and read at least as much as remains, so that long values take linear time."""
        self._lines, self._columns = self._line_and_column(self._position)
        rest = self._text[self._position :]
        block = self._file.read(max(BLOCK_CHARACTERS, len(rest)))
        self._text, self._position, self._ended = rest + block, 0, not block


def list_items(stream: JSONStream, key: str) -> Iterator[tuple[Any, str]]:
    """The items of a list, or of the list under `key` of an object, each with its text.

    Raises:
        BadJSON: it is neither; or it is not JSON, which may show only after many items.
    """
    first = stream.peek()
    found = first == "["
    for _ in stream.elements("[]") if found else ():
        yield stream.value()
    for _ in stream.elements("{}") if first == "{" else ():
        name, _ = stream.value()
        if not isinstance(name, str):
            raise stream.error("a key must be text")
        stream.take(":")
        if name != key:
            stream.value()
        elif found:
            raise stream.error(f"`{key}` occurs twice")
        elif stream.peek() != "[":
            raise stream.error(f"`{key}` must be a list")
        else:
            found = True
            for _ in stream.elements("[]"):
                yield stream.value()
    if not found:
        raise stream.error(f"it must be a list, or an object with `{key}`")
    if stream.peek():
        raise stream.error("there is something after its end")
