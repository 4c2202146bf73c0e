"""Pictures for a page, as ``data:`` URLs: small ones where Pillow is installed, the files themselves where not."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from producer.errors import ConfigurationError, UnreadablePoster
from producer.files import read_file
from producer.local import small_pictures
from producer.settings import Settings

WHOLE_FILE_MOST_BYTES: Final = 2_000_000  # a page of a hundred of them opens still
SIGNATURES: Final = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (8, b"WEBP", "image/webp"),
    (0, b"GIF8", "image/gif"),
    (4, b"ftypavif", "image/avif"),
)
logger = logging.getLogger(__name__)
File = tuple[Path | None, str]  # the posters root, or None for a file outside; and the path


def pictures(settings: Settings, files: Sequence[File | None]) -> list[str | None]:
    """A ``data:`` URL for each file; None where there is no file, or no picture in it."""
    wanted = [file for file in files if file is not None]
    try:
        small = small_pictures(settings, wanted) if wanted else []
        made = [_url(data, "image/webp") if data else None for data in small]
    except ConfigurationError as error:  # a machine that only produces has neither torch nor Pillow
        logger.warning("no small pictures can be made here, the page holds whole files instead: %s", error)
        made = [_whole(file) for file in wanted]
    found = iter(made)
    return [next(found) if file is not None else None for file in files]


def _whole(file: File) -> str | None:
    root, path = file
    try:
        data = read_file(path, root=root.resolve() if root else None, max_bytes=WHOLE_FILE_MOST_BYTES).data
    except (UnreadablePoster, OSError):
        return None
    kind = next((kind for at, signature, kind in SIGNATURES if data.startswith(signature, at)), None)
    return _url(data, kind) if kind else None


def _url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
