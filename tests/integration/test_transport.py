"""kombu's Redis transport as the worker uses it: what it has taken it can let go of, whatever Redis does."""

import pytest
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from worker.broker.transport import Client
from worker.celery import TRANSPORT_NAME


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
    monkeypatch.setitem(TRANSPORT_ALIASES, TRANSPORT_NAME, "worker.broker.transport:Transport")
    with Connection(redis_url.replace("redis://", f"{TRANSPORT_NAME}://")) as connection:
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


def test_the_door_is_on_our_lanes_alone(redis_url, redis_server):
    """What Celery sends itself, an answer to `inspect ping` for example, is none of its business."""
    client = Client.from_url(redis_url)
    with redis_server.client as admin:
        admin.lpush("some.reply.celery.pidbox", "anything")
    connection = client.connection_pool.get_connection()
    connection.send_command("BRPOP", "some.reply.celery.pidbox", 1)
    assert list(client.parse_response(connection, "BRPOP")) == [b"some.reply.celery.pidbox", b"anything"]
    client.connection_pool.release(connection)
    client.close()
