"""The extended Redis transport: a failed acknowledgement does not block the worker; other queues are not validated."""

import pytest
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from worker.broker.transport import Client
from worker.celery import TRANSPORT_NAME


@pytest.mark.parametrize(
    "settle",
    [
        lambda qos: qos.ack("tag"),
        lambda qos: qos.reject("tag"),
        lambda qos: qos.reject("tag", requeue=True),
    ],
    ids=["ack", "reject", "requeue"],
)
def test_a_failed_acknowledgement_does_not_block_the_next_message(redis_url, monkeypatch, settle):
    """With a prefetch count of one, kombu's own QoS would never fetch a message again after a time-out."""
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
            settle(qos)
        assert qos.can_consume()
        qos._delivered.clear()  # it was never in Redis; closing would restore it
        qos._dirty.clear()


def test_only_our_lanes_are_validated(redis_url, redis_server):
    """What Celery sends itself passes, a reply to `inspect ping` for example."""
    client = Client.from_url(redis_url)
    with redis_server.client as admin:
        admin.lpush("some.reply.celery.pidbox", "anything")
    connection = client.connection_pool.get_connection()
    connection.send_command("BRPOP", "some.reply.celery.pidbox", 1)
    assert list(client.parse_response(connection, "BRPOP")) == [b"some.reply.celery.pidbox", b"anything"]
    client.connection_pool.release(connection)
    client.close()
