"""Announcements: who falls silent is not alive."""

from worker.announcement import LOADING, READY, Announcements


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
