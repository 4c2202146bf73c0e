"""Timings: which of decoding, device and store limited a batch, and by how much."""

import pytest

from worker.pipeline.timings import Timings


@pytest.mark.parametrize(
    ("timings", "bottleneck"),
    [
        (Timings(10, 1.7, 8.2, 0.1, 100), "decode-bound: 83 % of the time the model waited for images"),
        (Timings(10, 9.3, 0.5, 0.1, 100), "device-bound: the model worked 93 % of the time"),
        (Timings(10, 2.0, 0.5, 7.3, 100), "store-bound: 80 % of the time the model waited for the store"),
        (Timings(10, 5.0, 0.5, 0.5, 100), "no single bottleneck: the model worked 50 % of the time"),
        (Timings(10, 11.0, 0.0, 0.0, 100), "device-bound: the model worked 100 % of the time"),
        (Timings(1, 0.0, 0.9, 0.0, 0), ""),
        (Timings(), ""),
    ],
)
def test_the_bottleneck_is_named(timings, bottleneck):
    """Time in which the device works does not count as waiting for images."""
    assert timings.bottleneck() == bottleneck


def test_what_requests_had_of_the_device_is_said():
    """In the batch's line of the log, and as a number."""
    assert (Timings(10, 6, images=9).sharing(), Timings(10, 6, images=9).share()) == ("", 1)
    timings = Timings(10, 6, images=9, for_requests=2)
    assert timings.share() == 0.75
    assert timings.summary().endswith("; requests had 25 % of the device's time, 2.00 s")


def test_older_batches_fade():
    """After some batches of another kind, the bottleneck is theirs."""
    recent = Timings(100, 95, 1, 0, 1000)
    for _ in range(20):
        recent = recent.followed_by(Timings(10, 1, 8.9, 0, 100), keep=0.8)
    assert recent.bottleneck().startswith("decode-bound")
    assert Timings(1, 2, 3, 4, 5, 6).followed_by(Timings(1, 1, 1, 1, 1, 1)) == Timings(2, 3, 4, 5, 6, 7)
