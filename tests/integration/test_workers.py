"""Announcements: who falls silent is not alive."""

import pytest

from producer.queue.workers import FAILED, LOADING, READY, WAITING, Announcements


@pytest.fixture
def announcements(redis_url):
    announcements = Announcements(redis_url)
    yield announcements
    announcements.close()


def test_workers_of_one_name_do_not_speak_for_each_other(announcements):
    """Two on one machine, or in two containers that are both process 1: a word of one is not the other's."""
    announcements.say("w@h/1/aa", READY, {"space": "s"})
    announcements.say("w@h/1/bb", WAITING, {})
    assert [(worker.name, worker.state) for worker in announcements.everybody()] == [("w@h", READY), ("w@h", WAITING)]
    assert announcements.of("w@h/1/aa").get("space") == "s"
    assert announcements.hear("w@h").state == WAITING, "who spoke last"
    announcements.withdraw("w@h/1/bb")
    assert announcements.hear("w@h").state == READY
    assert announcements.of("w@h/1/bb") is announcements.hear("h") is None


def test_a_failure_is_past_as_soon_as_the_worker_was_started_anew(announcements):
    """Or whoever asks would hear for a quarter of a minute of what was mended."""
    announcements.say("w@h/1/aa", FAILED, {"reason": "no weights"})
    announcements.say("v@h/2/cc", FAILED, {})
    assert len(announcements.everybody()) == 2
    announcements.say("w@h/3/bb", LOADING, {})
    assert [(worker.owner, worker.state) for worker in announcements.everybody()] == [
        ("v@h/2/cc", FAILED),
        ("w@h/3/bb", LOADING),
    ]


def test_announcements_expire_and_are_withdrawn(redis_url, redis_server):
    """Who falls silent is not alive; who says goodbye is not, either."""
    announcements = Announcements(redis_url)
    announcements.say("a", READY, {"model": "ViT-B-32"})
    announcements.say("b", LOADING, {})
    assert [(worker.name, worker.state) for worker in announcements.everybody()] == [("a", READY), ("b", LOADING)]
    assert announcements.hear("a").get("model") == "ViT-B-32"
    assert announcements.hear("a").get("device") == ""
    with redis_server.client as client:
        assert 0 < client.ttl("posters:worker:a") <= 15
        client.delete("posters:worker:b")  # as its expiry does
    assert [worker.name for worker in announcements.everybody()] == ["a"]
    announcements.withdraw("a")
    assert announcements.everybody() == []
    announcements.close()
