"""The proof that a tower as it runs still is the embedding that its numbers mean: a fixed probe against fp32."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from worker.images import Geometry
from worker.vectors import Vectors

PROOF_IMAGES: Final = 4
PROOF_COSINE: Final = 0.999  # below it, a fast way is not the same embedding any more


def probe(geometry: Geometry) -> torch.Tensor:
    """Fixed images with edges, gradients and noise: uint8 (PROOF_IMAGES, 3, height, width)."""
    generator = np.random.default_rng(0)
    across = np.linspace(0, 255, geometry.width)[None, :]
    down = np.linspace(0, 255, geometry.height)[:, None]
    images = []
    for index in range(PROOF_IMAGES):
        waves = 127 + 127 * np.sin(across / (3 + 9 * index)) * np.cos(down / (5 + 7 * index))
        noise = generator.normal(0, 12 * index, (3, geometry.height, geometry.width))
        images.append(np.stack([waves, (across + down) / 2, np.abs(across - down)]) + noise)
    return torch.from_numpy(np.clip(np.stack(images), 0, 255).astype(np.uint8))


def lowest_cosine(found: Vectors, expected: Vectors) -> float:
    """Of each vector to the one that it should be, the lowest; 0 where one is nearer to another's, or no number.

    The second condition sees rows that changed places, which vectors that all lie close together would hide.
    """
    cosines = found.astype(np.float64) @ expected.astype(np.float64).T
    if not np.isfinite(cosines).all() or (cosines.argmax(axis=1) != np.arange(len(expected))).any():
        return 0.0
    return float(np.diagonal(cosines).min())
