"""The command ``python -m worker.clip_embedder``: embeds sample posters, without queue or store."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from producer.errors import PosterError
from producer.output import emit, notify
from producer.settings import load_settings

SAMPLE = "steins_gate.png"


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  python -m worker.clip_embedder --pretrained untrained --device cpu",
)
@click.option("--model", help="Any open_clip model (default: ViT-B/32).")
@click.option("--pretrained", help="A tag, a checkpoint file, or `untrained` (default: openai).")
@click.option("--device", help="auto, cpu, cuda, cuda:N (default: auto).")
@click.pass_obj
def demo(embedder_class: Any, model: str | None, pretrained: str | None, device: str | None) -> None:
    """Embed one sample poster, then a small batch; print shapes, norms, device and precision."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("httpx", "huggingface_hub", "root"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        settings = load_settings(model_name=model, pretrained=pretrained, device=device)
        _run(settings.root, embedder_class.from_settings(settings))
    except PosterError as error:
        notify(f"error: {error}")
        notify("to run it without weights: python -m worker.clip_embedder --pretrained untrained")
        sys.exit(2)


def _run(root: Path, embedder: Any) -> None:
    emit(f"model      {embedder.space.model}, {embedder.space.activation}, space {embedder.space.id}")
    emit(f"device     {embedder.device_name}, precision {embedder.precision}")
    vector = embedder.embed_image(root / SAMPLE)
    emit(f"{SAMPLE}  shape {vector.shape}  dtype {vector.dtype}  norm {np.linalg.norm(vector):.6f}")
    batch = sorted(path for path in root.iterdir() if path.suffix in (".png", ".jpg", ".webp", ".jfif"))[:8]
    began = time.perf_counter()
    vectors = embedder.embed_batch(batch)
    seconds = time.perf_counter() - began
    norms = np.linalg.norm(vectors, axis=1)
    emit(f"batch of {len(batch)}  shape {vectors.shape}  norms {norms.min():.6f} to {norms.max():.6f}")
    emit(f"{len(batch) / seconds:.1f} images per second in this first, small batch")
