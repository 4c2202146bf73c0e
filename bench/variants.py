"""Ways to run the model alone: plain, lean, compiled, on a CPU in int8, on CUDA as a captured graph; by chunk.

``python -m bench.variants``. Whether a way pays is a matter of the whole job: what it takes to start is shown
beside what it gains, as the number of images after which the gain has paid for the start.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import open_clip
import torch

from bench.int8 import Int8Linear
from producer.embedding import Vectors
from worker.images.decode import Geometry
from worker.model.device import PRECISIONS, choose_device, choose_precision
from worker.model.encoder import FastViT, OpenClipEncoder
from worker.model.parity import lowest_cosine, probe

Tower = Callable[[torch.Tensor], torch.Tensor]

ROUNDS = 5  # in turn; the median counts
MEASURED_S = 1.0  # per way and round, at least one pass


@dataclass
class Way:
    """A tower that is ready, what it took to get there, and how near its vectors are to the first way's."""

    name: str
    run: Tower
    start_s: float
    size: int
    cosine: float = 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: python -m bench.variants")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=int,
    help="Images per chunk, a multiple of 4; several [default: 64, on a card 64 to 1024].",
)
@click.option("--threads", default=0, help="Cores that torch may use [default: as it likes].")
@torch.no_grad()
def main(device: str, sizes: tuple[int, ...], threads: int) -> None:
    """Images per second of the model alone, one way after the other, in turn."""
    logging.getLogger().setLevel(logging.ERROR)
    chosen = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    fast = choose_precision("auto", chosen)
    for size in sizes or ((64, 256, 1024) if chosen.type == "cuda" else (64,)):
        pixels = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8).to(chosen)
        ways = list(_ways(chosen, dict.fromkeys(("fp32", fast)), pixels))
        rates: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(ROUNDS):
            for way in ways:
                rates[way.name].append(_rate(way.run, pixels))
        for way in ways:
            way.cosine = lowest_cosine(_vectors(way, pixels.device), _vectors(ways[0], pixels.device))
        best = {name: sorted(values)[ROUNDS // 2] for name, values in rates.items()}
        usual = best[f"{fast} lean"]
        click.echo(f"chunks of {size} on {chosen}, {torch.get_num_threads()} thread(s), median of {ROUNDS}")
        for way in ways:
            rate = best[way.name]
            pays = f"pays after {way.start_s / (1 / usual - 1 / rate):,.0f} images" if rate > 1.01 * usual else ""
            click.echo(
                f"  {way.name:16}{rate:10.1f} images/s  {rate / usual:6.2f} ×  {way.start_s:6.1f} s to start  {pays}"
            )


def _ways(device: torch.device, precisions: dict[str, None], pixels: torch.Tensor) -> list[Way]:
    ways = []
    torch.manual_seed(0)
    tower: Any = open_clip.create_model("ViT-B-32", pretrained=None).visual.eval().requires_grad_(False)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD) * 255
    for precision in precisions:
        dtype = PRECISIONS[precision]
        plain = OpenClipEncoder(copy.deepcopy(tower), mean, std, device, dtype)
        lean = FastViT(tower, mean, std, device, dtype)
        ways += [_started(f"{precision} plain", plain, pixels), _started(f"{precision} lean", lean, pixels)]
        if precision == "fp32":
            continue
        for name, run in (("plain", plain), ("lean", lean)):
            try:
                ways.append(_started(f"{precision} {name}, compiled", torch.compile(run.__call__), pixels))
            except Exception as error:  # noqa: BLE001  the compiler fails in many ways, and all mean: not here
                click.echo(f"  {precision} {name} does not compile here: {str(error).splitlines()[0][:150]}", err=True)
        if device.type == "cpu":
            int8 = FastViT(tower, mean, std, device, dtype, Int8Linear)
            ways.append(_started("int8 lean", int8, pixels))
        if device.type == "cuda":
            ways.append(_captured(f"{precision} lean, graph", lean, pixels))
    return ways


def _started(name: str, run: Tower, pixels: torch.Tensor) -> Way:
    began = time.perf_counter()
    for _ in range(3):
        run(pixels)
    _wait(pixels.device)
    return Way(name, run, time.perf_counter() - began, len(pixels))


def _captured(name: str, run: Tower, pixels: torch.Tensor) -> Way:
    """A CUDA graph: all kernels of a chunk of one shape, launched at once."""
    began = time.perf_counter()
    _started(name, run, pixels)
    graph, held = torch.cuda.CUDAGraph(), pixels.clone()
    with torch.cuda.graph(graph):
        result = run(held)

    def replay(chunk: torch.Tensor) -> torch.Tensor:
        held.copy_(chunk)
        graph.replay()
        return result

    return Way(name, replay, time.perf_counter() - began, len(pixels))


def _vectors(way: Way, device: torch.device) -> Vectors:
    """Of the fixed probe, edges, gradients and noise, as often as fills the chunk that the way was made for."""
    images = probe(Geometry(224, 224))
    found: Vectors = way.run(images.repeat(way.size // len(images), 1, 1, 1).to(device))[: len(images)].cpu().numpy()
    return found


def _rate(run: Tower, pixels: torch.Tensor) -> float:
    passes, began = 0, time.perf_counter()
    while time.perf_counter() - began < MEASURED_S:
        run(pixels)
        passes += 1
        if passes % 8 == 0 or pixels.device.type == "cpu":
            _wait(pixels.device)
    _wait(pixels.device)
    return passes * len(pixels) / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(prog_name="python -m bench.variants")
