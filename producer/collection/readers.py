"""The entries of a catalogue file, one by one: JSON, JSON Lines and CSV, told apart by the file's name."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from producer.collection.entry import RawEntry
from producer.collection.json_stream import LONGEST_VALUE, BadJSON, JSONStream, listed
from producer.errors import ConfigurationError

LIST: Final = "posters"  # the key of the list, where a JSON catalogue is an object
SEPARATORS: Final = (",", ";", "\t")  # of a CSV file; the first of them that stands in its header
BOMS: Final = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DEFAULT_ENCODING: Final = "utf-8-sig"  # UTF-8, with a mark or without


class Format(NamedTuple):
    """How a kind of catalogue file is read, and what its entries are counted in."""

    unit: str
    read: Callable[[TextIO], Iterator[RawEntry]]


def format_of(path: Path) -> Format:
    """The format that a file has by its name; JSON where the name does not tell."""
    return FORMATS.get(path.suffix.lower(), FORMATS[".json"])


def read_entries(path: Path) -> Iterator[RawEntry]:
    """Read a catalogue file lazily, in constant memory.

    A byte order mark tells the encoding; without one it is UTF-8.

    Raises:
        ConfigurationError: the file cannot be read, is no UTF-8, or is not of its format as a whole.
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


def _read_json(file: TextIO) -> Iterator[RawEntry]:
    for number, (about, text) in enumerate(listed(JSONStream(file), LIST), 1):
        yield _checked(number, about, text)


def _read_lines(file: TextIO) -> Iterator[RawEntry]:
    number = 0
    while line := file.readline(LONGEST_VALUE):
        number += 1
        if len(line) >= LONGEST_VALUE:
            raise BadJSON(f"line {number} is longer than any entry: is it one JSON list? Then call it .json")
        text = line.strip()
        if number == 1 and text.startswith("["):
            raise BadJSON("line 1 begins a list, and JSON Lines is an object per line: call it .json")
        if not text:
            continue
        try:
            yield _checked(number, json.loads(text), text)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            yield RawEntry(number, None, problem=f"is no JSON ({why})")


def _read_csv(file: TextIO) -> Iterator[RawEntry]:
    first = file.readline(LONGEST_VALUE)
    separator = next((mark for mark in SEPARATORS if mark in first), SEPARATORS[0])
    # strict: a quotation mark that is never closed would swallow the rest of the file without a word
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
                problem = f"has {len(cells)} values for {len(names)} columns: is a quotation mark missing?"
                yield RawEntry(number, None, problem=problem)
            elif cells:
                about = dict(zip(names, cells, strict=False))
                if not about.get("id"):
                    about.pop("id", None)  # an empty cell is no id
                yield _checked(number, about, json.dumps(about, ensure_ascii=False))
            number = lines.line_num + 2
    except csv.Error as error:
        raise csv.Error(f"line {number}: {error}") from error


FORMATS: Final[Mapping[str, Format]] = {
    ".json": Format("entry", _read_json),
    ".jsonl": Format("line", _read_lines),
    ".ndjson": Format("line", _read_lines),
    ".csv": Format("line", _read_csv),
    ".tsv": Format("line", _read_csv),
}


def _checked(number: int, about: object, text: str) -> RawEntry:
    if isinstance(about, dict):
        return RawEntry(number, about, text)
    return RawEntry(number, None, problem=f"is no object with a `file`, but {str(about)[:40]!r}")


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for mark, name in BOMS if head.startswith(mark)), DEFAULT_ENCODING)


def _bad_line(path: Path) -> str:
    """Which line it is that is no UTF-8, as ``, line 3``; looked for only when there is one."""
    if _encoding(path) != DEFAULT_ENCODING:
        return ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number}"
    return ""
