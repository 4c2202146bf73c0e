"""A complete installation for tests: posters, a tiny model, a store, and worker processes started as a user does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner

from bench.image_samples import encoded, picture
from producer import Producer
from producer.host import program
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.workers import READY, Announcement
from producer.settings import load_settings
from tests.support.project import PROJECT
from tests.support.redis_server import RedisServer
from tests.support.tiny_model import write_tiny_model
from tests.support.worker_template import ForkedProcess, can_fork

PYTHONPATH = str(PROJECT / "tests" / "support" / "fast_imports")  # without the project, as a user has it
CELERY = str(Path(sys.executable).with_name("celery"))
START_S = 90.0  # a loaded machine imports torch in 10 s; four processes at a time take 40 s
COMMAND_S = 120.0


class Worker:
    """``celery -A worker worker`` in a process group of its own."""

    def __init__(self, installation: Installation, name: str, *arguments: str, **environment: str) -> None:
        """`name` empty: the node name is left to the worker."""
        self.name, self._installation = f"{name}@tests" if name else f"posters@{socket.gethostname()}", installation
        self.log = installation.folder / f"{name}.log"
        named = ("--hostname", self.name) if name else ()
        celery = [CELERY, "-A", "worker", "worker", *named, *arguments]
        command = [*installation.worker_prefix, *celery]
        variables = installation.environment | environment
        with self.log.open("wb") as log:
            self.process: subprocess.Popen[bytes] | ForkedProcess
            if installation.forks_workers and can_fork(variables):
                self.process = ForkedProcess(command, cwd=str(PROJECT), environment=variables, output=log.fileno())
            else:
                self.process = subprocess.Popen(
                    command, cwd=PROJECT, env=variables, stdout=log, stderr=log, start_new_session=True
                )

    def wait_until_ready(self) -> Worker:
        """Wait until it has published the state READY."""
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            if self.process.poll() is not None:
                break
            announcement = self.announcement()
            if announcement is not None and announcement.state == READY:
                return self
            time.sleep(0.1)
        raise AssertionError(f"{self.name} is not ready; its log:\n{self.log_text()}")

    def announcement(self) -> Announcement | None:
        """Registry entry of this process, not of another worker with the same node name."""
        workers = self._installation.producer.registry.alive()
        prefix = f"{self.name}/{self.process.pid}/"
        return next((worker for worker in workers if worker.owner.startswith(prefix)), None)

    def log_text(self) -> str:
        """Everything that it has written to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def child(self) -> int:
        """Process id of the child that holds the model."""
        announcement = self.announcement()
        assert announcement is not None
        return int(announcement.get("pid"))

    def kill(self) -> None:
        """Kill parent and child at once, as a power cut does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, within_s: float = 30.0) -> int:
        """Send SIGTERM, as a service manager does; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Installation:
    """Posters, model, store and workers below one folder; `environment` holds the variables a user would export."""

    worker_prefix: tuple[str, ...] = ()  # a program that starts workers, with its arguments
    forks_workers = True  # from a process that has made their imports; False: as a user starts them

    def __init__(self, folder: Path, redis: RedisServer, **settings: str) -> None:
        self.folder, self.redis, self.root = folder, redis, folder / "posters"
        self.root.mkdir(parents=True, exist_ok=True)
        self.model = write_tiny_model(folder / "model")
        chosen = {
            "redis_url": redis.url,
            "root": str(self.root),
            "catalogue": "none",
            "store": f"sqlite:{folder / 'vectors.db'}",
            "model_name": self.model,
            "device": "cpu",
            "precision": "fp32",
            "batch_size": "8",
            "claim_s": "3",
        } | settings
        variables = {f"POSTERS_{name.upper()}": value for name, value in chosen.items()}
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("POSTERS_")}
        # One thread for each operation of a tiny model: more only wait for each other where tests run side by side.
        self.environment = kept | variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
        self.settings = load_settings(**chosen)
        as_backend = {name: RedisServer.as_backend(value) for name, value in chosen.items()}
        self.producer = Producer(load_settings(**as_backend))
        self._job_store = JobStore(self.settings.redis_url)
        self.workers: list[Worker] = []

    def worker(self, name: str, *arguments: str, **environment: str) -> Worker:
        """Start a worker; `close` ends it."""
        self.workers.append(Worker(self, name, *arguments, **environment))
        return self.workers[-1]

    def _environment(self, changes: dict[str, str]) -> dict[str, str]:
        """The variables of a command, which has the rights of a backend."""
        return {name: RedisServer.as_backend(value) for name, value in self.environment.items()} | changes

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command line as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "producer", *arguments],
            cwd=PROJECT,
            env=self._environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line within this process: the imports of one of its own take a second of processor time.

        A command that does not end is interrupted, as by Ctrl-C.
        """
        from producer.__main__ import main

        overdue = threading.Timer(COMMAND_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        overdue.start()
        try:
            with patch.dict(os.environ, self._environment(environment), clear=True), contextlib.chdir(PROJECT):
                done = CliRunner(catch_exceptions=False).invoke(main, arguments, prog_name=program())
        finally:
            overdue.cancel()
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    def index(self, *arguments: str, status: int = 0, **environment: str) -> dict[str, Any]:
        """Run ``index --json``; returns its counts, after checking that they add up."""
        result = self.run("index", *arguments, "--json", **environment)
        assert result.returncode == status, result.stderr
        counts: dict[str, Any] = json.loads(result.stdout)
        assert adds_up(counts), counts
        return counts

    def draw(self, count: int, prefix: str = "p", ending: bytes = b"") -> list[str]:
        """Write `count` posters that differ in their bytes, too old to be racy; returns their ids."""
        names, old = [], time.time() - 10
        for number in range(count):
            name = f"{prefix}{number:04}.jpg"
            # trailing bytes change the digest without rendering another image
            data = encoded(picture(120, 180, seed=number % 16), "JPEG", quality=80)
            (self.root / name).write_bytes(data + f"{prefix}{number}".encode() + ending)
            os.utime(self.root / name, (old, old))
            names.append(name)
        return names

    def claims(self) -> Claims:
        """The claims of this installation's batches, as a worker may change them."""
        return Claims(self._job_store)

    def stored(self) -> set[str]:
        """Ids in the current space of the store."""
        store = self.producer.store()
        try:
            space = store.current()
            return {name for names in store.ids(space) for name in names} if space else set()
        finally:
            store.close()

    def close(self) -> None:
        """End every worker and close the connections."""
        for worker in self.workers:
            worker.kill()
        self.producer.close()
        self._job_store.close()


def quiet_now() -> str:
    """Quiet hours that began two minutes ago, and last for ten more."""
    begin, end = (time.localtime(time.time() + 60 * minutes) for minutes in (-2, 10))
    return f"{time.strftime('%H:%M', begin)}-{time.strftime('%H:%M', end)}"


def adds_up(counts: dict[str, Any]) -> bool:
    """The second promise: every submitted poster is counted exactly once."""
    parts = ("embedded", "reused", "unchanged", "failed")
    return bool(counts["submitted"] == sum(counts[part] for part in parts))
