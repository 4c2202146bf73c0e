"""A lease has one holder; another takes over when it is released or expires."""

import time

from producer.queue.keys import card_key
from producer.queue.locks import Lease

KEY = card_key("GPU-6a1e")


def test_one_holder_at_a_time(ledger):
    """The second learns who holds it, and acquires it when the first releases it."""
    first, second = Lease(ledger, KEY, "a/1", 30), Lease(ledger, KEY, "b/2", 30)
    assert first.acquire() is None
    assert second.acquire() == "a/1"
    second.release()
    assert second.acquire() == "a/1", "nobody lets go of what is another's"
    assert (first.is_held, second.is_held) == (True, False)
    first.release()
    assert second.acquire() is None
    assert first.acquire() == "b/2"
    assert (first.is_held, second.is_held) == (False, True)


def test_the_child_that_follows_a_dead_one_need_not_wait(ledger):
    """It has its parent's name, as the dead one had."""
    assert Lease(ledger, KEY, "a/1", 30).acquire() is None
    assert Lease(ledger, KEY, "a/1", 30).acquire() is None


def test_who_falls_silent_loses_it(ledger):
    """And who renews it keeps it."""
    first, second = Lease(ledger, KEY, "a/1", 0.4), Lease(ledger, KEY, "b/2", 0.4)
    first.acquire()
    for _ in range(4):
        time.sleep(0.2)
        assert first.acquire() is None
        assert second.acquire() == "a/1"
    time.sleep(0.6)
    assert not first.is_held, "as far as it knows without asking"
    assert second.acquire() is None
