"""Time and memory of the producer for up to a million posters: ``python -m bench.scale``.

Files (sparse, each of its own size), store (512 numbers per row), Redis and the command line, which runs in a
process of its own, are real. Only the worker is simulated: it is announced as ready, so that the producer learns
the space, and in a first run its batches are counted as embedded without a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import redis

from producer.cli.demo import own_redis
from producer.embedding import Space
from producer.queue.claims import Claims, new_holder
from producer.queue.jobs import JobStore
from producer.queue.messages import QUEUES, BatchMessage
from producer.queue.progress import Claim, Outcome
from producer.queue.workers import READY, RENEWAL_S, WorkerRegistry
from producer.vectors import open_store
from producer.vectors.base import Row

PER_FOLDER: Final = 1000
ROWS_PER_PUT: Final = 1024
SAMPLE_S: Final = 0.02  # between readings of the producer's memory
SPACE: Final = Space("ViT-B-32", "scale", "quick_gelu", "224", 512)
MODEL: Final = {"space": SPACE.id, "space_json": SPACE.to_json(), "model": SPACE.model, "device": "none"}
LIMIT_S, LIMIT_MB = 60, 300  # for a second run over a million posters


@dataclass(frozen=True)
class Measured:
    """Time and memory of one command."""

    posters: int
    what: str
    seconds: float
    posters_per_second: int
    peak_mb: float  # of the producer's resident memory


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Numbers of posters, ascending.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are created (default: TMPDIR).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def main(sizes: str, folder: Path | None, as_json: bool) -> None:
    """Measure a first and a second `index` and a `prune` over growing collections."""
    results = []
    with tempfile.TemporaryDirectory(prefix="posters-scale-", dir=folder) as name, own_redis(Path(name)) as url:
        collection = Collection(Path(name), url)
        for size in map(int, sizes.split(",")):
            click.echo(f"creating {size} posters …", err=True)
            collection.grow(size)
            for result in collection.measure():
                results.append(result)
                click.echo(f"{result}", err=True)
                if as_json:
                    click.echo(json.dumps(asdict(result)))
        click.echo("deleting them …", err=True)
    if not as_json:
        click.echo(table(results))
    second = [result for result in results if result.posters >= 1_000_000 and result.what.startswith("second")]
    if any(result.seconds > LIMIT_S or result.peak_mb > LIMIT_MB for result in second):
        raise click.ClickException(f"a second run over a million took more than {LIMIT_S} s or {LIMIT_MB} MB")


class Collection:
    """A posters root, a catalogue of all its files, and stores with all their vectors."""

    def __init__(self, folder: Path, url: str) -> None:
        """`folder` contains only the files of the Redis at `url`."""
        self.root, self.catalogue, self._url = folder / "posters", folder / "posters.json", url
        self._stores = {name: f"sqlite:{folder / name}.db" for name in ("by-path", "by-id")}
        self._empty = f"sqlite:{folder / 'empty.db'}"
        self._size = 0

    def grow(self, size: int) -> None:
        """Add posters until there are `size`."""
        for number in range(self._size, size):
            path = self.root / _file(number)
            if number % PER_FOLDER == 0:
                path.parent.mkdir(parents=True)
            with path.open("wb") as file:
                file.truncate(1000 + number)  # sparse: a million of them take no disk space
        self._fill("by-path", size, _file)
        self._fill("by-id", size, _id)
        with self.catalogue.open("w", encoding="utf-8") as out:
            for number in range(size):
                entry = {
                    "file": _file(number),
                    "id": _id(number),
                    "title": f"Poster {number}",
                    "year": 1960 + number % 60,
                }
                out.write(("[\n" if not number else ",\n") + json.dumps(entry))
            out.write("\n]\n")
        self._size = size

    def measure(self) -> Iterator[Measured]:
        """Run the commands and check their results."""
        with registered_worker(self._url), closing(redis.Redis.from_url(self._url)) as client:
            plain = {"POSTERS_CATALOGUE": "none", "POSTERS_STORE": self._stores["by-path"]}
            named = {"POSTERS_CATALOGUE": str(self.catalogue), "POSTERS_STORE": self._stores["by-id"]}
            for what, environment in (("second run", plain), ("second run, with a catalogue", named)):
                result, ledger = self._run(what, ["index", "--json"], environment)
                if (ledger["unchanged"], ledger["submitted"]) != (self._size, self._size):
                    raise click.ClickException(f"some posters were not unchanged: {ledger}")
                if any(client.llen(queue) for queue in QUEUES.values()):
                    raise click.ClickException("batches were sent")
                yield result
            for what, environment in (("prune", plain), ("prune, with a catalogue", named)):
                result, numbers = self._run(what, ["prune", "--json"], environment)
                if numbers != {"held": self._size, "pruned": 0, "empty": 0, "hidden": 0}:
                    raise click.ClickException(f"rows were pruned: {numbers}")
                yield result
            with simulated_worker(self._url):
                first = {"POSTERS_CATALOGUE": str(self.catalogue), "POSTERS_STORE": self._empty}
                result, ledger = self._run("first run, sending all", ["index", "--json"], first)
                if ledger["embedded"] != self._size:
                    raise click.ClickException(f"some posters were not sent: {ledger}")
                yield result
            client.flushdb()

    def _run(self, what: str, arguments: Sequence[str], environment: dict[str, str]) -> tuple[Measured, dict[str, int]]:
        variables = os.environ | {"POSTERS_REDIS_URL": self._url, "POSTERS_ROOT": str(self.root)} | environment
        command = [sys.executable, "-m", "producer", *arguments]
        began = time.perf_counter()
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _peak_mb(process.pid))
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - began
        out, err = process.communicate()
        if process.returncode:
            raise click.ClickException(f"{arguments} ended with status {process.returncode}: {err[-1000:]}")
        return Measured(self._size, what, round(seconds, 2), round(self._size / seconds), round(peak, 1)), json.loads(
            out
        )

    def _fill(self, name: str, size: int, identify: Callable[[int], str]) -> None:
        drawn = np.random.default_rng(0).standard_normal((ROWS_PER_PUT, SPACE.dimension)).astype(np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        with closing(open_store(self._stores[name])) as store:
            for first in range(self._size, size, ROWS_PER_PUT):
                rows = []
                for number in range(first, min(size, first + ROWS_PER_PUT)):
                    stat = (self.root / _file(number)).stat()
                    rows.append(Row(identify(number), f"{number:064x}", stat.st_size, stat.st_mtime_ns))
                store.put(SPACE, rows, drawn[: len(rows)])


@contextmanager
def registered_worker(url: str) -> Iterator[None]:
    """Register a worker and renew the entry."""
    registry, ended = WorkerRegistry(url), threading.Event()

    def announce() -> None:
        while not ended.is_set():
            registry.publish("scale@bench", READY, MODEL)
            ended.wait(RENEWAL_S)

    thread = threading.Thread(target=announce)
    registry.publish("scale@bench", READY, MODEL)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        registry.close()


@contextmanager
def simulated_worker(url: str) -> Iterator[None]:
    """Count every batch as embedded as soon as it is recorded."""
    job_store, client, ended = JobStore(url), redis.Redis.from_url(url), threading.Event()
    claims = Claims(job_store)

    def work() -> None:
        while not ended.is_set():
            for job in job_store.list_active():
                for name in claims.open_batches(job):
                    message = BatchMessage(job, name)
                    if (claimed := claims.claim(message, new_holder("bench"))).verdict is Claim.WORK:
                        batch = claimed.batch(message)
                        claims.finish(batch, Outcome(embedded=len(batch.posters)))
            client.delete(*QUEUES.values())  # no worker receives the messages
            ended.wait(SAMPLE_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        client.close()
        job_store.close()


def table(results: Sequence[Measured]) -> str:
    """The measurements as a Markdown table: a row per command, a column per size."""
    sizes = sorted({result.posters for result in results})
    lines = ["| | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for what in dict.fromkeys(result.what for result in results):
        cells = [
            f"{result.seconds:.1f} s, {result.posters_per_second:,}/s, {result.peak_mb:.0f} MB"
            for result in results
            if result.what == what
        ]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _file(number: int) -> str:
    return f"{number // PER_FOLDER:05}/poster_{number:07}.jpg"


def _id(number: int) -> str:
    return f"poster-{number * 7919 % 1_000_003}"  # in another order than the files


def _peak_mb(pid: int) -> float:
    """Peak resident memory of a process so far; 0 where the system does not report it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass  # the process has ended, or there is no /proc
    return 0.0


if __name__ == "__main__":
    main(prog_name="python -m bench.scale")
