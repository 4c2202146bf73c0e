"""What a caller may give as an image, turned into the bytes of an image file."""

from __future__ import annotations

import inspect
import io
import os
from typing import Any, Final

from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.requests.codec import MAX_IMAGE_BYTES

PNG_MODES: Final = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))  # of Pillow; TIFF holds the others


def image_bytes(image: object, name: str) -> tuple[bytes, str]:
    """The bytes of an image file, and what errors call it: `name`, or else its path.

    Args:
        image: bytes; a pathlib.Path; a binary file, which is read from its beginning; or a Pillow image, which is
            encoded without loss.
        name: empty: the path, or "the image".

    Raises:
        TypeError: it is something else.
        UnreadablePoster: the file cannot be read; or the Pillow image cannot be encoded.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), name or "the image"
    if isinstance(image, os.PathLike):
        name = name or str(os.fspath(image))
        return read_file(image, max_bytes=MAX_IMAGE_BYTES).data, name
    if all(hasattr(image, attribute) for attribute in ("mode", "getexif", "save")):
        return _encoded(image, name or "the image"), name or "the image"
    if callable(read := getattr(image, "read", None)) and not inspect.iscoroutinefunction(read):
        if getattr(image, "seekable", lambda: False)():
            image.seek(0)  # type: ignore[attr-defined]
        data = read(MAX_IMAGE_BYTES + 1)
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data), name or "the image"
    hint = f" {image[:40]!r}; a path must be a pathlib.Path" if isinstance(image, str) else ""
    hint = "; of an upload, pass .file or the bytes" if hasattr(image, "file") else hint
    raise TypeError(
        f"an image must be bytes, a pathlib.Path, a binary file or a Pillow image, not {type(image).__name__}{hint}"
    )


def _encoded(image: Any, name: str) -> bytes:
    """A Pillow image as a file with the same pixels, orientation and profile."""
    file = io.BytesIO()
    try:
        if image.mode in PNG_MODES:
            image.save(file, "PNG", compress_level=1, exif=image.getexif())
        else:
            image.save(file, "TIFF", exif=image.getexif())
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadablePoster(
            name, "unreadable", f"this image of mode {image.mode} cannot be encoded: {error}"
        ) from error
    return file.getvalue()
