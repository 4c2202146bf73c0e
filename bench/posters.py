"""Generated posters for benchmarks: structured like printed art, no two files with the same content."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DRAWINGS = 32  # different pictures; more only take time to draw
PNG_DRAWINGS = 12  # each takes a second to compress


def drawing(width: int, height: int, seed: int) -> Image.Image:
    """An RGB picture with flat areas, gradients, edges and grain; about 250 kB as a JPEG of 1000×1500."""
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 256, (12, 8, 3), dtype=np.uint8))
    smooth = np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    flat = np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST)).astype(np.float32)
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    inside = (np.sin(across / (20 + seed)) + np.cos(down / (30 + seed)) > 0.4)[..., None]
    grain = random.normal(0, 3, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.where(inside, flat, smooth) + grain, 0, 255).astype(np.uint8))


def write_jpegs(folder: Path, count: int, width: int = 1000, height: int = 1500) -> list[Path]:
    """Write `count` JPEG files with different contents."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded = [_jpeg(drawing(width, height, seed)) for seed in range(min(count, DRAWINGS))]
    paths = []
    for number in range(count):
        path = folder / f"{number:05}.jpg"
        # bytes after the end of the picture: another content for the store, the same work for the decoder
        path.write_bytes(encoded[number % len(encoded)] + f"poster {number}".encode())
        paths.append(path)
    return paths


@dataclass(frozen=True)
class Kind:
    """A kind of poster file."""

    name: str
    width: int
    height: int
    suffix: str
    label: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("jpeg", 1000, 1500, "jpg", "JPEG 1000×1500"),
        Kind("small", 256, 384, "jpg", "JPEG 256×384"),
        Kind("png", 1000, 1500, "png", "PNG 1000×1500"),
    )
}


def write_posters(folder: Path, kind: Kind, count: int) -> list[Path]:
    """Write `count` files of a kind with different contents."""
    if kind.suffix == "jpg":
        return write_jpegs(folder, count, kind.width, kind.height)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [drawing(kind.width, kind.height, seed) for seed in range(min(count, PNG_DRAWINGS))]
    encoded = []
    for image in drawn:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    paths = []
    for number in range(count):
        path = folder / f"{number:05}.png"
        path.write_bytes(encoded[number % len(encoded)] + f"poster {number}".encode())
        paths.append(path)
    return paths


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, **options)
    return buffer.getvalue()
