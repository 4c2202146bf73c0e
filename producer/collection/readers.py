"""Readers of catalogue files: JSON, JSON Lines, CSV and plain text, selected by the suffix; entries come one by one."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from producer.collection.entry import Entry, Problem, parse_entry
from producer.collection.json_stream import MAX_VALUE_CHARACTERS, BadJSON, JSONStream, list_items
from producer.errors import ConfigurationError

LIST: Final = "posters"  # the key of the list, where a JSON catalogue is an object
SEPARATORS: Final = (",", ";", "\t")  # of a CSV file: the first of these that its header contains
BOMS: Final = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DEFAULT_ENCODING: Final = "utf-8-sig"  # UTF-8, with or without a mark


class Format(NamedTuple):
    """A format of catalogue files: what its entries are counted in, and its reader."""

    unit: str
    read: Callable[[TextIO], Iterator[Entry | Problem]]


def format_of(path: Path) -> Format:
    """The format for a file's suffix; JSON where the suffix is unknown."""
    return FORMATS.get(path.suffix.lower(), FORMATS[".json"])


def read_entries(path: Path) -> Iterator[Entry | Problem]:
    """Read a catalogue file lazily, in constant memory.

    A byte order mark selects the encoding; without one it is UTF-8.

    Raises:
        ConfigurationError: the file cannot be read, is not UTF-8, or is malformed as a whole.
    """
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            yield from format_of(path).read(file)
    except UnicodeError as error:
        raise ConfigurationError(
            f"the catalogue {path} is not UTF-8{_bad_line(path)} ({error}): "
            "save it as UTF-8; a spreadsheet calls that `CSV UTF-8`"
        ) from error
    except BadJSON as error:
        raise ConfigurationError(f"the catalogue {path} is not readable JSON: {error}") from error
    except csv.Error as error:
        raise ConfigurationError(f"the catalogue {path} is not readable CSV: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"the catalogue {path} cannot be read: {error.strerror or error}") from error


def _read_json(file: TextIO) -> Iterator[Entry | Problem]:
    for number, (value, text) in enumerate(list_items(JSONStream(file), LIST), 1):
        yield parse_entry(number, value, text)


def _read_lines(file: TextIO) -> Iterator[Entry | Problem]:
    number = 0
    while line := file.readline(MAX_VALUE_CHARACTERS):
        number += 1
        if len(line) >= MAX_VALUE_CHARACTERS:
            raise BadJSON(f"line {number} is longer than any entry: is it one JSON list? Then call it .json")
        text = line.strip()
        if number == 1 and text.startswith("["):
            raise BadJSON("line 1 begins a list, and JSON Lines is an object per line: call it .json")
        if not text:
            continue
        try:
            yield parse_entry(number, json.loads(text), text)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            yield Problem(number, None, "unsupported", f"is not JSON ({why})")


def _read_names(file: TextIO) -> Iterator[Entry | Problem]:
    number = 0
    while line := file.readline(MAX_VALUE_CHARACTERS):
        number += 1
        if name := line.rstrip("\r\n"):
            yield parse_entry(number, name, json.dumps(name))


def _read_csv(file: TextIO, *, tabs: bool = False) -> Iterator[Entry | Problem]:
    first = file.readline(MAX_VALUE_CHARACTERS)
    separator = "\t" if tabs else next((mark for mark in SEPARATORS if mark in first), SEPARATORS[0])
    # strict: a quotation mark that is never closed would silently swallow the rest of the file
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator, strict=True), [])]
    if "file" not in names or len(set(names)) < len(names) or not all(names):
        raise csv.Error(
            "its first line must name every column once, `file` among them, for example `file,id,title`; "
            f"it is {first.strip()[:200]!r}"
        )
    lines = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
    number = 2
    try:
        for cells in lines:
            if len(cells) > len(names):
                reason = f"has {len(cells)} values for {len(names)} columns: is a quotation mark missing?"
                yield Problem(number, None, "unsupported", reason)
            elif cells:
                about = dict(zip(names, map(str.strip, cells), strict=False))
                if not about.get("id"):
                    about.pop("id", None)  # an empty cell is not an id
                yield parse_entry(number, about, json.dumps(about, ensure_ascii=False))
            number = lines.line_num + 2
    except csv.Error as error:
        raise csv.Error(f"line {number}: {error}") from error


FORMATS: Final[Mapping[str, Format]] = {
    ".json": Format("entry", _read_json),
    ".jsonl": Format("line", _read_lines),
    ".ndjson": Format("line", _read_lines),
    ".csv": Format("line", _read_csv),
    ".tsv": Format("line", partial(_read_csv, tabs=True)),
    ".txt": Format("line", _read_names),
}


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for mark, name in BOMS if head.startswith(mark)), DEFAULT_ENCODING)


def _bad_line(path: Path) -> str:
    """The first line that is not UTF-8, as ``, line 3``."""
    if _encoding(path) != DEFAULT_ENCODING:
        return ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number}"
    return ""
