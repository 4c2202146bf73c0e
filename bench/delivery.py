"""Overhead of ledger and queue per batch: each step by itself, and a batch through a real worker.

The worker gets batches whose posters are all stored already, so that it only receives, decodes, claims, finishes and
acknowledges them, and reads their rows from the store, which is measured separately and subtracted. CPU time counts,
because it does not depend on other load; wall-clock time is shown as well.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click

from bench.posters import write_jpegs
from bench.processes import tree
from producer import Producer
from producer.cli.demo import own_redis, own_worker
from producer.queue.claims import Claims, new_holder
from producer.queue.jobs import JobStore
from producer.queue.messages import BULK, QUEUES, EmbedBatch, Poster
from producer.queue.progress import Outcome
from producer.queue.sender import create_sender, send
from producer.settings import Settings, load_settings
from worker.broker.validation import rebuild

POSTERS: Final = 256  # per batch, the default of settings.posters_per_batch
WARM_UP: Final = 20  # batches that are not measured
MS: Final = 1000.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--batches", default=300, show_default=True, help="Batches per measurement.")
@click.option("--images", default=512, show_default=True, help="Posters of the job that the overhead is compared with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(batches: int, images: int, as_json: bool) -> None:
    """Measure the overhead of a batch beside its embedding. Linux: reads the workers' CPU time from /proc."""
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder, own_redis(Path(folder)) as url:
        click.echo(f"drawing {images} posters …", err=True)
        root = Path(folder, "posters")
        write_jpegs(root, max(images, POSTERS))
        os.environ |= {"POSTERS_ROOT": str(root), "POSTERS_CATALOGUE": "none"}
        settings = load_settings(pretrained="untrained", redis_url=url, store=f"sqlite:{Path(folder, 'vectors.db')}")
        steps = _steps(settings, batches)
        bare = _bare_celery(settings, batches)
        with own_worker(settings, Path(folder)) as name:
            producer = Producer(settings)
            try:
                rate = _embed(producer, sorted(path.name for path in root.iterdir()))
                whole = _through_worker(producer, name, batches)
            finally:
                producer.close()
    added = whole["processor_ms"] - whole["store_ms"]
    own = added - bare
    share = added / MS / (POSTERS / rate)
    if as_json:
        figures = {
            "added_ms_per_batch": round(own, 2),
            "celery_ms_per_batch": round(bare, 2),
            "images_per_second": round(rate, 1),
            "share": round(share, 4),
        }
        cores = len(os.sched_getaffinity(0))
        click.echo(json.dumps({"steps_ms": steps, "whole_way": whole, **figures, "cores": cores}))
        return
    click.echo(f"a batch of {POSTERS} posters, median of {batches}")
    for step, took in steps.items():
        click.echo(f"  {step:34} {took:6.2f} ms")
    click.echo(
        f"  through the worker, nothing to embed {whole['processor_ms']:4.2f} ms of CPU time, "
        f"{whole['clock_ms']:.2f} ms wall clock; of that {whole['store_ms']:.2f} ms for the store"
    )
    click.echo(f"Celery alone takes {bare:.2f} ms for such a message; validation, ledger and pipeline add {own:.2f} ms")
    click.echo(f"together {100 * share:.2f} % of a job at {rate:.1f} images/s ({POSTERS / rate * MS:.0f} ms a batch)")


def _steps(settings: Settings, count: int) -> dict[str, float]:
    """Median milliseconds of each step, with batches and names of typical size."""
    job_store = JobStore(settings.redis_url)
    claims, app = Claims(job_store), create_sender(settings)
    batches = [EmbedBatch("bench", f"bench.{number}", _posters(number)) for number in range(1, count + 1)]
    job_store.create("bench")
    holders = {batch.batch: new_holder("bench") for batch in batches}
    numbers = {batch.batch: number for number, batch in enumerate(batches, 1)}
    found = {
        "producer: record it": _each(
            batches, lambda one: job_store.record_step("bench", numbers[one.batch], batch=one)
        ),
        "producer: send it": _each(batches, lambda one: send(app, one)),
    }
    elements = [text.encode() for text in job_store.redis.lrange(QUEUES[BULK], 0, -1)]  # type: ignore[union-attr]
    records = [json.dumps(one.encode()) for one in batches]
    found |= {
        "worker: validate the message": _each(elements, lambda element: rebuild(element, QUEUES[BULK])),
        "worker: decode what was recorded": _each(records, lambda text: EmbedBatch.decode(json.loads(text))),
        "worker: claim it": _each(batches, lambda one: claims.claim(one, holders[one.batch])),
        "worker: renew the claim": _each(batches, lambda one: claims.renew(one, holders[one.batch], 1)),
        "worker: finish it": _each(batches, lambda one: claims.finish(one, Outcome(embedded=POSTERS))),
    }
    job_store.redis.flushdb()
    job_store.close()
    app.close()
    return {step: round(took, 3) for step, took in found.items()}


