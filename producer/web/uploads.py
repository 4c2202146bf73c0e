"""Uploaded posters: checked, under a safe name, written whole or not at all, never over another file."""

from __future__ import annotations

import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fastapi import UploadFile

from producer.collection.image_formats import EXTENSIONS, EXTENSIONS_OF, media_type
from producer.collection.paths import excluded_names, resolved_root
from producer.errors import UnreadablePoster
from producer.files import WINDOWS_DEVICE
from producer.output import printable
from producer.report.thumbnails import check_pixels
from producer.requests.codec import MAX_IMAGE_BYTES
from producer.settings import Settings
from producer.web.problems import invalid

FOLDER: Final = "uploads"  # below the posters root
NAME_BYTES: Final = 180  # every file system takes 255, and the temporary name is longer
# What no file system of ours takes, or a shell, a page or a list of names would read as something else.
_UNSAFE: Final = re.compile(r'[\x00-\x1f\x7f-\x9f"*:<>?|/\\\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]')


def image_of(settings: Settings, upload: UploadFile) -> bytes:
    """The bytes of an uploaded image, within the limits, whatever its name and its declared type say.

    Raises:
        UnreadablePoster: too many bytes or pixels, or no image that workers read.
    """
    name, most = printable(upload.filename or "the image"), min(MAX_IMAGE_BYTES, settings.max_file_bytes)
    data = upload.file.read(most + 1)
    if len(data) > most:
        raise UnreadablePoster(name, "too-large", f"it has more than {most:,} bytes")
    check_image(settings, data, name)
    return data


def check_image(settings: Settings, data: bytes, name: str) -> None:
    """Raise UnreadablePoster for what is no image that workers read, or has too many pixels."""
    if media_type(data) is None:
        raise UnreadablePoster(name, "unsupported", "it is no JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF, HEIC or JPEG XL")
    check_pixels(settings, data, name)


def save(settings: Settings, uploads: Sequence[UploadFile]) -> list[tuple[Path, bool]]:
    """Write all the images into the folder `uploads` of the posters root, or none; their paths, and which are new.

    A file of the same name and bytes is left as it is; one of other bytes keeps its name, and the new one gets another.

    Raises:
        UnreadablePoster: one of them is no image, or too large.
        Problem: they cannot be written.
    """
    root = resolved_root(settings.root)
    saved: list[tuple[Path, bool]] = []
    try:
        folder = root / FOLDER
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise invalid(f"{folder} is a symbolic link", "Remove it from the posters root.")
        for upload in uploads:
            data = image_of(settings, upload)
            for name in _names(upload.filename or "", data, settings):
                path = folder / name
                if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                    saved.append((path, False))
                    break
                if _write_new(path, data):
                    saved.append((path, True))
                    break
    except BaseException:
        remove(path for path, is_new in saved if is_new)
        raise
    return saved


def remove(paths: Iterable[Path]) -> None:
    """Remove files that were written a moment ago."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def safe_name(name: str, data: bytes) -> str:
    """A file name for an image uploaded as `name`: its last part, without unsafe characters, with the right suffix.

    Args:
        name: as the browser sent it; may be a path, and may hold anything.
        data: the image, whose kind decides about the suffix.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    last = _UNSAFE.sub("_", last).strip(" .")
    stem, dot, suffix = last.rpartition(".")
    suffix = f".{suffix.lower()}" if dot else ""
    known = EXTENSIONS_OF[media_type(data) or "image/jpeg"]
    if suffix not in known:
        stem, suffix = (stem if suffix in EXTENSIONS else last), known[0]
    while len(stem.encode()) > NAME_BYTES:
        stem = stem[:-1]
    stem = stem.strip(" .") or "poster"
    return f"_{stem}{suffix}" if WINDOWS_DEVICE.match(stem) or stem.startswith("-") else f"{stem}{suffix}"


def _names(name: str, data: bytes, settings: Settings) -> Iterator[str]:
    """The safe name, then the same with a number; UnreadablePoster for one that a scan would skip."""
    safe = safe_name(name, data)
    if excluded_names(settings.exclude)(safe):
        raise UnreadablePoster(safe, "unsupported", "POSTERS_EXCLUDE leaves out files of that name")
    stem, _, suffix = safe.rpartition(".")
    yield safe
    for number in range(2, 10_000):
        yield f"{stem}-{number}.{suffix}"
    raise invalid(f"there are too many files called {safe}", "Give it another name.")


def _write_new(path: Path, data: bytes) -> bool:
    """Write a file that is there with all of its bytes, or not at all; False where there is one of that name."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # hidden: no scan finds it
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            os.rename(partial, path)
        return True
    finally:
        with suppress(OSError):
            partial.unlink()
