"""Images of a page as ``data:`` URLs: thumbnails where the engine is installed, else the files themselves."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from producer.collection.image_formats import media_type
from producer.errors import ConfigurationError, UnreadablePoster
from producer.files import read_file
from producer.host import engine_required
from producer.settings import Settings

THUMBNAIL_PIXELS: Final = 480  # twice what a page shows them at, for screens of high density
MAX_WHOLE_FILE_BYTES: Final = 2_000_000  # a browser still opens a page of a hundred of them
SHOWN: Final = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/avif")  # by every browser
logger = logging.getLogger(__name__)
File = tuple[Path | None, str]  # the posters root and a path relative to it, or None and a path outside


def image_urls(settings: Settings, files: Sequence[File | None]) -> list[str | None]:
    """A ``data:`` URL for each file; None where there is no file, or no image in it."""
    present = [file for file in files if file is not None]
    urls = iter(_image_urls(settings, present) if present else ())
    return [next(urls) if file is not None else None for file in files]


def _image_urls(settings: Settings, files: Sequence[File]) -> list[str | None]:
    try:
        with engine_required():
            from worker.renditions.thumbnails import thumbnails
    except ConfigurationError as error:
        logger.warning("no thumbnails can be made here, the page holds whole files instead: %s", error)
        return [_whole_file(file) for file in files]
    box = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    return [_data_url(data, "image/webp") if data else None for data in thumbnails(settings, files, box)]


def _whole_file(file: File) -> str | None:
    picture = _small_file(file)
    return _data_url(*picture) if picture else None


def _small_file(file: File) -> tuple[bytes, str] | None:
    """The bytes and the type of a file that a browser shows as it is; None where it is too large, or shows none."""
    root, path = file
    try:
        data = read_file(path, root=root.resolve() if root else None, max_bytes=MAX_WHOLE_FILE_BYTES).data
    except (UnreadablePoster, OSError):
        return None
    kind = media_type(data)
    return (data, kind) if kind in SHOWN else None


def small_picture(settings: Settings, file: File, width: int) -> tuple[bytes, str] | None:
    """A picture of a file, at most `width` pixels wide and twice as high, and its media type; None: it has none.

    Where the engine is not installed, the file itself.
    """
    try:
        with engine_required():
            from worker.renditions.thumbnails import thumbnails
    except ConfigurationError:
        return _small_file(file)
    (data,) = thumbnails(settings, [file], (width, 2 * width))
    return (data, "image/webp") if data else None


def check_pixels(settings: Settings, data: bytes, name: str) -> None:
    """Raise UnreadablePoster for an image of too many pixels, by its header; not where the engine is not installed."""
    try:
        with engine_required():
            from worker.renditions.thumbnails import check_header
    except ConfigurationError:
        return
    check_header(settings, data, name)


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
