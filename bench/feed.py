"""Can this worker feed a fast card? Its pipeline before a device that answers at once: ``python -m bench.feed``.

Loader, pipeline and SQLite store are the worker's own; only the model is missing. Per kind of poster, with one and with
two decode threads, in turn:

- posters/s and CPU per poster (all threads), beside the bare decoder and resize of the same run;
- the time under Python's lock: CPU without that of the C calls that release the lock (HEAVY, LIGHT), both of one run in
  which these are timed. Whatever is not known to release it counts as under it, so that the figure is an upper bound;
- what 8, 16 and 32 cores would reach by Amdahl's law, with the time under the lock as the serial part;
- as a check of both: a run with SIMULATED threads in which decoder and resize sleep for as long as they take. What
  keeps its posters/s down is the lock, its handing over, and what is left to compute on the cores of this machine.

With ``--device cpu`` or ``cuda`` a ViT-B/32 with random weights takes the place of the missing model.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import statistics
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import click
import numpy as np
import simplejpeg
import torch
from PIL import Image
from PIL.WebPImagePlugin import _webp  # type: ignore[attr-defined]
from torch.nn import functional

from bench.machine import machine
from bench.posters import drawing
from producer.embedding import Space, Vectors
from producer.queue.messages import EmbedBatch, Poster
from producer.settings import Settings
from producer.vectors import open_store
from worker.images.decode import Geometry
from worker.images.zero_copy import channels_last
from worker.model.inference import EmbeddedChunk, Pending
from worker.pipeline.pipeline import Pipeline
from worker.pipeline.protocols import Embedder

CORES: Final = (8, 16, 32)
SIMULATED: Final = 16  # decode threads of the check; more than that many only wait for the two cores of a small machine
DRAWINGS: Final = 8
WARM_UP: Final = 256  # posters before the measured ones: a batch, with which the memory of chunks is mapped
MARGIN: Final = 2  # a JPEG is decoded at a fraction of its size that is at least twice the model's
SPACE: Final = Space("none", "0" * 32, "gelu", "224", 512)


@dataclass(frozen=True)
class Kind:
    """A kind of poster file; `count` of them take about a second."""

    label: str
    width: int
    height: int
    format: str
    count: int
    options: dict[str, Any] = field(default_factory=dict)
    colors: int = 0  # of a palette


KINDS: Final = {
    "small": Kind("JPEG 256×384", 256, 384, "JPEG", 768, {"quality": 88}),
    "cover": Kind("JPEG 460×650", 460, 650, "JPEG", 384, {"quality": 88}),
    "large": Kind("JPEG 1000×1500", 1000, 1500, "JPEG", 128, {"quality": 88}),
    "progressive": Kind("JPEG progr. 460×650", 460, 650, "JPEG", 192, {"quality": 88, "progressive": True}),
    "png": Kind("PNG 460×650", 460, 650, "PNG", 192),
    "palette": Kind("PNG palette 460×650", 460, 650, "PNG", 192, colors=128),
    "webp": Kind("WebP 460×650", 460, 650, "WEBP", 192, {"quality": 85}),
}


class NoModel:
    """In place of the model: vectors that were drawn before, at once."""

    space, geometry, chunk, device = SPACE, Geometry(224, 224), 64, torch.device("cpu")
    provenance: Final = {"device": "none"}
    canary = None

    def __init__(self) -> None:
        drawn = np.random.default_rng(0).standard_normal((4096, SPACE.dimension)).astype(np.float32)
        self._vectors: Vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def submit(self, pixels: torch.Tensor, *, urgent: bool = False) -> Pending:
        return Pending(lambda: EmbeddedChunk(self._vectors[: len(pixels)], {}))


class Calls:
    """The C calls that release the lock: timed, or asleep for the time that they took when they were timed."""

    def __init__(self, posters: int) -> None:
        """`posters`: in a run."""
        self._posters, self._lock = posters, threading.Lock()
        self._seconds: dict[str, list[float]] = {}  # kind of call → CPU seconds and number
        self._results: dict[object, Any] = {}

    @property
    def seconds(self) -> float:
        """CPU seconds per poster of all calls that were timed."""
        return sum(seconds for seconds, _ in self._seconds.values()) / self._posters

    @contextmanager
    def timed(self) -> Iterator[None]:
        """While the block runs, all of them are timed."""
        self._seconds.clear()
        with _replaced(self._timed, {**HEAVY, **LIGHT}):
            yield

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """While the block runs, decoder and resize compute each size once, and then only sleep."""
        with _replaced(self._asleep, HEAVY):
            yield

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        spent = self._seconds.setdefault(name, [0.0, 0])

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                used = time.thread_time() - began
                with self._lock:
                    spent[0] += used
                    spent[1] += 1

        return timed

    def _asleep(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        seconds, count = self._seconds.get(name) or (0.0, 0)

        def asleep(*arguments: Any, **options: Any) -> Any:
            key = name, getattr(arguments[0], "shape", None) if arguments else None
            if name == "pillow":  # called block by block: asleep once for the whole image, which then counts as decoded
                time.sleep(seconds / self._posters)
                return -1, 0
            if key not in self._results:
                self._results[key] = call(*arguments, **options)
            else:
                time.sleep(seconds / count if count else 0)
            return self._results[key]

        return asleep


# Names of the calls → where they are found; of decoders, where they are made.
HEAVY: Final = {
    "resize": (functional, "interpolate"),
    "pillow": (Image, "_getdecoder"),
    "webp": (_webp, "WebPAnimDecoder"),
    "jpeg": (simplejpeg, "decode_jpeg"),
}
LIGHT: Final = {
    "read": (os, "read"),
    "digest": (hashlib, "sha256"),
    "checksum": (zlib, "crc32"),
    "copy": (torch.Tensor, "copy_"),
}


@contextmanager
def _replaced(
    wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]], calls: dict[str, tuple[Any, str]]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name, (owner, attribute) in calls.items():
            original = getattr(owner, attribute)
            is_maker = name in ("pillow", "webp")
            changed = partial(_Decoder, name, original, wrap) if is_maker else wrap(name, original)
            stack.enter_context(mock.patch.object(owner, attribute, changed))
        yield


class _Decoder:
    """One of Pillow's decoders, whose work is done in C without the lock."""

    def __init__(self, name: str, make: Callable[..., Any], wrap: Callable[..., Any], *arguments: Any) -> None:
        self._decoder = make(*arguments)
        for method in ("decode", "get_next"):
            if hasattr(self._decoder, method):
                setattr(self, method, wrap(name, getattr(self._decoder, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


@dataclass(frozen=True)
class Run:
    """One run of the pipeline."""

    wall_s: float  # per poster
    cpu_s: float  # per poster


class Feed:
    """The pipeline over files of one kind."""

    def __init__(self, root: Path, names: Sequence[str], embedder: Embedder, batch: int) -> None:
        self._root, self._names, self._embedder, self._batch = root, names, embedder, batch

    def run(self, threads: int, wrapped: Callable[[], Any] | None = None) -> Run:
        """Feed all posters but the first WARM_UP into an empty store, and those before."""
        with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder:
            store = open_store(f"sqlite:{folder}/vectors.db")
            settings = Settings(root=self._root, decode_threads=threads)
            pipeline = Pipeline(self._embedder, store, settings)
            with closing(store), closing(pipeline):
                self._feed(pipeline, self._names[:WARM_UP])
                with ExitStack() as stack:
                    if wrapped:
                        stack.enter_context(wrapped())
                    began, cpu = time.perf_counter(), time.process_time()
                    self._feed(pipeline, self._names[WARM_UP:])
                    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Run(wall / (len(self._names) - WARM_UP), cpu / (len(self._names) - WARM_UP))

    def _feed(self, pipeline: Pipeline, names: Sequence[str]) -> None:
        for start in range(0, len(names), self._batch):
            part = names[start : start + self._batch]
            posters = tuple(Poster(name, name, -1, -1) for name in part)
            outcome = pipeline.run(EmbedBatch("feed", f"feed.{start}", posters))
            if outcome.embedded != len(part):
                raise click.ClickException(f"{outcome.summary()} instead of {len(part)} embedded")


def measure(kind: Kind, root: Path, embedder: Embedder, rounds: int, batch: int) -> dict[str, Any]:
    """The figures of a kind; milliseconds per poster, posters per second."""
    names = write(kind, root)
    feed = Feed(root, names, embedder, batch)
    files = [(root / name).read_bytes() for name in names[:: max(1, len(names) // 64)]]
    calls = Calls(kind.count)
    one, two, alone, locked = [], [], [], []
    for _ in range(rounds):
        alone.append(bare(kind, files))
        one.append(feed.run(1))
        two.append(feed.run(2))
        locked.append(feed.run(1, calls.timed).cpu_s - calls.seconds)
    check = feed.run(SIMULATED, calls.asleep)
    cpu, decoder = statistics.median(run.cpu_s for run in one), statistics.median(alone)
    lock = min(statistics.median(locked), cpu)  # measured in other runs, in which all may have been slower
    return {
        "kind": kind.label,
        "kilobytes": round(statistics.mean(map(len, files)) / 1000),
        "one_thread_per_s": round(1 / statistics.median(run.wall_s for run in one)),
        "two_threads_per_s": round(1 / statistics.median(run.wall_s for run in two)),
        "two_to_one": round(statistics.median(a.wall_s / b.wall_s for a, b in zip(one, two, strict=True)), 2),
        "cpu_ms": round(1000 * cpu, 3),
        "decoder_and_resize_ms": round(1000 * decoder, 3),
        "cpu_to_decoder": round(statistics.median(a.cpu_s / b for a, b in zip(one, alone, strict=True)), 2),
        "locked_ms": round(1000 * lock, 3),
        **{f"cores_{count}_per_s": round(1 / (lock + (cpu - lock) / count)) for count in CORES},
        f"simulated_{SIMULATED}_threads_per_s": round(1 / check.wall_s),
    }


def bare(kind: Kind, files: Sequence[bytes]) -> float:
    """CPU seconds per file of the bare decoder and resize: libjpeg-turbo's at the size that the worker decodes a JPEG
    to, and Pillow's of other formats."""
    scale = 224 / min(kind.width, kind.height)
    wanted = round(kind.height * scale), round(kind.width * scale)
    began = time.thread_time()
    for data in files:
        if kind.format == "JPEG":
            least = (wanted[0] * MARGIN, wanted[1] * MARGIN) if scale * MARGIN <= 1 else (0, 0)
            found = simplejpeg.decode_jpeg(data, "RGBX", min_height=least[0], min_width=least[1], min_factor=2)
        else:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                found = np.array(image if image.mode == "RGB" else image.convert("RGB"))
        pixels = channels_last(torch.from_numpy(found))
        functional.interpolate(pixels, wanted, mode="bicubic", antialias=True)
    return (time.thread_time() - began) / len(files)


def write(kind: Kind, root: Path) -> list[str]:
    """Write files with different contents that cost the decoder the same; returns their names."""
    root.mkdir(parents=True)
    drawn = []
    for seed in range(DRAWINGS):
        image = drawing(kind.width, kind.height, seed)
        buffer = io.BytesIO()
        (image.quantize(kind.colors) if kind.colors else image).save(buffer, kind.format, **kind.options)
        drawn.append(buffer.getvalue())
    names = []
    for number in range(WARM_UP + kind.count):
        data, name = drawn[number % DRAWINGS], f"{number:05}.{kind.format.lower()}"
        data = _cut_idat(data, number) if kind.format == "PNG" else data + f"poster {number}".encode()
        (root / name).write_bytes(data)
        names.append(name)
    return names


def _cut_idat(data: bytes, number: int) -> bytes:
    """A PNG whose first IDAT chunk is cut in two at another place for each number: the same picture, another file."""
    at = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, at)
    body, cut = data[at + 8 : at + 8 + length], 100 + number
    parts = (struct.pack(">I", len(part)) + b"IDAT" + part + struct.pack(">I", zlib.crc32(b"IDAT" + part))
             for part in (body[:cut], body[cut:]))  # fmt: skip
    return data[:at] + b"".join(parts) + data[at + 12 + length :]


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: python -m bench.feed --kind small"
)
@click.option("--kind", "kinds", multiple=True, type=click.Choice([*KINDS]), help="Only these; may be repeated.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each, in turn; medians count.")
@click.option("--batch", default=256, show_default=True, help="Posters per message of the queue.")
@click.option("--device", default="none", show_default=True, help="none, cpu, cuda, cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per kind.")
def main(kinds: Sequence[str], rounds: int, batch: int, device: str, as_json: bool) -> None:
    """Measure how fast a worker can feed its device."""
    torch.set_num_threads(1)
    embedder = NoModel() if device == "none" else _model(device)
    if not as_json:
        click.echo(f"{machine()['processor']}, {machine()['cores']} cores; per poster; device: {device}")
        click.echo(HEAD)
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder:
        for name in kinds or KINDS:
            found = measure(KINDS[name], Path(folder, name), embedder, rounds, batch)
            click.echo(
                json.dumps(found)
                if as_json
                else LINE.format(**found, check=found[f"simulated_{SIMULATED}_threads_per_s"])
            )


HEAD: Final = (
    "                      decoder+   CPU                under   one     two threads     8       16      32   "
    f"{SIMULATED:6} simulated\n"
    "                      resize ms  ms    CPU÷decoder  lock ms posters/s        ÷ one  cores, by Amdahl       threads"
)
LINE: Final = (
    "{kind:21} {decoder_and_resize_ms:8.3f} {cpu_ms:7.3f} {cpu_to_decoder:7.2f} {locked_ms:10.3f} {one_thread_per_s:8}"
    " {two_threads_per_s:8} {two_to_one:6.2f} {cores_8_per_s:7} {cores_16_per_s:7} {cores_32_per_s:7} {check:9}"
)


def _model(device: str) -> Embedder:
    from worker.clip_embedder import CLIPEmbedder

    embedder = CLIPEmbedder(device=device, pretrained="untrained", batch_size="auto")
    embedder.warm_up()
    return embedder


if __name__ == "__main__":
    main(prog_name="python -m bench.feed")
