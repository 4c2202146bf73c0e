"""The extended Redis transport: a failed acknowledgement does not block the worker; other queues are not validated."""

import json
from contextlib import contextmanager
from unittest.mock import ANY

import pytest
from kombu import Connection, Consumer
from kombu.transport import TRANSPORT_ALIASES

from producer.queue.messages import BULK, INTERACTIVE, QUEUES, BatchMessage
from producer.queue.sender import create_sender, message_settings, send, transport_options
from producer.settings import load_settings
from tests.support.installation import quiet_now
from worker.broker import transport
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


@contextmanager
def consumer(redis_url, received):
    """Our transport, as Celery consumes from it; appends what it is given to `received`."""
    options = transport_options(load_settings(redis_url=redis_url), 5)
    with Connection(redis_url.replace("redis://", f"{TRANSPORT_NAME}://"), transport_options=options) as connection:
        queues = message_settings()["task_queues"]
        with Consumer(connection, queues, on_message=received.append, accept=["json"]):
            yield connection


def test_a_rebuilt_message_is_acknowledged_and_returned_by_kombu(redis_url, redis_server, monkeypatch):
    """Also two elements that share a delivery tag: an acknowledgement concerns one of them."""
    monkeypatch.setitem(TRANSPORT_ALIASES, TRANSPORT_NAME, "worker.broker.transport:Transport")
    monkeypatch.setattr(transport, "_settings", lambda: load_settings(redis_url=redis_url))
    transport._dead_letters.cache_clear()
    with create_sender(load_settings(redis_url=redis_url)) as app, redis_server.client as client:
        send(app, BatchMessage("job", "job.1"))
        client.lpush(QUEUES[BULK], client.lindex(QUEUES[BULK], 0), "no JSON")
        received = []
        with consumer(redis_url, received) as connection:
            while len(received) < 2:
                connection.drain_events(timeout=5)
            one, two = received
            assert one.payload == two.payload == [[BatchMessage("job", "job.1").encode()], {}, ANY]
            assert client.hlen("unacked") == 2
            one.ack()
            assert client.hkeys("unacked") == [two.delivery_tag]
            two.requeue()
            assert not client.exists("unacked")
            while len(received) < 3:
                connection.drain_events(timeout=5)
        assert client.llen("posters:quarantine") == 1
        (element,) = client.lrange(QUEUES[BULK], 0, -1)  # returned when the connection was closed
        assert json.loads(element)["headers"]["id"] == "job.1"
    transport._dead_letters()._redis.close()
    transport._dead_letters.cache_clear()


def test_in_quiet_hours_the_bulk_lane_keeps_its_messages(redis_url, redis_server, monkeypatch):
    """What came on the other lane is received, although it came later; the rest when they are over."""
    monkeypatch.setitem(TRANSPORT_ALIASES, TRANSPORT_NAME, "worker.broker.transport:Transport")
    hours = [quiet_now()]
    monkeypatch.setattr(transport, "_settings", lambda: load_settings(redis_url=redis_url, quiet_hours=hours[0]))
    with create_sender(load_settings(redis_url=redis_url)) as app, redis_server.client as client:
        for number, lane in enumerate((BULK, INTERACTIVE), 1):
            send(app, BatchMessage("job", f"job.{number}", lane))
        received = []
        with consumer(redis_url, received) as connection:
            connection.drain_events(timeout=5)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=1.5)
            assert [message.headers["id"] for message in received] == ["job.2"]
            assert client.llen(QUEUES[BULK]) == 1
            hours[0] = None
            connection.drain_events(timeout=5)
            assert [message.headers["id"] for message in received] == ["job.2", "job.1"]
            for message in received:
                message.ack()


def test_only_our_lanes_are_validated(redis_url, redis_server):
    """What Celery sends itself would pass."""
    client = Client.from_url(redis_url)
    with redis_server.client as admin:
        admin.lpush("posters:no-lane", "anything")
    connection = client.connection_pool.get_connection()
    connection.send_command("BRPOP", "posters:no-lane", 1)
    assert list(client.parse_response(connection, "BRPOP")) == [b"posters:no-lane", b"anything"]
    client.connection_pool.release(connection)
    client.close()
