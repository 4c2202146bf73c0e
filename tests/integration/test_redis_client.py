"""How Redis is reached: with user, password and TLS, with bounded waiting, and with errors that hide secrets."""

import contextlib
import socket
import threading
import time

import pytest
from redis.exceptions import WatchError

from producer.errors import ConfigurationError, RedisUnreachable
from producer.queue.sender import create_sender
from producer.redis_client import broker, connect, retry_until_available
from producer.settings import load_settings, without_password
from worker.celery import create_app


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h/0", "redis://h/0"),
        ("redis://:p%40x@h:1/0", "redis://:***@h:1/0"),
        ("redis://me:a@b@h/0", "redis://me:***@h/0"),
        (
            "rediss://h/0?username=me&password=x&ssl_password=y",
            "rediss://h/0?username=me&password=***&ssl_password=***",
        ),
        ("redis://h/0?%70assword=x", "redis://h/0?%70assword=***"),
        ("unix://me:x@/run/redis.sock?db=1", "unix://me:***@/run/redis.sock?db=1"),
        ("sqlite:data/pass.db", "sqlite:data/pass.db"),
    ],
)
def test_a_password_is_shown_nowhere(url, shown):
    """Neither before the host nor among the options, however it is written."""
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("url", "address", "ssl"),
    [
        ("redis://h", "redis://h:6379/0", None),
        ("redis://h:1/2", "redis://h:1/2", None),
        ("redis://me:p%40%2Fx@h/0", "redis://me:p%40%2Fx@h:6379/0", None),
        ("redis://:secret@h/0", "redis://:secret@h:6379/0", None),
        ("redis://h/0?username=me&password=x&db=3", "redis://me:x@h:6379/3", None),
        ("redis://[::1]:7/0", "redis://[::1]:7/0", None),
        ("unix:///run/redis.sock?db=4", "redis+socket:///run/redis.sock?virtual_host=4", None),
        ("rediss://h/1", "redis://h:6379/1", {"ssl_cert_reqs": "required"}),
        (
            "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=optional",
            "redis://h:6379/0",
            {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False, "ssl_cert_reqs": "optional"},
        ),
    ],
)
def test_kombu_connects_to_the_same_redis(url, address, ssl):
    """User, password, database and TLS; a certificate is checked unless the URL says otherwise."""
    assert broker(url, "redis") == (address, ssl)


def test_a_workers_transport_has_a_name_of_its_own():
    """So that another program in the same process keeps kombu's."""
    assert broker("redis://h/0", "posters-redis") == ("posters-redis://h:6379/0", None)


@pytest.mark.parametrize("url", ["redis://h/0?color=blue", "redis://h/0?db=many"])
def test_a_url_that_cannot_be_used_is_an_error_at_once(url):
    """Not a TypeError at the first command."""
    with pytest.raises(ConfigurationError, match=r"redis://h/0"):
        connect(url)


@pytest.fixture
def nobody():
    """A client of a port on which no Redis listens."""
    with connect("redis://:secret@127.0.0.1:1/0") as client:
        yield client


def test_every_way_to_redis_raises_our_error(nobody):
    """Commands, scripts and pipelines; the text names the Redis, without its password."""
    pipeline = nobody.pipeline()
    pipeline.set("k", "v")
    for call in (nobody.ping, nobody.register_script("return 1"), pipeline.execute):
        with pytest.raises(RedisUnreachable, match=r"redis://:\*\*\*@127.0.0.1:1/0 does not answer"):
            call()


def test_what_redis_refuses_says_what_to_do(redis_server, redis_url):
    """A wrong password, and a command that the account may not use."""
    wrong = f"redis://posters:wrong@127.0.0.1:{redis_server.port}/0"
    with connect(wrong) as client, pytest.raises(RedisUnreachable, match="refuses the user or password"):
        client.ping()
    with connect(redis_url) as client, pytest.raises(RedisUnreachable, match=r"forbids a command.*redis\.acl"):
        client.config_get("*")


def test_scripts_and_transactions_work(redis_server, redis_url):
    """A script that Redis forgot is loaded again, also by a client that waits; a lost WATCH stays a WatchError."""
    stop = threading.Event()
    with connect(redis_url) as client, redis_server.client as other:
        for each in (client, client.waiting(lambda error: pytest.fail(str(error)), stop)):
            script = each.register_script("return redis.call('EXISTS', KEYS[1]) + 1")
            assert script(["posters:jobs"])
            other.script_flush()
            assert script(["posters:jobs"])
        with connect(f"redis://127.0.0.1:{redis_server.port}/0").pipeline() as pipeline:
            pipeline.watch("posters:jobs")
            other.set("posters:jobs", "1")
            pipeline.multi()
            pipeline.get("posters:jobs")
            with pytest.raises(WatchError):
                pipeline.execute()


def test_a_waiting_client_waits_until_it_is_stopped(nobody):
    """It reports an outage once, and raises what was wrong as soon as `stop` is set."""
    errors, stop = [], threading.Event()
    began = time.monotonic()
    threading.Timer(1.5, stop.set).start()
    with pytest.raises(RedisUnreachable):
        nobody.waiting(errors.append, stop).ping()
    assert 1.5 <= time.monotonic() - began < 4
    assert len(errors) == 1


def test_a_call_is_repeated_until_redis_answers(monkeypatch):
    """And every failed try is reported; without somebody to report to, the first one is raised."""
    monkeypatch.setattr("producer.redis_client.RETRY_S", 0.01)
    answers, errors = [RedisUnreachable("one"), RedisUnreachable("two"), None], []

    def call():
        if error := answers.pop(0):
            raise error
        return "answer"

    assert retry_until_available(call, errors.append) == "answer"
    assert [str(error) for error in errors] == ["one", "two"]
    answers.append(RedisUnreachable("three"))
    with pytest.raises(RedisUnreachable, match="three"):
        retry_until_available(call, None)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="options of Linux")
@pytest.mark.parametrize("who", ["ledger", "worker", "sender"])
def test_the_kernel_ends_a_connection_that_died_without_a_word(redis_url, who):
    """Idle ones by keep-alive probes, those with unacknowledged data by TCP_USER_TIMEOUT; kombu sets neither itself."""
    settings = load_settings(redis_url=redis_url)
    with contextlib.ExitStack() as stack:
        if who == "ledger":
            client = stack.enter_context(connect(redis_url))
        else:
            app = create_app(settings) if who == "worker" else create_sender(settings)
            channel = stack.enter_context(app.connection_for_read()).default_channel
            client, interval = channel.client, channel.connection.client.transport_options["health_check_interval"]
            assert interval == 10, "kombu drops a BRPOP whose answer is overdue by this, and looks as often"
        connection = client.connection_pool.get_connection()
        stack.callback(client.connection_pool.release, connection)
        options = [
            connection._sock.getsockopt(level, option)
            for level, option in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            )
        ]
    assert options == [1, 5, 5, 2, 15_000]
