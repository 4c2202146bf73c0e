"""The entrants of the benchmark: started once and kept warm between runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bench.processes import PeakMemory
from producer.cli.demo import own_redis, own_worker
from producer.client import Producer
from producer.settings import load_settings

PROJECT = Path(__file__).parent.parent


class Failed(Exception):
    """An entrant that could not start or failed; the text says why."""


@dataclass(frozen=True)
class Job:
    """Files to embed: all of `folder`, ordered by name."""

    folder: Path
    paths: list[Path]


@dataclass(frozen=True)
class Measured:
    """One run. `vectors` are the first few, or none; bytes are peaks, 0 where unknown."""

    images_per_second: float
    vectors: npt.NDArray[np.float64]
    memory_bytes: int
    gpu_bytes: int


class Entrant(Protocol):
    """A program that embeds jobs."""

    name: str
    about: dict[str, str]

    def start(self) -> None:
        """Load the model; raises Failed."""

    def run(self, job: Job) -> Measured:
        """Embed a job; raises Failed."""

    def stop(self) -> None:
        """End the program."""


class Program:
    """A module of bench/entrants, run in a process by its own interpreter."""

    def __init__(self, name: str, module: str, config: dict[str, Any], *, python: Path | None = None, part: str = ""):
        """`part` is the module's argument, `config` its first line of input."""
        self.name, self.about = name, dict[str, str]()
        self._command = [str(python or sys.executable), "-m", f"bench.entrants.{module}", *([part] if part else [])]
        self._config = config
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by stop
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            self._command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.about = self._request(self._config)["about"]

    def run(self, job: Job) -> Measured:
        assert self._process is not None
        with PeakMemory(self._process.pid) as memory:
            response = self._request({"folder": str(job.folder), "paths": [str(path) for path in job.paths]})
        return Measured(
            len(job.paths) / response["seconds"],
            np.array(response["vectors"], np.float64),
            memory.peak_bytes,
            response["gpu_bytes"],
        )

    def stop(self) -> None:
        if self._process is not None:
            try:
                self._process.communicate(timeout=20)  # closes its input, which ends it
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
            self._log.close()
            self._process = None

    def _request(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            response = self._process.stdout.readline()
        except BrokenPipeError:
            response = ""
        if not response:
            self._log.seek(0)
            output = [text for text in self._log.read().splitlines() if text.strip()]
            raise Failed(f"{self.name} ended: {output[-1][:300] if output else 'without output'}")
        result: dict[str, Any] = json.loads(response)
        return result


class ThroughQueue:
    """A complete installation: Redis, a Celery worker, and ``python -m producer index``."""

    def __init__(self, name: str, root: Path, config: dict[str, Any], posters_per_batch: int) -> None:
        """`root` contains the folders of all jobs."""
        self.name, self.about = name, {"posters_per_batch": str(posters_per_batch)}
        self._root, self._config, self._batch = root, config, posters_per_batch
        self._open = ExitStack()

    def start(self) -> None:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="posters-bench-")))
        url = self._open.enter_context(own_redis(folder))
        environment = {
            "POSTERS_REDIS_URL": url,
            "POSTERS_STORE": f"sqlite:{folder / 'vectors.db'}",
            "POSTERS_ROOT": str(self._root),
            "POSTERS_CATALOGUE": "none",
            "POSTERS_QUICK_GELU": "false",
            "POSTERS_DEVICE": self._config["device"],
            "POSTERS_PRECISION": self._config["precision"],
            "POSTERS_BATCH_SIZE": str(self._config["ours_batch"]),
        }
        if self._config.get("model"):
            environment["POSTERS_MODEL_NAME"] = self._config["model"]
            del environment["POSTERS_QUICK_GELU"]
        before = {name: os.environ.get(name) for name in environment}
        self._open.callback(_restore, before)
        os.environ.update(environment)
        self._settings = load_settings(pretrained=self._config["checkpoint"])
        self._worker = self._open.enter_context(own_worker(self._settings, folder))
        self._producer = Producer(self._settings)
        self._open.callback(self._producer.close)

    def run(self, job: Job) -> Measured:
        command = [sys.executable, "-m", "producer", "index", "--json", "--force", "--batch", str(self._batch)]
        with PeakMemory(self.pid()) as memory:
            done = subprocess.run([*command, str(job.folder)], cwd=PROJECT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"index ended with status {done.returncode}: {done.stderr[-500:]}")
        ledger = json.loads(done.stdout)
        if ledger["embedded"] != len(job.paths):
            raise Failed(f"the ledger does not add up: {ledger}")
        rate = ledger["submitted"] / ledger["seconds"]
        return Measured(rate, self._vectors(job), memory.peak_bytes, 0)

    def stop(self) -> None:
        self._open.close()

    def pid(self) -> int:
        """The worker's parent process; its child has the model."""
        entry = self._producer.registry.find(self._worker)
        assert entry is not None
        child = int(entry.get("pid"))
        try:
            return int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return child

    def _vectors(self, job: Job) -> npt.NDArray[np.float64]:
        from bench.entrants.serve import CHECKED

        store = self._producer.store()
        try:
            ids = [path.relative_to(self._root).as_posix() for path in job.paths[:CHECKED]]
            found = store.get(store.current() or "", ids)
            return np.stack([found[name] for name in ids]).astype(np.float64)
        finally:
            store.close()


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def exit_on_sigterm() -> None:
    """Raise SystemExit on SIGTERM, so that every ``finally`` runs and no worker or Redis is left running."""

    def exit(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, exit)
