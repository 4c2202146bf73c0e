"""Query images as they come: files, addresses of the web, standard input; as local files while they are searched."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from producer.errors import ConfigurationError, UnreadablePoster
from producer.files import read_file
from producer.host import engine_required
from producer.requests.codec import MAX_IMAGE_BYTES
from producer.settings import Settings

STANDARD_INPUT: Final = "-"
SCHEMES: Final = ("http://", "https://")


@dataclass(frozen=True)
class Source:
    """A query image.

    Attributes:
        name: as the person named it.
        path: of a file with its bytes; None where there is none.
        without_bars: of a file with its picture alone, where it is a screenshot with bars around it.
        failure: why it cannot be read.
    """

    name: str
    path: Path | None = None
    without_bars: Path | None = None
    failure: UnreadablePoster | None = None


@contextmanager
def open_sources(names: Sequence[str], settings: Settings) -> Iterator[list[Source]]:
    """The images as files, in the order of their names, until the block ends; `-` is standard input."""
    if sum(name == STANDARD_INPUT for name in names) > 1:
        raise ConfigurationError("standard input (-) can be read once only")
    with tempfile.TemporaryDirectory(prefix="posters-query-") as folder:
        yield [_open(name, Path(folder, str(number)), settings) for number, name in enumerate(names)]


def _open(name: str, place: Path, settings: Settings) -> Source:
    limit = min(MAX_IMAGE_BYTES, settings.max_file_bytes)
    path = Path(name)
    try:
        if name == STANDARD_INPUT:
            data, path = _standard_input(limit), place
        elif name.lower().startswith(SCHEMES):
            from producer.search.download import download  # an HTTP client that no other query needs

            data, path = download(name, private=settings.private_urls), place
        else:
            data = read_file(name, max_bytes=limit).data
        if path == place:
            place.write_bytes(data)
    except UnreadablePoster as error:
        return Source(name, failure=UnreadablePoster(name, error.word, error.reason))
    return Source(name, path, _bars_removed(data, place.with_suffix(".png"), settings))


def _standard_input(limit: int) -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or os.isatty(sys.stdin.fileno()):
        raise ConfigurationError("standard input (-) is a terminal: send an image through a pipe")
    data: bytes = stream.read(limit + 1)
    if len(data) > limit:
        raise UnreadablePoster(STANDARD_INPUT, "too-large", f"it has more than {limit:,} bytes")
    if not data:
        raise UnreadablePoster(STANDARD_INPUT, "unreadable", "nothing came")
    return data


def _bars_removed(data: bytes, place: Path, settings: Settings) -> Path | None:
    """A file with the picture between the bars; None where there are no bars, or the engine is not installed."""
    try:
        with engine_required():
            from worker.renditions.bars import without_bars
    except ConfigurationError:
        return None
    picture = without_bars(data, settings)
    if picture is None:
        return None
    place.write_bytes(picture)
    return place
