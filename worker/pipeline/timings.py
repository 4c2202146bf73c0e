"""Where the seconds of a batch went, and what that means in words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

BUSY: Final = 0.85  # of the time; a device that works so much has no time to wait for anybody


@dataclass
class Timings:
    """Seconds, as seen by the thread that drives the device.

    Attributes:
        total: from the first poster to the last row in the store.
        on_device: the device was working.
        waiting_for_decode: the thread had no decoded chunk; the device may have been working meanwhile.
        waiting_for_store: the store had not taken the chunks before yet.
        images: embedded.
    """

    total: float = 0.0
    on_device: float = 0.0
    waiting_for_decode: float = 0.0
    waiting_for_store: float = 0.0
    images: float = 0.0  # a fading sum of whole numbers is none

    def followed_by(self, other: Timings, keep: float = 1.0) -> Timings:
        """Both together; `keep` below 1 lets what lies back fade."""
        sums = {one.name: keep * getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        return Timings(**sums)

    def summary(self) -> str:
        """Where the seconds went, for a log."""
        spent = (
            f"{self.on_device:.2f} s on the device, waited {self.waiting_for_decode:.2f} s for decoding, "
            f"{self.waiting_for_store:.2f} s for the store"
        )
        return "; ".join(filter(None, (spent, self.bottleneck())))

    def bottleneck(self) -> str:
        """What held the batch up, with its share of the time; empty where nothing was embedded."""
        if self.total <= 0 or self.images <= 0:
            return ""
        busy = min(1.0, self.on_device / self.total)
        if busy >= BUSY:
            return f"device-bound: the model worked {100 * busy:.0f} % of the time"
        idle = 1 - busy
        if max(self.waiting_for_decode, self.waiting_for_store) < idle * self.total / 2:
            return f"bound by no one thing: the model worked {100 * busy:.0f} % of the time"
        if self.waiting_for_store > self.waiting_for_decode:
            return f"store-bound: {100 * idle:.0f} % of the time the model waited for the store"
        return f"decode-bound: {100 * idle:.0f} % of the time the model waited for images"
