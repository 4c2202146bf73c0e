"""A redis-server for tests: a free port, loopback only, nothing persisted unless `options` say so.

Workers and the command line connect as the two users of docs/redis.acl, with no more rights than it grants; tests
themselves connect as the default user, who may do everything.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from producer.cli.demo import find_redis_server
from tests.support.project import PROJECT

START_S = 10.0
ACL = PROJECT / "docs" / "redis.acl"
WORKER, BACKEND, PASSWORD = "posters-worker", "posters-backend", "only-for-tests"


def find_redis_program() -> str | None:
    """The server to test with: TEST_REDIS_SERVER, else what the demo would start."""
    return os.environ.get("TEST_REDIS_SERVER") or find_redis_server()


class RedisServer:
    """A server that starts on construction; after `stop` or `kill`, `start` uses the same port and folder."""

    def __init__(self, options: Sequence[str] = (), folder: Path | None = None) -> None:
        """Start the server; `options` are appended to its command line, as in ``["--appendonly", "yes"]``."""
        program = find_redis_program()
        if program is None:
            raise FileNotFoundError("no Redis server is installed: make setup")
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="posters-redis-")
        self.folder = folder or Path(self._temporary.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://{WORKER}:{PASSWORD}@127.0.0.1:{self.port}/0"
        rules = re.sub(r"CHANGE-\w+-PASSWORD", PASSWORD, ACL.read_text(encoding="utf-8"))
        rules = rules.replace("user default off", "user default on nopass ~* &* +@all")
        (self.folder / "users.acl").write_text(rules, encoding="utf-8")
        base = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        base += ["--aclfile", str(self.folder / "users.acl")]
        self._command = [program, *base, *options]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except RuntimeError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> redis.Redis:
        """A client that may do everything."""
        return redis.Redis(port=self.port, decode_responses=True)

    @staticmethod
    def as_backend(url: str) -> str:
        """A URL of a server like this, with the user of a backend in place of a worker's."""
        return url.replace(f"{WORKER}:{PASSWORD}@", f"{BACKEND}:{PASSWORD}@")

    def start(self) -> None:
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        ends = time.monotonic() + START_S
        while True:
            try:
                with self.client as client:
                    client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > ends or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "redis.log").read_text(errors="replace")[-1000:]) from None
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(START_S)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(START_S)

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """Make it hang (SIGSTOP): connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
