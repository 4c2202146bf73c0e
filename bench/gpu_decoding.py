"""JPEG decoding on the GPU (nvJPEG, through torchvision) against CPU threads: ``python -m bench.gpu_decoding``.

Three methods on the same files, in turn within one run: our decode threads; nvJPEG with a resize on the
device; and both at once, taking chunks from one queue. The vectors are compared with those of our decode
threads, which bench.images compares with the reference.
With ``--device cpu`` torchvision decodes on the CPU, which only tests this program.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from bench.posters import write_jpegs
from producer.embedding import Vectors
from producer.errors import ConfigurationError
from producer.host import usable_cores
from worker.clip_embedder import CLIPEmbedder
from worker.images.decode import decode
from worker.images.resize import scale_to

CHUNK: Final = 64
MIN_COSINE: Final = 0.9995  # least cosine to the reference for every decoding method


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", default=1024, show_default=True, help="JPEG files.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each method, in turn.")
@click.option("--size", type=(int, int), default=(1000, 1500), show_default=True, help="Width and height.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:N, or cpu to test this program.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(images: int, rounds: int, size: tuple[int, int], device: str, as_json: bool) -> None:
    """Compare decoding JPEG on the GPU with CPU threads."""
    logging.getLogger().setLevel(logging.ERROR)
    try:
        embedder = CLIPEmbedder(device=device, pretrained="untrained", batch_size=CHUNK)
    except ConfigurationError as error:
        raise click.ClickException(f"nothing to compare: {error}") from error
    embedder.warm_up()
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as folder:
        files = [path.read_bytes() for path in write_jpegs(Path(folder), images, *size)]
    run = _Methods(embedder)
    methods: dict[str, Callable[[Sequence[bytes]], Vectors]] = {
        "CPU threads": run.threads,
        "on the device": run.device,
        "both": run.both,
    }
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    lowest = dict.fromkeys(methods, 1.0)
    expected = run.threads(files)
    for _ in range(rounds):
        for name, method in methods.items():
            began = time.perf_counter()
            found = method(files)
            speeds[name].append(len(files) / (time.perf_counter() - began))
            lowest[name] = min(lowest[name], float((found * expected).sum(axis=1).min()))
    base = statistics.median(speeds["CPU threads"])
    result = {
        name: {
            "images_per_second": round(statistics.median(speeds[name]), 1),
            "ratio": round(statistics.median(speeds[name]) / base, 2),
            "lowest_cosine": round(lowest[name], 6),
        }
        for name in methods
    }
    if as_json:
        click.echo(json.dumps({"device": embedder.device_name, "cores": usable_cores(), "methods": result}))
        return
    click.echo(f"{images} JPEGs of {size[0]}×{size[1]}, {embedder.device_name}, {usable_cores()} cores, to the vectors")
    for name, row in result.items():
        verdict = "" if row["lowest_cosine"] >= MIN_COSINE else f"   below {MIN_COSINE}: not the same vectors"
        click.echo(
            f"  {name:14} {row['images_per_second']:9.1f} images/s {row['ratio']:6.2f} ×  "
            f"lowest cosine {row['lowest_cosine']:.6f}{verdict}"
        )


class _Methods:
    """Each method takes files and returns their vectors, float32 (N, dimension), in order."""

    def __init__(self, embedder: CLIPEmbedder) -> None:
        """Decodes for the device of `embedder`."""
        self._embedder, self._geometry = embedder, embedder.geometry
        self._readers = ThreadPoolExecutor(usable_cores())
        self._model = threading.Lock()  # an embedder may be used by one thread at a time

    def threads(self, files: Sequence[bytes]) -> Vectors:
        return self._drain(files, [self._decoded_by_threads])

    def device(self, files: Sequence[bytes]) -> Vectors:
        return self._drain(files, [self._decoded_on_device])

    def both(self, files: Sequence[bytes]) -> Vectors:
        return self._drain(files, [self._decoded_by_threads, self._decoded_on_device])

    def _drain(self, files: Sequence[bytes], decoders: Sequence[Callable[[Sequence[bytes]], torch.Tensor]]) -> Vectors:
        """Two threads per decoder take chunks from one queue: one decodes while the other embeds."""
        found = np.empty((len(files), self._embedder.dimension), np.float32)
        starts = iter(range(0, len(files), CHUNK))
        lock = threading.Lock()

        def work(decoder: Callable[[Sequence[bytes]], torch.Tensor]) -> None:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                pixels = decoder(files[start : start + CHUNK])
                with self._model:
                    found[start : start + CHUNK] = self._embedder.embed_pixels(pixels).vectors

        with ThreadPoolExecutor(2 * len(decoders)) as pool:
            for done in [pool.submit(work, decoder) for decoder in decoders for _ in range(2)]:
                done.result()
        return found

    def _decoded_by_threads(self, files: Sequence[bytes]) -> torch.Tensor:
        return torch.stack(list(self._readers.map(lambda data: decode(data, self._geometry, name="bench"), files)))

    def _decoded_on_device(self, files: Sequence[bytes]) -> torch.Tensor:
        raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        decoded = decode_jpeg(raw, mode=ImageReadMode.RGB, device=str(self._embedder.device))
        return torch.stack([self._resized(image) for image in decoded])

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        """Resize the shorter side to the model's, then crop the center, like worker.images.resize."""
        height, width = image.shape[1:]
        scale = scale_to(width, height, self._geometry)
        size = max(self._geometry.height, int(height * scale)), max(self._geometry.width, int(width * scale))
        # CUDA resizes only floating point; rounded and clipped, the result equals that of the CPU for bytes
        numbers = functional.interpolate(image.unsqueeze(0).float(), size, mode="bicubic", antialias=True)
        top, left = round((size[0] - self._geometry.height) / 2), round((size[1] - self._geometry.width) / 2)
        cut = numbers[0, :, top : top + self._geometry.height, left : left + self._geometry.width]
        return cut.round().clamp(0, 255).to(torch.uint8)


if __name__ == "__main__":
    main(prog_name="python -m bench.gpu_decoding")
