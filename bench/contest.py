"""Entrants as the benchmark sees them: started once, kept warm, asked in turn."""

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
    """An entrant that cannot take part, or broke off; the text says why."""


@dataclass(frozen=True)
class Job:
    """Files to embed: all of `folder`, in the order of their names."""

    folder: Path
    paths: list[Path]


@dataclass(frozen=True)
class Measured:
    """One run. `vectors` are the first few, or none; bytes are peaks, 0 where they are not known."""

    images_per_second: float
    vectors: npt.NDArray[np.float64]
    memory_bytes: int
    gpu_bytes: int


class Entrant(Protocol):
    """Something that embeds a job."""

    name: str
    about: dict[str, str]

    def start(self) -> None:
        """Load whatever it needs; raises Failed."""

    def run(self, job: Job) -> Measured:
        """Embed; raises Failed."""

    def stop(self) -> None:
        """End it."""


class Program:
    """A module of bench/entrants in a process of its own, with the interpreter that it needs."""

    def __init__(self, name: str, module: str, config: dict[str, Any], *, python: Path | None = None, part: str = ""):
        """`part` is given to the module as an argument; `config` as its first line of input."""
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
        self.about = self._ask(self._config)["about"]

    def run(self, job: Job) -> Measured:
        assert self._process is not None
        with PeakMemory(self._process.pid) as memory:
            answer = self._ask({"folder": str(job.folder), "paths": [str(path) for path in job.paths]})
        return Measured(
            len(job.paths) / answer["seconds"],
            np.array(answer["vectors"], np.float64),
            memory.peak_bytes,
            answer["gpu_bytes"],
        )

    def stop(self) -> None:
        if self._process is not None:
            try:
                self._process.communicate(timeout=20)  # the end of its input is the end of its work
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
            self._log.close()
            self._process = None

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            said = [text for text in self._log.read().splitlines() if text.strip()]
            raise Failed(f"{self.name} ended: {said[-1][:300] if said else 'it said nothing'}")
        found: dict[str, Any] = json.loads(answer)
        return found


class ThroughQueue:
    """The whole installation: Redis, a Celery worker, and ``python -m producer index``."""

    def __init__(self, name: str, root: Path, config: dict[str, Any], posters_per_batch: int) -> None:
        """`root` holds the folders of all jobs."""
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
        job_store = json.loads(done.stdout)
        if job_store["embedded"] != len(job.paths):
            raise Failed(f"the ledger does not add up: {job_store}")
        rate = job_store["submitted"] / job_store["seconds"]
        return Measured(rate, self._vectors(job), memory.peak_bytes, 0)

    def stop(self) -> None:
        self._open.close()

    def pid(self) -> int:
        """The worker's parent process, which holds the child that holds the model."""
        heard = self._producer.registry.find(self._worker)
        assert heard is not None
        child = int(heard.get("pid"))
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


def end_properly() -> None:
    """Leave through every ``finally`` when asked to end, so that no worker and no Redis stay behind."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
