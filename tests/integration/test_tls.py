"""Redis with TLS: user and password for queue, ledger and store, and no secret in a log."""

import shutil
import socket
import subprocess
import time

import pytest
from kombu import pools

from producer.errors import RedisUnreachable
from producer.queue.jobs import JobStore
from producer.queue.messages import EmbedBatch, Poster
from producer.queue.sender import create_sender, send
from producer.settings import load_settings
from tests.support.installation import Installation
from tests.support.redis_server import PASSWORD, WORKER, RedisServer
from worker.celery import create_app

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a certificate for localhost that it signed."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    constraints = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]  # the strict checks of newer Pythons want it
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=tests", *constraints)
    openssl("req", *key, "-keyout", "redis.key", "-out", "redis.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid,issuer\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"]
    openssl("x509", "-req", "-in", "redis.csr", "-out", "redis.pem", *signing)
    return folder


@pytest.fixture(scope="module")
def locked(certificates):
    """A Redis whose other port speaks TLS alone, and its URL as a user writes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for option, file in (("cert", "redis.pem"), ("key", "redis.key"), ("ca-cert", "ca.pem")):
        options += [f"--tls-{option}-file", str(certificates / file)]
    try:
        server = RedisServer(options)
    except RuntimeError as error:
        if "TLS" in str(error):
            pytest.skip("this Redis server is built without TLS")
        raise
    with server:
        server.tls_url = f"rediss://{WORKER}:{PASSWORD}@localhost:{port}"
        yield server


def test_worker_and_producer_work_behind_tls(locked, certificates, tmp_path):
    """Queue, ledger and store; the certificate is checked; the password is in no log, in no command's output."""
    options = f"?ssl_ca_certs={certificates / 'ca.pem'}"
    installation = Installation(
        tmp_path, locked, redis_url=f"{locked.tls_url}/0{options}", store=f"{locked.tls_url}/1{options}", stop_s="1"
    )
    try:
        names = installation.draw(12)
        worker = installation.worker("w", "--loglevel", "INFO").wait_until_ready()
        assert installation.index()["embedded"] == 12
        assert installation.stored() == set(names)
        assert installation.producer.embed(names[0]).shape == (512,)
        done = [
            installation.run("status"),
            installation.run("status", "--json"),
            installation.run("doctor"),
            installation.run("doctor", "--json"),
        ]
        assert worker.stop() == 0
        output = worker.log_text() + "".join(one.stdout + one.stderr for one in done)
        assert "localhost" in output
        assert PASSWORD not in output
        assert PASSWORD not in str(installation.producer.registry.alive())
    finally:
        installation.close()


@pytest.mark.parametrize("options", ["", "?ssl_ca_certs=/nowhere/ca.pem"])
def test_a_certificate_that_nobody_vouches_for_is_refused(locked, options):
    """By redis-py and by kombu alike: neither falls back to encryption with whoever answers."""
    url = f"{locked.tls_url}/0{options}"
    ledger = JobStore(url)
    began = time.monotonic()
    with pytest.raises(RedisUnreachable) as caught:
        ledger.create("job")
    batch = EmbedBatch("job", "job.1", (Poster("a", "a"),))
    pools.reset()  # kombu shares connections to one address within a process, whatever their certificates
    with create_sender(load_settings(redis_url=url)) as app, pytest.raises(RedisUnreachable) as also:
        send(app, batch)
    ledger.close()
    assert time.monotonic() - began < 10
    for error in (caught, also):
        assert PASSWORD not in str(error.value)
        assert "localhost" in str(error.value)


def test_checking_can_be_turned_off_by_name_only(locked):
    """For a tunnel that ends elsewhere; the URL says so."""
    ledger = JobStore(f"{locked.tls_url}/0?ssl_cert_reqs=none&ssl_check_hostname=false")
    ledger.create("job")
    ledger.close()


def test_a_unix_socket_does_as_well(tmp_path):
    """Queue and ledger on a machine whose Redis has no port at all."""
    path = tmp_path / "redis.sock"
    with RedisServer(["--unixsocket", str(path)]):
        url = f"unix://{WORKER}:{PASSWORD}@{path}?db=0"
        ledger = JobStore(url)
        batch = EmbedBatch("job", "job.1", (Poster("a", "a"),))
        ledger.create("job")
        ledger.record_step("job", 1, batch=batch)
        with create_sender(load_settings(redis_url=url)) as app:
            send(app, batch)
        got = []
        with (
            create_app(load_settings(redis_url=url)) as app,
            app.connection_for_read() as connection,
            connection.Consumer(app.amqp.queues["posters.bulk"], on_message=got.append, accept=["json"]),
        ):
            connection.drain_events(timeout=5)
        assert [message.headers["id"] for message in got] == ["job.1"]
        ledger.close()
