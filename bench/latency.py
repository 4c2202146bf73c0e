"""How long a caller waits for a vector: ``python -m bench.latency``, with a real Redis and a real worker.

Requests of one and of ten callers at a time, while the worker is idle and while it re-indexes, and 50 callers for a
minute during that. Beside them: the same image in process, the worker's chunk, and the re-index alone.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from bench.machine import machine
from bench.posters import write_jpegs
from bench.processes import counted_bytes, tree
from producer import Producer
from producer.cli.demo import own_redis, own_worker
from producer.errors import Busy, PosterError
from producer.queue.workers import Announcement
from producer.settings import Settings, load_settings

IMAGES: Final = 100  # different ones that are asked for
CALLERS: Final = (1, 10)
CROWD: Final = 50
TIMEOUT_S: Final = 30.0
MEMORY_S: Final = 5.0  # between two samples of the worker's memory
MS: Final = 1000.0
PAGE: Final = Path("docs", "performance.md")
BEGIN, END = "<!-- latency: written by `make bench-latency` -->", "<!-- end of latency -->"


@dataclass
class Waited:
    """What callers saw: seconds until each vector, and other ends by the name of the error."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0

    def percentile(self, part: float) -> float:
        """Milliseconds in which this part of the vectors came."""
        ordered = sorted(self.seconds)
        return MS * ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--requests", "count", default=200, show_default=True, help="Vectors per row of the table.")
@click.option("--seconds", default=60, show_default=True, help=f"How long {CROWD} callers ask.")
@click.option("--posters", default=1024, show_default=True, help="Posters of 1000×1500 in the re-index.")
@click.option("--write", is_flag=True, help=f"Write the table into {PAGE}.")
def main(count: int, seconds: int, posters: int, write: bool) -> None:
    """Measure how long callers wait. Device, model and chunk as in the settings; weights are untrained unless set."""
    os.environ.setdefault("POSTERS_PRETRAINED", "untrained")
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder, own_redis(Path(folder)) as url:
        click.echo(f"drawing {posters} posters …", err=True)
        root = Path(folder, "posters")
        names = [path.name for path in write_jpegs(root, max(posters, IMAGES))]
        os.environ |= {"POSTERS_ROOT": str(root), "POSTERS_CATALOGUE": "none"}
        settings = load_settings(redis_url=url, store=f"sqlite:{Path(folder, 'vectors.db')}")
        own = in_process(settings, root / names[0])
        with own_worker(settings, Path(folder)) as worker, closing(Producer(settings)) as producer:
            lines = [*table(producer, worker, names, own, count), "", *crowd(producer, worker, names, seconds)]
    click.echo("\n".join(lines))
    if write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after, encoding="utf-8")


def in_process(settings: Settings, path: Path) -> float:
    """Median seconds of embedding one file in this process."""
    from worker.clip_embedder import CLIPEmbedder

    embedder = CLIPEmbedder.from_settings(settings)
    embedder.warm_up()
    waited = ask_all(lambda _: embedder.embed_image(path), 30, 1)
    embedder.close()
    return waited.percentile(0.5) / MS


def asks(producer: Producer, names: Sequence[str]) -> dict[str, Callable[[int], object]]:
    """What is asked for, by its name in the table."""
    images = [(producer.settings.root / name).read_bytes() for name in names[:IMAGES]]
    found: dict[str, Callable[[int], object]] = {
        "image": lambda number: producer.embed_image(images[number % IMAGES], timeout=TIMEOUT_S)
    }
    embed_text: Any = getattr(producer, "embed_text", None)
    if embed_text is not None:
        found["text"] = lambda number: embed_text(f"a poster with the number {number}", timeout=TIMEOUT_S)
    return found


def ask_all(ask: Callable[[int], object], count: int, callers: int, until: float = float("inf")) -> Waited:
    """Ask `count` times, by so many threads at a time, each again as soon as it has its answer."""
    waited, lock, numbers = Waited(), threading.Lock(), iter(range(count))

    def call() -> None:
        while time.perf_counter() < until:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            began = time.perf_counter()
            try:
                ask(number)
                with lock:
                    waited.seconds.append(time.perf_counter() - began)
            except PosterError as error:
                with lock:
                    waited.errors[type(error).__name__] += 1
                if isinstance(error, Busy):
                    time.sleep(error.retry_after_s)

    began = time.perf_counter()
    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waited.took_s = time.perf_counter() - began
    return waited


