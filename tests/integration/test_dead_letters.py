"""The quarantine: what was put aside can be read, and is counted."""

import json

import pytest

from producer.queue.dead_letters import SHOWN_CHARACTERS, Quarantine
from producer.queue.jobs import Ledger
from producer.queue.keys import QUARANTINE, QUARANTINED_MOST


@pytest.fixture
def quarantine(redis_url):
    ledger = Ledger(redis_url)
    yield Quarantine(ledger)
    ledger.close()


def test_message_and_reason_are_kept(quarantine, redis_server):
    """The newest reason is told; a long message is kept by its beginning and its length."""
    assert (quarantine.count(), quarantine.newest_reason()) == (0, "")
    quarantine.put("odd", "no batch")
    quarantine.put("x" * 50_000, "too large")
    assert (quarantine.count(), quarantine.newest_reason()) == (2, "too large")
    with redis_server.client as client:
        newest, oldest = (json.loads(text) for text in client.lrange(QUARANTINE, 0, -1))
    assert (oldest["message"], oldest["reason"], oldest["characters"]) == ("odd", "no batch", 3)
    assert (len(newest["message"]), newest["characters"]) == (SHOWN_CHARACTERS, 50_000)


def test_what_comes_again_and_again_is_put_aside_once(quarantine):
    """A batch of a newer version is sent until somebody can read it."""
    for _ in range(3):
        quarantine.put("v2", "newer", once="job.1")
    quarantine.put("v2", "newer", once="job.2")
    assert quarantine.count() == 2


def test_it_does_not_fill_redis(quarantine):
    """The newest QUARANTINED_MOST are kept."""
    for number in range(QUARANTINED_MOST + 5):
        quarantine.put(str(number), "flood")
    assert quarantine.count() == QUARANTINED_MOST
