"""CLIPEmbedder in process: all of it, decoding only, or the model only (``python -m bench.entrants.ours PART``)."""

from __future__ import annotations

import logging
import sys
from collections import deque
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

import torch

from bench.entrants.serve import Config, Run, serve
from producer.files import read_file
from producer.host import usable_cores
from worker.clip_embedder import CLIPEmbedder
from worker.images.decode import Geometry, decode
from worker.model.threads import one_core_threads


def _embedder(config: Config) -> CLIPEmbedder:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    embedder = CLIPEmbedder(
        "ViT-B/32",
        config["device"],
        pretrained=config["checkpoint"],
        quick_gelu=False,
        batch_size=config["ours_batch"],
        precision=config["precision"],
    )
    embedder.warm_up()
    return embedder


def _about(embedder: CLIPEmbedder) -> dict[str, str]:
    return dict(embedder.provenance) | {"batch": str(embedder.chunk), "space": embedder.space.id}


def whole(config: Config) -> tuple[Run, dict[str, str]]:
    """From files to vectors."""
    embedder = _embedder(config)

    def run(job: dict[str, Any]) -> Any:
        found = embedder.embed_paths(job["paths"], embedder.chunk)
        assert not found.failures
        return lambda: found.vectors

    return run, _about(embedder)


def model_only(config: Config) -> tuple[Run, dict[str, str]]:
    """The model on as many images as the job has, of random pixels."""
    embedder = _embedder(config)
    shape = (embedder.chunk, 3, embedder.geometry.height, embedder.geometry.width)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    if embedder.device.type == "cuda":
        pixels = pixels.pin_memory()

    def run(job: dict[str, Any]) -> Any:
        left, pending = len(job["paths"]), deque[Any]()
        while left > 0:
            pending.append(embedder.submit(pixels[: min(left, embedder.chunk)]))
            left -= embedder.chunk
            if len(pending) > 1:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
        return lambda: None

    return run, _about(embedder)


def decode_only(config: Config) -> tuple[Run, dict[str, str]]:
    """Read, digest and decode to the model's size, on all cores, without the model."""
    geometry = Geometry(224, 224)
    pool = one_core_threads(usable_cores(), "decode")

    def one(path: str) -> None:
        decode(read_file(path, max_bytes=100_000_000).data, geometry, name=path)

    def run(job: dict[str, Any]) -> Any:
        futures: list[Future[None]] = [pool.submit(one, path) for path in job["paths"]]
        for future in futures:
            future.result()
        return lambda: None

    return run, {name: version(name) for name in ("torch", "pillow")}


if __name__ == "__main__":
    serve({"whole": whole, "model-only": model_only, "decode-only": decode_only}[sys.argv[1]])
