"""Queries: an image, a text, or a weighted sum of both, as `identify` takes them from its command line.

    shot.png                          an image, as ever
    "2:girl with umbrella" - crowd    twice the first text, minus the second
    shot.png + "in the rain" - b.png  images and texts

A query is one term, or several with ``+`` or ``-`` between them, each an argument of its own. Terms without an operator
between them are queries of their own. ``-`` anywhere but between two terms is the image on standard input.

A term is ``[WEIGHT:]VALUE``: a weight is a number above 0, and no blank follows its colon. The value is an image where
a file of that name exists (the whole term first: ``2:x.png``), where it names one (by its ending, or a ``/`` in it),
or is a URL; else it is a text. ``text:VALUE`` is always a text, ``./VALUE`` always an image. A single term without a
weight is always an image, however it is named: `--text` takes a text.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from producer.collection.paths import is_poster_name
from producer.embedding import SpacedVectors, with_space
from producer.errors import ConfigurationError, SpaceMismatch

STANDARD_INPUT: Final = "-"
SIGNS: Final = {"+": 1, "-": -1}
TEXT_PREFIX: Final = "text:"
MAX_WEIGHT: Final = 1000.0
MIN_LENGTH: Final = 1e-3  # of a sum, relative to its weights: what is left of two equal vectors is rounding
_WEIGHT: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf|infinity)):(?=\S)", re.IGNORECASE)
_URL: Final = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Term:
    """A part of a query.

    Attributes:
        kind: what `value` is.
        value: a path, a URL or STANDARD_INPUT; or the text.
        weight: below zero where the term is subtracted.
    """

    kind: Literal["image", "text"]
    value: str
    weight: float = 1.0

    @property
    def content(self) -> Term:
        """What is to be embedded, whatever its weight."""
        return Term(self.kind, self.value)


@dataclass(frozen=True)
class Query:
    """A sum of terms, at least one."""

    terms: tuple[Term, ...]
    label: str = field(compare=False, default="")

    @property
    def is_sum(self) -> bool:
        """Whether it is more than one image or text."""
        return len(self.terms) > 1

    @property
    def is_image(self) -> bool:
        """Whether it is one image and nothing else."""
        return not self.is_sum and self.terms[0].kind == "image"


def image_names(queries: Iterable[Query]) -> list[str]:
    """The images among the terms, each once."""
    return list(dict.fromkeys(term.value for query in queries for term in query.terms if term.kind == "image"))


def parse(arguments: Sequence[str], texts: Iterable[str] = ()) -> list[Query]:
    """The queries on a command line; `texts` are queries of their own, taken as they are.

    Raises:
        ConfigurationError: a weight is none; names it and the way out.
    """
    queries: list[list[Term]] = []
    sign = 0  # of the term that follows an operator; 0: none came
    for position, argument in enumerate(arguments):
        is_between = bool(queries) and not sign and position + 1 < len(arguments)
        if is_between and argument in SIGNS:
            sign = SIGNS[argument]
            continue
        is_part = bool(sign) or (position + 2 < len(arguments) and arguments[position + 1] in SIGNS)
        term = _term(argument, sign or 1, is_part=is_part)
        if sign:
            queries[-1].append(term)
        else:
            queries.append([term])
        sign = 0
    return [_query(terms) for terms in queries] + [_query([Term("text", text)]) for text in texts]


def combine(query: Query, vectors: Sequence[SpacedVectors]) -> SpacedVectors:
    """The unit vector of a query from those of its terms, in their order.

    Raises:
        SpaceMismatch: they are of more than one space.
        ConfigurationError: they cancel each other out.
    """
    spaces = {vector.space for vector in vectors}
    if len(spaces) != 1:
        raise SpaceMismatch(f"{query.label}: its parts are of several spaces: {', '.join(sorted(map(str, spaces)))}")
    if not query.is_sum and query.terms[0].weight > 0:
        return vectors[0]
    weights = np.array([term.weight for term in query.terms], np.float64)
    total = weights @ np.stack([np.asarray(vector, np.float64) for vector in vectors])
    length = float(np.linalg.norm(total))
    if not length > MIN_LENGTH * np.abs(weights).sum():
        raise ConfigurationError(
            f"{query.label}: nothing is left of it: its parts cancel each other out. Change a weight"
        )
    return with_space((total / length).astype(np.float32), spaces.pop() or "")


def _term(argument: str, sign: int, *, is_part: bool) -> Term:
    """A term; `is_part`: of a sum."""
    if argument == STANDARD_INPUT or _is_file(argument):
        return Term("image", argument, sign)
    weight, value = 1.0, argument
    if found := _WEIGHT.match(argument):
        weight, value = float(found[1]), argument[found.end() :]
        if not (0 < weight <= MAX_WEIGHT) or math.isnan(weight):
            raise ConfigurationError(
                f"{argument!r}: a weight is a number above 0 and at most {MAX_WEIGHT:g}, and a term is subtracted by a "
                f"`-` before it. If this is a text as it stands, write {TEXT_PREFIX}{argument}"
            )
    if not found and not is_part and not value.startswith(TEXT_PREFIX):
        return Term("image", value, sign)
    if value.startswith(TEXT_PREFIX) and not _is_file(value):
        return Term("text", value.removeprefix(TEXT_PREFIX), sign * weight)
    kind: Literal["image", "text"] = "image" if _names_an_image(value) else "text"
    return Term(kind, value, sign * weight)


def _names_an_image(value: str) -> bool:
    """Whether a value that may be a text is meant as an image, there or not: a typing error must not become a text."""
    if value == STANDARD_INPUT or _URL.match(value) or _is_file(value):
        return True
    is_path = os.sep in value or "/" in value or bool(os.path.splitdrive(value)[0])
    return is_poster_name(value) or (is_path and not re.search(r"\s", value))


def _is_file(value: str) -> bool:
    try:
        return os.path.exists(value) and not os.path.isdir(value)
    except ValueError:  # a NUL
        return False


def _query(terms: Sequence[Term]) -> Query:
    parts: list[str] = []
    for term in terms:
        sign = "" if not parts and term.weight > 0 else "+ " if term.weight > 0 else "- "
        times = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        parts.append(f"{sign}{times}{term.value if term.kind == 'image' else repr(term.value)}")
    return Query(tuple(terms), " ".join(parts))
