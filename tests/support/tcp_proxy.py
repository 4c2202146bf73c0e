"""A TCP proxy in front of a server on this machine, with the faults of a network between the two."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from contextlib import suppress

CHUNK = 1 << 16
POLL_S = 0.02
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST


class TCPProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`.

    Attributes:
        target: port that new connections are forwarded to.
        delay_s: how long everything is kept before it is forwarded, in both directions.
        broken: how many replies were broken off.
        stalled: whether nothing is forwarded. Connections are accepted, and what is sent is acknowledged, all the same.
    """

    def __init__(self, target: int) -> None:
        self.target, self.delay_s, self.stalled = target, 0.0, False
        self.broken = 0
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def break_replies(self, *, reset: bool) -> None:
        """End each open connection after half of its next reply, by FIN or RST."""
        for connection in list(self._connections):
            connection.reset, connection.breaks = reset, True

    def reset_all(self) -> None:
        """End each open connection at once, by RST."""
        for connection in list(self._connections):
            connection.reset, connection.ended = True, True

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes `accept`
        self._listener.close()
        self.reset_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            connection = _Connection(self, client, server)
            self._connections.add(connection)
            threading.Thread(target=self._forward, args=(connection,), name="proxied", daemon=True).start()

    def _forward(self, connection: _Connection) -> None:
        try:
            connection.forward()
        finally:
            self._connections.discard(connection)


class _Connection:
    """One forwarded connection. A single thread owns both sockets: RST is sent only when nobody else reads them.

    Attributes:
        breaks: whether it ends after half of its next reply.
        ended: whether it ends at once.
        reset: whether it ends by RST instead of FIN.
    """

    def __init__(self, proxy: TCPProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self.breaks = self.ended = self.reset = False

    def forward(self) -> None:
        """Forward both directions until either side, or a fault, ends the connection."""
        with self._client, self._server, suppress(OSError):  # an error: either side has ended it
            while not self.ended:
                if self._proxy.stalled:
                    time.sleep(POLL_S)
                    continue
                for source in select.select([self._client, self._server], [], [], POLL_S)[0]:
                    self._forward_chunk(source)
            if self.reset:
                for end in (self._client, self._server):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    def _forward_chunk(self, source: socket.socket) -> None:
        data = source.recv(CHUNK)
        if not data:
            self.ended = True
            return
        time.sleep(self._proxy.delay_s)
        if source is self._client:
            self._server.sendall(data)
        elif self.breaks:
            self._client.sendall(data[: max(1, len(data) // 2)])
            self.ended = True
            self._proxy.broken += 1
        else:
            self._client.sendall(data)
