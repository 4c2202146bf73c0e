"""Which image towers of open_clip work here: ``python -m bench.models`` prints the table of docs/models.md.

Each is built with random weights: size, dimension and preprocessing are the model's own, the cosine compares our
preprocessing with open_clip's through the same tower, and the speed is that of this machine. One at a time.
"""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from bench.machine import processor
from bench.posters import drawing
from worker.clip_embedder import CLIPEmbedder
from worker.model.weights import build, find_weights

# At least one of each family, the smallest first.
MODELS = (
    "RN50",
    "ViT-B-32",
    "convnext_tiny",
    "MobileCLIP-S1",
    "MobileCLIP2-S0",
    "PE-Core-T-16-384",
    "ViT-B-32-SigLIP2-256",
    "ViT-B-16-SigLIP",
    "EVA02-B-16",
    "ViTamin-S",
    "coca_ViT-B-32",
    "nllb-clip-base-siglip",
)
SIZES = ((1000, 1500), (1600, 900), (300, 420), (900, 900))  # of the images whose vectors are compared
IMAGES = 16  # per measurement of speed


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: python -m bench.models")
@click.argument("models", nargs=-1)
@click.option("--precision", default="fp32", show_default=True)
def main(models: tuple[str, ...], precision: str) -> None:
    """Load MODELS (default: one or more of each family) with random weights, and print a row for each."""
    logging.getLogger().setLevel(logging.ERROR)
    click.echo(f"{processor()}, {precision}, {torch.get_num_threads()} threads\n")
    click.echo("| model | parameters | dimension | preprocessing | mean, std | images/s | cosine to open_clip's |")
    click.echo("|---|---|---|---|---|---|---|")
    for name in models or MODELS:
        click.echo(row(name, precision))
        sys.stdout.flush()
        gc.collect()


@torch.no_grad()
def row(name: str, precision: str) -> str:
    """A row of the table; of a model that is refused, the reason."""
    try:
        embedder = CLIPEmbedder(name, "cpu", pretrained="untrained", precision=precision, batch_size=IMAGES)
    except Exception as error:  # noqa: BLE001 - the table says what happens
        return f"| {name} | | | {type(error).__name__}: {error} | | | |"
    model: Any = build(find_weights(name, "untrained"))
    encode = model.visual.eval()
    config = dict(encode.preprocess_cfg)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    parameters = sum(parameter.numel() for parameter in encode.parameters())
    with closing(embedder), tempfile.TemporaryDirectory() as folder:
        images = [drawing(*size, seed) for seed, size in enumerate(SIZES)]
        paths = [Path(folder, f"{number}.png") for number in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            image.save(path, compress_level=1)
        ours = embedder.embed_paths(paths).vectors
        theirs = torch.nn.functional.normalize(
            model.eval().encode_image(torch.stack([transform(image) for image in images])).float()
        )
        cosine = float(np.vecdot(ours, theirs.numpy()).min())
        geometry = embedder.geometry
        pixels = torch.zeros((IMAGES, 3, geometry.height, geometry.width), dtype=torch.uint8)
        began = time.perf_counter()
        embedder.embed_pixels(pixels)
        speed = IMAGES / (time.perf_counter() - began)
    size = f"{geometry.width}×{geometry.height} {geometry.resize_mode} {geometry.interpolation}"
    colors = "; ".join(", ".join(f"{value:.3g}" for value in config[key]) for key in ("mean", "std"))
    cells = (name, f"{parameters / 1e6:.0f} M", embedder.dimension, size, colors, f"{speed:.1f}", f"{cosine:.6f}")
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main(prog_name="python -m bench.models")
