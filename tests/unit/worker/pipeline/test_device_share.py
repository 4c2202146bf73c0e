"""DeviceShare: a batch keeps half of the device, and leaves to requests what it does not use."""

import threading

import pytest

from worker.pipeline.device_share import CREDIT_S, DeviceShare


@pytest.fixture
def share(clock):
    return DeviceShare(clock)


def test_requests_go_at_once_beside_an_idle_batch(share, clock):
    """Without a batch, and while it waits for its decoders or the store, whatever was spent on requests."""
    share.answered(9)
    assert share.wait_for_turn(0)
    with share.batch():
        share.answered(9)
        clock.now += 1
        assert share.wait_for_turn(0)
        share.submitted()
        assert not share.wait_for_turn(0)
        share.fetched()
        assert share.wait_for_turn(0)


def test_a_batch_gets_as_much_as_requests(share, clock):
    """Under requests without end, each of which takes the device for as long as it is counted."""
    with share.batch():
        share.submitted()
        while clock.now < 100:
            if share.wait_for_turn(0):
                clock.now += 0.3
                share.answered(0.3)
            else:
                clock.now += 0.1
        share.fetched()
    batch_s = clock.now - share.requests_s
    assert batch_s - 0.2 <= share.requests_s <= batch_s + CREDIT_S + 0.3


def test_requests_do_not_wait_for_the_end_of_a_chunk(share, clock):
    """On a CPU it takes seconds: their turn comes when the batch has had the device for as long as they had."""
    with share.batch():
        share.submitted()
        share.answered(1)
        waits = [not share.wait_for_turn(0) for clock.now in (0.5, 1.0, 1.9, 2.0)]
    assert waits == [True, True, True, False]


def test_requests_that_come_late_may_catch_up_a_little(share, clock):
    """Not by all that the batch had alone."""
    with share.batch():
        share.submitted()
        clock.now += 100
        while share.wait_for_turn(0):
            share.answered(0.1)
        assert share.requests_s <= CREDIT_S + 0.11


def test_waiting_requests_are_woken():
    """When their turn comes, by a chunk that ends, and by the end of the batch."""
    for end in ("turn", "chunk", "batch"):
        share = DeviceShare()
        with share.batch():
            share.submitted()
            share.answered(0.1 if end == "turn" else 10)
            waiting = threading.Thread(target=share.wait_for_turn, args=(20,))
            waiting.start()
            if end == "chunk":
                share.fetched()
            if end != "batch":
                waiting.join(5)
                assert not waiting.is_alive(), end
        waiting.join(5)
        assert not waiting.is_alive(), end
