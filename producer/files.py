"""From a poster's id back to its file, for those who want to look at it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from producer.catalogue import Catalogue

_BYTE: Final = re.compile(r"%([89A-F][0-9A-F])")  # how poster_id writes a byte that is no UTF-8


def file_of(poster: str, root: Path, catalogue: Catalogue) -> str | None:
    """The file of a poster, relative to the posters root; None when there is none (any more).

    Where the catalogue does not know it, an id is the file's path after NFC, with bytes that are no UTF-8
    as ``%XX``: the ways back are tried in turn.
    """
    return next((name for name in _names(poster, catalogue) if os.path.isfile(root / name)), None)


def _names(poster: str, catalogue: Catalogue) -> Iterator[str]:
    entry = catalogue.by_id.get(poster)
    if entry is not None:
        yield entry.file
        return
    if os.path.isabs(poster) or ".." in Path(poster).parts:
        return  # an id that somebody chose, and no path below the root
    yield poster
    yield unicodedata.normalize("NFD", poster)  # as macOS writes names
    if "%" in poster:
        yield _BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), poster)
