"""Download an image by its URL: bounded, and never from inside this network."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, Self
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpcore2 as httpcore

from producer.errors import UnreadablePoster

MAX_BYTES: Final = 32 * 2**20
MAX_SECONDS: Final = 10.0  # for all of it: name, connections, redirects, content
MAX_REDIRECTS: Final = 3
REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
HEADERS: Final = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "poster-embedding-queue")]
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # a gateway turns them into the IPv4 address in the last 32 bits
UNICAST: Final = ipaddress.ip_network("2000::/3")  # the rest of IPv6 is reserved, or site-local as fec0::/10 once was
PROTOCOLS: Final = ipaddress.ip_network("192.0.0.0/24")  # clouds have services for their machines there
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Refused(OSError):
    """An address that must not be connected to."""


def download(url: str, *, private: bool = False) -> bytes:
    """The content of an http or https address.

    Args:
        url: as the person named it.
        private: whether loopback, private, link-local and other special addresses are allowed.

    Raises:
        UnreadablePoster: missing, too-large, unreadable, unsupported; the reason is for a person.
    """
    deadline = time.monotonic() + MAX_SECONDS
    target = url
    try:
        with httpcore.ConnectionPool(network_backend=_Guard(private, deadline), retries=0) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                location, data = _get(pool, target, url)
                if location is None:
                    return data
                target = urljoin(target, location)
    except _Refused as error:
        raise UnreadablePoster(url, "unsupported", str(error)) from error
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise UnreadablePoster(url, "unreadable", f"it did not come within {MAX_SECONDS:g} s") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError, ValueError) as error:
        reason = f"it cannot be downloaded: {error or type(error).__name__}"
        raise UnreadablePoster(url, "unreadable", reason) from error
    raise UnreadablePoster(url, "unreadable", f"it leads to more than {MAX_REDIRECTS} other addresses")


def _get(pool: httpcore.ConnectionPool, target: str, url: str) -> tuple[str | None, bytes]:
    """Where an address leads to, or its content."""
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnreadablePoster(url, "unsupported", f"{parts.scheme or 'it'} is not an address of http or https")
    host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
    netloc = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
    request_url = urlunsplit((parts.scheme, netloc, _quoted(parts.path) or "/", _quoted(parts.query), ""))
    with pool.stream("GET", request_url, headers=[("Host", netloc), *HEADERS]) as response:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in headers:
            return headers[b"location"], b""
        if response.status != 200:
            word = "missing" if response.status in (404, 410) else "unreadable"
            raise UnreadablePoster(url, word, f"the server answers with status {response.status}")
        parts_read, size = [], 0
        for part in response.iter_stream():
            size += len(part)
            if size > MAX_BYTES:
                raise UnreadablePoster(url, "too-large", f"it has more than {MAX_BYTES:,} bytes")
            parts_read.append(part)
    return None, b"".join(parts_read)


def _quoted(text: str) -> str:
    """What a person typed as it may stand in a request: blanks and letters beyond ASCII as ``%XX``."""
    return "".join(char if "!" <= char <= "~" else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also inside an IPv6 address that stands for IPv4."""
    ip: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner: Address | None = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        return ip.is_global and ip in UNICAST
    return ip.is_global and not ip.is_multicast and ip not in PROTOCOLS


class _Guard(httpcore.NetworkBackend):
    """Connects to allowed addresses only, within the time.

    The name is resolved here and the connection goes to one of the addresses that were checked, not to the name once
    more, whose address may be another one by then.
    """

    def __init__(self, private: bool, deadline: float) -> None:
        self._private, self._deadline = private, deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port, _left(self._deadline))
        self._check(host, addresses)
        for number, address in enumerate(addresses):
            share = _left(self._deadline) / (len(addresses) - number)  # one that drops packets leaves time for the next
            try:
                stream = self._backend.connect_tcp(address, port, share)
                break
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses) - 1:
                    raise
        try:
            self._check(host, [stream.get_extra_info("server_addr")[0]])
        except BaseException:
            stream.close()
            raise
        return _TimedStream(stream, self._deadline)

    def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise _Refused(f"{path} is no address of http or https")

    def _check(self, host: str, addresses: list[str]) -> None:
        inside = [] if self._private else [address for address in addresses if not is_public(address)]
        if inside:
            raise _Refused(
                f"{host} is {inside[0]}, an address inside this network or machine: POSTERS_PRIVATE_URLS=true allows it"
            )


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the time for all: a byte now and then does not keep it open."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Self:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return type(self)(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a name. The system's resolver knows no timeout, so it is waited for in a thread."""
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(f"{host} is not a name: {error}"))

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if not answer:
        raise OSError(f"{host} has no address")
    if isinstance(answer, OSError):
        raise OSError(f"{host} cannot be resolved: {answer.strerror or answer}") from answer
    return answer
