"""Notice when a device that was fast is slow for a while, which nothing else would tell."""

from __future__ import annotations

from typing import Final

COLLAPSED: Final = 4  # times slower than before; a card that is hot or shared loses half
CHUNKS_SLOW: Final = 8  # one after the other, so that a single hitch says nothing
CHUNKS_BEFORE: Final = 8  # that have to be known before anything can be called slow


class Pace:
    """Watches the images per second of the device, chunk by chunk."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._usual = 0.0  # images per second when things are well: falls slowly, rises at once
        self._known = self._slow = 0
        self._warned = False

    def note(self, images: int, seconds: float) -> str | None:
        """Take a chunk into account; a sentence when the pace has just collapsed, or come back."""
        if seconds <= 0:
            return None
        rate = images / seconds
        if self._known < CHUNKS_BEFORE or rate * COLLAPSED >= self._usual:
            self._known += 1
            self._slow = 0
            self._usual = max(rate, 0.98 * self._usual)
            if self._warned:
                self._warned = False
                return f"the device is back at {rate:.0f} images/s"
            return None
        self._slow += 1
        if self._slow < CHUNKS_SLOW or self._warned:
            return None
        self._warned = True
        return (
            f"the device has slowed down to {rate:.0f} images/s, from {self._usual:.0f}: another program uses it, or "
            "(on Windows) the driver has moved its memory into the system's. Then set POSTERS_GPU_MEMORY_FRACTION "
            "lower, for example 0.7, or POSTERS_BATCH_SIZE"
        )
