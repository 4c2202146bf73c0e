"""Machines of their own in network namespaces, in a star around a router, and a Redis on one of them."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.support.redis_server import RedisServer

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
PACKET = 1 << 16


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class BadCable(threading.Thread):
    """A cable between two namespaces that delays and loses packets, for kernels without netem.

    Attributes:
        delay_s: how long each packet is kept, in both directions.
        loss: share of the packets that are lost.
        lost: how many were.
    """

    def __init__(self, *ends: tuple[str, str]) -> None:
        """`ends`: namespace and name of the link at either end."""
        super().__init__(name="cable", daemon=True)
        self.delay_s = self.loss = 0.0
        self.lost = 0
        self._ended, self._ends = threading.Event(), [_tunnel(*end) for end in ends]
        self.start()

    def run(self) -> None:
        kept: list[tuple[float, int, int, bytes]] = []  # due, number, where to, packet
        numbers = itertools.count()
        while not self._ended.is_set():
            wait_s = min(0.1, max(0.0, kept[0][0] - time.monotonic())) if kept else 0.1
            for end in select.select(self._ends, [], [], wait_s)[0]:
                packet, other = os.read(end, PACKET), self._ends[end == self._ends[0]]
                if random.random() < self.loss:
                    self.lost += 1
                else:
                    heapq.heappush(kept, (time.monotonic() + self.delay_s, next(numbers), other, packet))
            while kept and kept[0][0] <= time.monotonic():
                with suppress(OSError):  # a link that is down loses its packets
                    os.write(kept[0][2], heapq.heappop(kept)[3])

    def close(self) -> None:
        self._ended.set()
        self.join()
        for end in self._ends:
            os.close(end)


def _tunnel(namespace: str, link: str) -> int:
    """The file of a new tunnel device, which is then a link of a namespace."""
    try:
        file = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no tunnel devices here: {error}")
    name = f"p{os.getpid()}-{file}"  # at most 15 characters
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", name, "netns", namespace, "name", link)
    return file


class Network:
    """Namespaces, each with a cable to the router; the n-th has the address 10.231.n.2. Needs root and iproute2.

    Attributes:
        cables: those that delay and lose packets.
    """

    def __init__(self, hosts: Sequence[str], bad: Sequence[str] = ()) -> None:
        """`bad`: hosts that get such a cable. Skips the test where namespaces cannot be made."""
        self._hosts, self._router = list(hosts), self._namespace("router")
        self._bad, self.cables = set(bad), list[BadCable]()
        try:
            ip("netns", "add", self._router)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here, they need root and iproute2: {getattr(error, 'stderr', error)}")
        try:
            for number, host in enumerate(self._hosts, start=1):
                self._connect(host, number)
            forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            subprocess.run(["ip", "netns", "exec", self._router, "sh", "-c", forward], check=True)
        except BaseException:
            self.close()
            raise

    def address(self, host: str) -> str:
        return f"10.231.{self._hosts.index(host) + 1}.2"

    def inside(self, host: str) -> tuple[str, ...]:
        """What starts a program on `host`; it has a mount namespace of its own, too."""
        return ("ip", "netns", "exec", self._namespace(host))

    def cut(self, host: str) -> None:
        """Cut the cable between `host` and the router."""
        ip("-n", self._router, "link", "set", self._cable(host), "down")

    def mend(self, host: str) -> None:
        ip("-n", self._router, "link", "set", self._cable(host), "up")

    def drop(self, port: str) -> None:
        """Drop every packet from or to a TCP port, in both directions."""
        for end in ("sport", "dport"):
            ip("-n", self._router, "rule", "add", "blackhole", "ipproto", "tcp", end, port, "priority", "1")

    def close(self) -> None:
        for cable in self.cables:
            cable.close()
        for host in (*self._hosts, "router"):
            subprocess.run(["ip", "netns", "delete", self._namespace(host)], check=False, capture_output=True)

    def _namespace(self, host: str) -> str:
        return f"posters-{os.getpid()}-{host}"

    def _cable(self, host: str) -> str:
        return f"cable{self._hosts.index(host) + 1}"

    def _connect(self, host: str, number: int) -> None:
        namespace, cable = self._namespace(host), self._cable(host)
        ip("netns", "add", namespace)
        if host in self._bad:
            self.cables.append(BadCable((self._router, cable), (namespace, "eth0")))
        else:
            ip("-n", self._router, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        for where, link, last in ((self._router, cable, 1), (namespace, "eth0", 2)):
            ip("-n", where, "address", "add", f"10.231.{number}.{last}/24", "dev", link)
            ip("-n", where, "link", "set", link, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "route", "add", "default", "via", f"10.231.{number}.1")


class RemoteRedis(RedisServer):
    """Redis on a host of a Network. The tests reach it by its Unix socket, which lies in the file system."""

    def __init__(self, network: Network, host: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.socket, self._inside = folder / "redis.sock", network.inside(host)
        self.address = network.address(host)
        bound = ["--bind", self.address, "--unixsocket", str(self.socket), "--protected-mode", "no"]
        super().__init__([*bound, *options])

    def start(self) -> None:
        if self._command[0] != self._inside[0]:
            self._command = [*self._inside, *self._command]
        super().start()

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)

    def local_url(self, database: int = 0) -> str:
        """For processes on this machine."""
        return f"unix://{self.socket}?db={database}"

    def remote_url(self, database: int = 0) -> str:
        """For processes on a host of the network."""
        return f"redis://{self.address}:{self.port}/{database}"
