"""Half-open connections, in network namespaces: worker, router and Redis each have their own kernel side.

A proxy could not show this: its own kernel would go on acknowledging what the worker sends, and answer its keep-alive
probes. Here the router drops every packet of the connections that exist, and lets new ones through, as a firewall
does that was restarted.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import redis

from tests.support.installation import Installation
from tests.support.redis_server import RedisServer
from tests.support.scenario_table import scenario

WORKER, ROUTER, SERVER = (f"posters-{os.getpid()}-{name}" for name in ("worker", "router", "server"))
REDIS_HOST = "10.231.2.2"
NOTICED_S = 30.0  # the 45 s that docs/delivery.md promises are for a lost batch: noticing must take much less

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def network():
    """Three namespaces in a row, 10.231.1.0/24 between worker and router, 10.231.2.0/24 between router and server."""
    try:
        ip("netns", "add", ROUTER)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here, they need root and iproute2: {getattr(error, 'stderr', error)}")
    try:
        for number, (name, end) in enumerate(((WORKER, "w"), (SERVER, "s")), start=1):
            ip("netns", "add", name)
            inside, outside = f"{end}0", f"r{end}0"
            ip("-n", ROUTER, "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            for namespace, link, host in ((ROUTER, outside, 1), (name, inside, 2)):
                ip("-n", namespace, "address", "add", f"10.231.{number}.{host}/24", "dev", link)
                ip("-n", namespace, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", f"10.231.{number}.1")
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        subprocess.run(["ip", "netns", "exec", ROUTER, "sh", "-c", forward], check=True)
        yield
    finally:
        for name in (WORKER, ROUTER, SERVER):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class RedisBehindRouter(RedisServer):
    """Redis in its own namespace. The tests reach it by its Unix socket, which lies in the file system."""

    def __init__(self, folder):
        self.socket = folder / "redis.sock"
        super().__init__(["--bind", REDIS_HOST, "--unixsocket", str(self.socket), "--protected-mode", "no"])

    def start(self):
        if self._command[0] != "ip":
            self._command = ["ip", "netns", "exec", SERVER, *self._command]
        super().start()

    @property
    def client(self):
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)


@pytest.fixture
def installation(network, tmp_path):
    """A worker that reaches Redis through the router; the tests' own producer does not."""
    with tempfile.TemporaryDirectory(prefix="posters-") as short, RedisBehindRouter(Path(short)) as server:
        installation = Installation(tmp_path, server, redis_url=f"unix://{server.socket}?db=0", claim_s="30")
        installation.environment["POSTERS_REDIS_URL"] = f"redis://{REDIS_HOST}:{server.port}/0"
        installation.worker_prefix = ("ip", "netns", "exec", WORKER)
        yield installation
        installation.close()


def cut_all(server):
    """Drop every packet of the connections that exist between worker and Redis, in both directions."""
    with server.client as client:
        ports = [entry["addr"].rpartition(":")[2] for entry in client.client_list() if entry["addr"].startswith("10.")]
    assert ports
    for port in ports:
        for end in ("sport", "dport"):
            ip("-n", ROUTER, "rule", "add", "blackhole", "ipproto", "tcp", end, port, "priority", "1")
    return len(ports)


@pytest.mark.chaos
@scenario(
    "every connection between worker and Redis becomes half-open; new ones work",
    f"noticed, and a waiting batch taken, within {NOTICED_S:.0f} s",
)
def test_half_open_connections_of_a_worker(installation, measured):
    """An idle worker polls for the answer to its BRPOP: only TCP, or kombu's clock, can tell that none comes."""
    names = installation.draw(6)
    worker = installation.worker("far").wait_until_ready()
    assert installation.producer.enqueue([installation.root / names[0]]).wait(30).embedded == 1
    time.sleep(2)
    count = cut_all(installation.redis)
    cut = time.monotonic()
    job = installation.producer.enqueue([installation.root / name for name in names[1:]])
    progress = job.wait(120)
    seconds = time.monotonic() - cut
    assert progress.embedded == 5, progress
    assert worker.process.poll() is None
    assert seconds < NOTICED_S, worker.log_text()
    measured(seconds, None, f"{count} connections; until the job's end")
