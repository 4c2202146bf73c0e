"""Speed and memory of export, index, search and duplicates: ``python -m bench.reading``.

The vectors are random with the structure of real ones (a common direction and a falling spectrum), and one in a
hundred is a near copy of another. Commands run in processes of their own, so that their memory peaks are
separate.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from producer.embedding import Space, Vectors
from producer.search.index import Index
from producer.search.nearest import nearest
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row

DIMENSION: Final = 512
CHUNK: Final = 4096
SEARCHES: Final = 20
QUERIES: Final = 64
MAX_DUPLICATES_ROWS: Final = 100_000  # a million takes a hundred times as long: half an hour
SPACE: Final = Space("ViT-B-32", "drawn", "quick_gelu", "drawn", DIMENSION)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", multiple=True, type=int, default=[10_000, 100_000, 1_000_000], help="Vectors; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per size.")
def main(rows: Sequence[int], as_json: bool) -> None:
    """Measure commands that read the store, at several sizes; a million vectors need 5 GB of disk space."""
    for count in rows:
        found = measure(count)
        if as_json:
            click.echo(json.dumps(found))
            continue
        click.echo(f"{count:,} vectors of {DIMENSION} numbers")
        for name, value in found.items():
            click.echo(f"  {name:<28} {'-' if value is None else value}")


def measure(rows: int, folder: Path | None = None) -> dict[str, Any]:
    """Measure a store of `rows` vectors.

    Args:
        rows: number of vectors.
        folder: for the store and the exports, which are removed again; None: a temporary one.

    Returns:
        Times in the unit of their names, rates per second, memory peaks in MB; None where not measured.
    """
    with tempfile.TemporaryDirectory(prefix="posters-bench-", dir=folder) as name:
        base = Path(name)
        url = f"sqlite:{base / 'vectors.db'}"
        vectors, seconds = _filled(url, rows)
        found: dict[str, Any] = {"rows": rows, "store_rows_per_second": round(rows / seconds)}
        for format in ("npy", "parquet", "faiss"):
            took, peak, _ = _command(url, "export", str(base / format), "--format", format, "--json")
            found |= {f"export_{format}_s": took, f"export_{format}_peak_mb": peak}
        found["spaces_s"] = _command(url, "spaces", "--json")[0]
        found |= _duplicates(url, rows)
        found |= _search(url, vectors)
    return found


def _duplicates(url: str, rows: int) -> dict[str, Any]:
    took, peak, _ = _command(url, "duplicates", "--same-content", "--json")
    found: dict[str, Any] = {"same_content_s": took, "same_content_peak_mb": peak, "duplicates_s": None}
    if rows <= MAX_DUPLICATES_ROWS:
        took, peak, text = _command(url, "duplicates", "--json")
        groups = len(json.loads(text)["groups"])
        found |= {"duplicates_s": took, "duplicates_peak_mb": peak, "duplicates_groups": groups}
    return found


def _search(url: str, vectors: Vectors) -> dict[str, Any]:
    queries = vectors[np.random.default_rng(1).integers(0, len(vectors), QUERIES)]
    store = open_store(url)
    found: dict[str, Any] = {"store_search_s": round(_seconds(lambda: nearest(store, SPACE.id, queries[:1], 5)), 2)}
    store.close()
    began = time.perf_counter()
    index = Index.open(load_settings(store=url, catalogue="none"), refresh_s=None)
    found["index_load_s"] = round(time.perf_counter() - began, 2)
    times = sorted(_seconds(partial(index.search, query, 5, space=SPACE.id)) for query in queries[:SEARCHES])
    found["index_search_ms"] = round(1000 * statistics.median(times), 1)
    found["index_search_slowest_ms"] = round(1000 * times[-1], 1)
    together = _seconds(lambda: index.search(queries, 5, space=SPACE.id))
    found[f"index_search_of_{QUERIES}_ms_each"] = round(1000 * together / QUERIES, 1)
    refreshes = [_seconds(index.refresh) for _ in range(100)]
    found["index_refresh_us"] = round(1e6 * statistics.median(refreshes))
    index.close()
    return found


def _filled(url: str, rows: int) -> tuple[Vectors, float]:
    """Fill a store with `rows` vectors; returns the first few thousand, and the seconds that storing took."""
    random = np.random.default_rng(0)
    spectrum = (1 / np.sqrt(np.arange(1, DIMENSION + 1))).astype(np.float32)
    common = np.zeros(DIMENSION, np.float32)
    common[0] = 1.1 * np.sqrt((spectrum**2).sum())
    first = np.zeros((0, DIMENSION), np.float32)
    store = open_store(url)
    seconds = 0.0
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        drawn = random.standard_normal((count, DIMENSION), dtype=np.float32) * spectrum + common
        copies = count // 100
        if len(first):
            drawn[:copies] = first[:copies] + 0.0005 * random.standard_normal((copies, DIMENSION), dtype=np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        first = drawn if not len(first) else first
        ids = range(start, start + count)
        new = [Row(f"posters/{number % 997:03}/{number:08}.jpg", f"{number:064x}", 250_000, number) for number in ids]
        began = time.perf_counter()
        store.put(SPACE, new, drawn, {"device": "none", "precision": "fp32"})
        seconds += time.perf_counter() - began
    store.close()
    return first, seconds


def _command(url: str, *arguments: str) -> tuple[float, int | None, str]:
    """Seconds, memory peak in MB where the system reports it, and the output."""
    environment = os.environ | {"POSTERS_STORE": url, "POSTERS_CATALOGUE": "none"}
    command = [sys.executable, "-m", "producer", *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout:
        text = process.stdout.read()
    peak = None
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024
    if process.wait():
        raise click.ClickException(f"{' '.join(command)} ended with status {process.returncode}")
    return round(time.perf_counter() - began, 2), peak, text


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(prog_name="python -m bench.reading")
