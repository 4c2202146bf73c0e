"""Throughput of the model alone in several variants: ``python -m bench.variants``.

OpenClipEncoder ("plain") and FastViT ("lean"), compiled, on a CPU in int8, and on CUDA as a captured graph. The
time to start is shown beside the gain, as the number of images after which the gain exceeds it.
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
from worker.model.parity import lowest_cosine, parity_images

Encoder = Callable[[torch.Tensor], torch.Tensor]

ROUNDS = 5  # variants run in turn; the median counts
MEASURED_S = 1.0  # per variant and round, at least one pass


@dataclass
class Variant:
    """An encoder ready to run, its start-up time, and the lowest cosine of its vectors to the first variant's."""

    name: str
    run: Encoder
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
@click.option("--threads", default=0, help="Cores that torch may use [default: torch's own].")
@torch.no_grad()
def main(device: str, sizes: tuple[int, ...], threads: int) -> None:
    """Measure the model alone, one variant after the other, in turn."""
    logging.getLogger().setLevel(logging.ERROR)
    chosen = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    fast = choose_precision("auto", chosen)
    for size in sizes or ((64, 256, 1024) if chosen.type == "cuda" else (64,)):
        pixels = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8).to(chosen)
        variants = list(_variants(chosen, dict.fromkeys(("fp32", fast)), pixels))
        rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
        for _ in range(ROUNDS):
            for variant in variants:
                rates[variant.name].append(_rate(variant.run, pixels))
        for variant in variants:
            variant.cosine = lowest_cosine(_vectors(variant, pixels.device), _vectors(variants[0], pixels.device))
        best = {name: sorted(values)[ROUNDS // 2] for name, values in rates.items()}
        default = best[f"{fast} lean"]
        click.echo(f"chunks of {size} on {chosen}, {torch.get_num_threads()} thread(s), median of {ROUNDS}")
        for variant in variants:
            rate, start_s = best[variant.name], variant.start_s
            gain_s = 1 / default - 1 / rate  # per image
            pays = f"pays after {start_s / gain_s:,.0f} images" if rate > 1.01 * default else ""
            speed = f"{rate:10.1f} images/s  {rate / default:6.2f} ×"
            click.echo(f"  {variant.name:16}{speed}  {start_s:6.1f} s to start  {pays}")


def _variants(device: torch.device, precisions: dict[str, None], pixels: torch.Tensor) -> list[Variant]:
    variants = []
    torch.manual_seed(0)
    tower: Any = open_clip.create_model("ViT-B-32", pretrained=None).visual.eval().requires_grad_(False)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD) * 255
    for precision in precisions:
        dtype = PRECISIONS[precision]
        plain = OpenClipEncoder(copy.deepcopy(tower), mean, std, device, dtype)
        lean = FastViT(tower, mean, std, device, dtype)
        variants += [_started(f"{precision} plain", plain, pixels), _started(f"{precision} lean", lean, pixels)]
        if precision == "fp32":
            continue
        for name, run in (("plain", plain), ("lean", lean)):
            try:
                variants.append(_started(f"{precision} {name}, compiled", torch.compile(run.__call__), pixels))
            except Exception as error:  # noqa: BLE001  the compiler raises many kinds of errors
                click.echo(f"  {precision} {name} does not compile here: {str(error).splitlines()[0][:150]}", err=True)
        if device.type == "cpu":
            int8 = FastViT(tower, mean, std, device, dtype, Int8Linear)
            variants.append(_started("int8 lean", int8, pixels))
        if device.type == "cuda":
            variants.append(_captured(f"{precision} lean, graph", lean, pixels))
    return variants


def _started(name: str, run: Encoder, pixels: torch.Tensor) -> Variant:
    began = time.perf_counter()
    for _ in range(3):
        run(pixels)
    _wait(pixels.device)
    return Variant(name, run, time.perf_counter() - began, len(pixels))


def _captured(name: str, run: Encoder, pixels: torch.Tensor) -> Variant:
    """A CUDA graph: launches all kernels for chunks of one shape at once."""
    began = time.perf_counter()
    _started(name, run, pixels)
    graph, buffer = torch.cuda.CUDAGraph(), pixels.clone()
    with torch.cuda.graph(graph):
        result = run(buffer)

    def replay(chunk: torch.Tensor) -> torch.Tensor:
        buffer.copy_(chunk)
        graph.replay()
        return result

    return Variant(name, replay, time.perf_counter() - began, len(pixels))


def _vectors(variant: Variant, device: torch.device) -> Vectors:
    """Vectors of the parity images, repeated to fill a chunk of the variant's size."""
    images = parity_images(Geometry(224, 224))
    pixels = images.repeat(variant.size // len(images), 1, 1, 1).to(device)
    vectors: Vectors = variant.run(pixels)[: len(images)].cpu().numpy()
    return vectors


def _rate(run: Encoder, pixels: torch.Tensor) -> float:
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
