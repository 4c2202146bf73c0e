"""Pillow's global settings while this project decodes, whatever the host program has set."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageFile

_lock = threading.Lock()
_users = 0  # threads that are decoding
_before: tuple[bool, int | None] = (False, None)  # the host program's values
_filter: Any = None  # the entry of warnings.filters that this module added


@contextmanager
def own_pillow_defaults() -> Iterator[None]:
    """While the block runs in any thread: truncated files are errors, no limit but ours, no warning is an error.

    Pillow has these settings per process, not per call. With LOAD_TRUNCATED_IMAGES set, the missing part of a
    truncated poster would be gray, and its vector wrong. Afterwards the host program has its own values again.
    """
    global _users
    with _lock:
        if not _users:
            _set()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _restore()


def _set() -> None:
    global _before, _filter
    _before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None  # decode() checks POSTERS_MAX_PIXELS
    # not catch_warnings, which would put back a list of filters that another thread may have changed meanwhile
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _filter = warnings.filters[0]


def _restore() -> None:
    if not ImageFile.LOAD_TRUNCATED_IMAGES:  # else the host program has set it meanwhile
        ImageFile.LOAD_TRUNCATED_IMAGES = _before[0]
    if Image.MAX_IMAGE_PIXELS is None:
        Image.MAX_IMAGE_PIXELS = _before[1]
    if _filter in warnings.filters:
        warnings.filters.remove(_filter)  # type: ignore[attr-defined]
