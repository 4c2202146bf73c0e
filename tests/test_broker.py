"""kombu's Redis transport as the worker uses it: what it has taken it can let go of, whatever Redis does."""

import pytest
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from worker.celery import DOOR


@pytest.mark.parametrize(
    "let_go",
    [
        lambda qos: qos.ack("tag"),
        lambda qos: qos.reject("tag"),
        lambda qos: qos.reject("tag", requeue=True),
    ],
    ids=["ack", "reject", "requeue"],
)
def test_a_message_that_cannot_be_acknowledged_keeps_no_place(redis_url, monkeypatch, let_go):
    """Redis hangs for longer than the timeout: with one message at a time, no other would ever be taken."""
    monkeypatch.setitem(TRANSPORT_ALIASES, DOOR, "worker.broker:Transport")
    with Connection(redis_url.replace("redis://", f"{DOOR}://")) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        qos = channel.qos
        qos._delivered["tag"] = object()
        assert not qos.can_consume()

        def hang(*_, **__):
            raise TimeoutError("Timeout reading from socket")

        monkeypatch.setattr(qos, "_remove_from_indices", hang)
        monkeypatch.setattr(qos, "restore_by_tag", hang)
        with pytest.raises(TimeoutError):
            let_go(qos)
        assert qos.can_consume()
        qos._delivered.clear()  # it never was in Redis; closing would put it back
        qos._dirty.clear()
