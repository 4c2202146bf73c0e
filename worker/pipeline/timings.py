"""Timings of a batch, and the bottleneck that they show."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

DEVICE_BOUND_SHARE: Final = 0.85  # of the time; a device this busy is the bottleneck


@dataclass
class Timings:
    """Seconds, measured in the thread that drives the device, and the number of images."""

    total: float = 0.0  # from the first poster to the last row in the store
    on_device: float = 0.0  # the device was working
    waiting_for_decode: float = 0.0  # no decoded chunk was ready; the device may have been working meanwhile
    waiting_for_store: float = 0.0  # the store had not written earlier chunks yet
    images: float = 0.0  # embedded; a float, because `followed_by` weights it
    for_requests: float = 0.0  # seconds in which the device was working for requests, beside the batch

    def followed_by(self, other: Timings, keep: float = 1.0) -> Timings:
        """The sum of both, this one weighted with `keep`: below 1, older batches fade."""
        sums = {one.name: keep * getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        return Timings(**sums)

    def summary(self) -> str:
        """The timings and the bottleneck, for a log."""
        timings = (
            f"{self.on_device:.2f} s on the device, waited {self.waiting_for_decode:.2f} s for decoding, "
            f"{self.waiting_for_store:.2f} s for the store"
        )
        return "; ".join(filter(None, (timings, self.bottleneck(), self.sharing())))

    def entry(self) -> dict[str, float | str]:
        """The same as fields, for a log that a program reads."""
        return {
            "device_s": round(self.on_device, 3),
            "waiting_for_decode_s": round(self.waiting_for_decode, 3),
            "waiting_for_store_s": round(self.waiting_for_store, 3),
            "requests_s": round(self.for_requests, 3),
            "bottleneck": self.bottleneck(),
        }

    def share(self) -> float:
        """The part of the device's working time that was the batch's, and not that of requests; 1 without any."""
        return self.on_device / (self.on_device + self.for_requests) if self.for_requests else 1.0

    def sharing(self) -> str:
        """How requests shared the device; empty without any."""
        if not self.for_requests:
            return ""
        return f"requests had {100 * (1 - self.share()):.0f} % of the device's time, {self.for_requests:.2f} s"

    def bottleneck(self) -> str:
        """What limited the throughput, with its share of the time; empty if nothing was embedded."""
        if self.total <= 0 or self.images <= 0:
            return ""
        busy = min(1.0, self.on_device / self.total)
        if busy >= DEVICE_BOUND_SHARE:
            return f"device-bound: the model worked {100 * busy:.0f} % of the time"
        idle = 1 - busy
        if max(self.waiting_for_decode, self.waiting_for_store) < idle * self.total / 2:
            return f"no single bottleneck: the model worked {100 * busy:.0f} % of the time"
        if self.waiting_for_store > self.waiting_for_decode:
            return f"store-bound: {100 * idle:.0f} % of the time the model waited for the store"
        return f"decode-bound: {100 * idle:.0f} % of the time the model waited for images"