def _bare_celery(settings: Settings, count: int) -> float:
    """Milliseconds of CPU time that Celery alone takes for such a message and an empty task."""
    environment = os.environ | {"POSTERS_REDIS_URL": settings.redis_url}
    command = [sys.executable, "-m", "celery", "-A", "bench.bare_celery", "worker", "--loglevel", "INFO"]
    app, job_store = create_sender(settings), JobStore(settings.redis_url)
    batches = [EmbedBatch("bare", f"bare.{number}", _posters(number)) for number in range(count + 2 * WARM_UP)]

    def left() -> int:
        return int(job_store.redis.llen(QUEUES[BULK])) + int(job_store.redis.hlen("unacked"))  # type: ignore[arg-type]

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        send(app, batches[0])
        _wait_for(lambda: left() == 0)
        processes = tree(process.pid)
        for one in processes:
            os.kill(one, signal.SIGSTOP)
        for batch in batches[1:]:
            send(app, batch)
        for one in processes:
            os.kill(one, signal.SIGCONT)
        _wait_for(lambda: left() <= count + WARM_UP)
        began, used = left(), _cpu_s(*processes)
        _wait_for(lambda: left() <= WARM_UP)
        return (_cpu_s(*processes) - used) / (began - left()) * MS
    finally:
        process.terminate()
        process.wait()
        job_store.redis.flushdb()
        job_store.close()
        app.close()


def _posters(batch: int) -> tuple[Poster, ...]:
    names = [f"collection/season-{batch:03}/poster-{number:06}.jpg" for number in range(POSTERS)]
    return tuple(Poster(name, name, 250_000 + batch, 1_700_000_000_000_000_000 + batch) for name in names)


def _each(items: Iterable[Any], step: Callable[[Any], object]) -> float:
    took = []
    for item in items:
        began = time.perf_counter()
        step(item)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * MS


def _embed(producer: Producer, names: list[str]) -> float:
    """Embed every poster once; images per second."""
    began = time.perf_counter()
    progress = producer.enqueue(names).wait()
    if progress.embedded != len(names):
        raise click.ClickException(f"the job did not embed all: {progress}")
    return len(names) / (time.perf_counter() - began)


def _through_worker(producer: Producer, worker: str, count: int) -> dict[str, float]:
    """Milliseconds per batch through the worker when there is nothing to embed, and the store's share."""
    entry = producer.registry.find(worker)
    if entry is None:
        raise click.ClickException("the worker is gone")
    child = int(entry.get("pid"))
    parent = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    names = sorted(path.name for path in producer.settings.root.iterdir())[:POSTERS]
    posters = [
        Poster(name, name, (s := (producer.settings.root / name).stat()).st_size, s.st_mtime_ns) for name in names
    ]
    for process in (parent, child):
        os.kill(process, signal.SIGSTOP)  # until all batches are queued, so that the producer is not measured
    job = producer.begin()
    for _ in producer.feed(job, chain.from_iterable([posters] * (count + 2 * WARM_UP))):
        pass
    for process in (parent, child):
        os.kill(process, signal.SIGCONT)
    _wait_for(lambda: job.progress().settled >= WARM_UP * POSTERS)
    settled, began, used = job.progress().settled, time.perf_counter(), _cpu_s(parent, child)
    _wait_for(lambda: job.progress().settled >= (count + WARM_UP) * POSTERS)
    done = (job.progress().settled - settled) / POSTERS
    clock, processor = time.perf_counter() - began, _cpu_s(parent, child) - used
    job.wait()
    return {
        "clock_ms": round(clock / done * MS, 2),
        "processor_ms": round(processor / done * MS, 2),
        "store_ms": round(_store_ms(producer, names), 2),
    }


def _cpu_s(*processes: int) -> float:
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _store_ms(producer: Producer, names: list[str]) -> float:
    """Milliseconds of CPU time for the store query of such a batch."""
    store, repetitions = producer.store(), 50
    space = store.current() or ""
    began = time.process_time()
    for _ in range(repetitions):
        store.rows(space, names)
    took = time.process_time() - began
    store.close()
    return took / repetitions * MS


def _wait_for(condition: Callable[[], bool], within_s: float = 300.0) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > ends:
            raise click.ClickException("the worker did not finish in time")
        time.sleep(0.02)


if __name__ == "__main__":
    main(prog_name="python -m bench.delivery")