class Reindex:
    """Indexes all posters again and again, until the block ends; `rate` is in posters per second."""

    def __init__(self, producer: Producer, names: Sequence[str]) -> None:
        self._producer, self._names = producer, names
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Reindex]:
        """The block begins when the first batch is being embedded."""
        self._ended.clear()
        jobs = [self._producer.enqueue(self._names, force=True) for _ in range(2)]
        while not jobs[0].progress().doing:
            time.sleep(0.05)
        self._began, self._jobs = time.perf_counter(), jobs
        self._before = self._done()
        feeding = threading.Thread(target=self._feed)
        feeding.start()
        try:
            yield self
        finally:
            self._ended.set()
            feeding.join()
            for job in self._jobs:
                job.cancel()
            for job in self._jobs:
                job.wait()

    def rate(self) -> float:
        """Posters per second since the block began."""
        return (self._done() - self._before) / (time.perf_counter() - self._began)

    def _done(self) -> int:
        return sum(job.progress().done for job in self._jobs)

    def _feed(self) -> None:
        while not self._ended.wait(0.5):
            if self._jobs[-2].progress().at_rest:
                self._jobs.append(self._producer.enqueue(self._names, force=True))


def table(producer: Producer, worker: str, names: Sequence[str], own: float, count: int) -> list[str]:
    """The rows of idle and busy workers, and what they are compared with."""
    rows = ["| worker | asked for | callers | p50 | p99 | answers/s |", "|---|---|---|---|---|---|"]
    errors: Counter[str] = Counter()

    def add(state: str) -> None:
        for kind, ask in asks(producer, names).items():
            ask(0)  # a text tower is loaded at the first request
            for callers in CALLERS:
                waited = ask_all(ask, count, callers)
                errors.update(waited.errors)
                p50, p99, rate = waited.percentile(0.5), waited.percentile(0.99), len(waited.seconds) / waited.took_s
                rows.append(f"| {state} | {kind} | {callers} | {p50:.0f} ms | {p99:.0f} ms | {rate:.1f} |")
                click.echo(rows[-1], err=True)

    add("idle")
    reindex = Reindex(producer, names)
    with reindex.running():
        add("re-indexing")
    about = announced(producer, worker)
    device = f"{about.get('model')} on {about.get('device')} in {about.get('precision')}"
    system = machine()
    return [
        f"{device}; {system['processor']}, {system['cores']} cores; load before: {system['load_before']}.",
        f"The same image in process: {MS * own:.0f} ms. Errors: {dict(errors) or 'none'}.",
        "",
        *rows,
    ]


def crowd(producer: Producer, worker: str, names: Sequence[str], seconds: int) -> list[str]:
    """CROWD callers while the worker re-indexes: errors, the re-index beside it alone, memory."""
    reindex = Reindex(producer, names)
    with reindex.running():
        time.sleep(seconds / 2)
        alone = reindex.rate()
    chunk = int(announced(producer, worker).get("batch_size"))
    memory: list[int] = []
    ended = threading.Event()
    watching = threading.Thread(target=partial(watch_memory, announced(producer, worker), memory, ended))
    with reindex.running():
        watching.start()
        waited = ask_all(asks(producer, names)["image"], 10**9, CROWD, time.perf_counter() + seconds)
        beside = reindex.rate()
        ended.set()
        watching.join()
    bottleneck = announced(producer, worker).get("bottleneck")
    half = len(memory) // 2
    growth = (max(memory[half:]) - max(memory[:half])) / 2**20 if half else float("nan")
    others = {name: number for name, number in waited.errors.items() if name != "Busy"}
    return [
        f"Re-indexing alone: {alone:.1f} posters/s, a chunk of {chunk} every {MS * chunk / alone:.0f} ms.",
        f"With {CROWD} callers for {seconds} s: {beside:.1f} posters/s ({beside / alone:.2f} of it), "
        f"{len(waited.seconds) / waited.took_s:.1f} answers/s, p50 {waited.percentile(0.5):.0f} ms, "
        f"p99 {waited.percentile(0.99):.0f} ms, `Busy` {waited.errors['Busy']} times, others: {others or 'none'}. "
        f"The worker's memory grew by {growth:.1f} MiB in the second half.",
        f"The worker: {bottleneck}.",
    ]


def watch_memory(worker: Announcement, samples: list[int], ended: threading.Event) -> None:
    """Add the memory of the process that holds the model, again and again."""
    while not ended.wait(MEMORY_S):
        samples.append(sum(map(counted_bytes, tree(int(worker.get("pid"))))))


def announced(producer: Producer, worker: str) -> Announcement:
    """The worker's registry entry."""
    found = producer.registry.find(worker)
    assert found is not None, "the worker has ended"
    return found


if __name__ == "__main__":
    main()
