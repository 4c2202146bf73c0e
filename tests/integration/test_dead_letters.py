"""Dead letters: rejected messages are kept, can be read, and are counted."""

import json

import pytest

from producer.queue.dead_letters import SHOWN_CHARACTERS, DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.keys import DEAD_LETTERS, MAX_DEAD_LETTERS


@pytest.fixture
def dead_letters(redis_url):
    ledger = JobStore(redis_url)
    yield DeadLetters(ledger)
    ledger.close()


def test_message_and_reason_are_kept(dead_letters, redis_server):
    """The newest reason is returned; of a long message, the beginning and the length are kept."""
    assert (dead_letters.count(), dead_letters.newest_reason()) == (0, "")
    dead_letters.put("odd", "no batch")
    dead_letters.put("x" * 50_000, "too large")
    assert (dead_letters.count(), dead_letters.newest_reason()) == (2, "too large")
    with redis_server.client as client:
        newest, oldest = (json.loads(text) for text in client.lrange(DEAD_LETTERS, 0, -1))
    assert (oldest["message"], oldest["reason"], oldest["characters"]) == ("odd", "no batch", 3)
    assert (len(newest["message"]), newest["characters"]) == (SHOWN_CHARACTERS, 50_000)


def test_what_comes_again_and_again_is_put_aside_once(dead_letters):
    """A batch of a newer version is sent until somebody can read it."""
    for _ in range(3):
        dead_letters.put("v2", "newer", once="job.1")
    dead_letters.put("v2", "newer", once="job.2")
    assert dead_letters.count() == 2


def test_it_does_not_fill_redis(dead_letters):
    """The newest QUARANTINED_MOST are kept."""
    for number in range(MAX_DEAD_LETTERS + 5):
        dead_letters.put(str(number), "flood")
    assert dead_letters.count() == MAX_DEAD_LETTERS
