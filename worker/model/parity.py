"""Put a tower on its device, in the fastest way that proves to be the same embedding."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from producer.embedding import Vectors
from producer.errors import ConfigurationError
from worker.images.decode import Geometry
from worker.model.device import PRECISIONS, is_exhaustion, is_lost
from worker.model.encoder import FastViT, OpenClipEncoder, is_supported

# Windows' driver moves memory of a full card into the system's, at a hundredth of the speed, instead of failing.
# A share that leaves room for the desktop lets the allocator fail, and the chunk be halved, before that.
WINDOWS_SHARE: Final = 0.85
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenEncoder:
    """A tower that runs.

    Attributes:
        tower: uint8 (n, 3, height, width) on the device → float32 (n, dimension), unit length.
        precision: in which it computes.
        way: ``lean`` or ``plain``.
        cosine: the lowest of the proof, to open_clip's tower in fp32 on the CPU.
        dimension: numbers per vector.
    """

    tower: Callable[[torch.Tensor], torch.Tensor]
    precision: str
    way: str
    cosine: float
    dimension: int


@torch.inference_mode()
def choose_encoder(
    tower: torch.nn.Module,
    mean: torch.Tensor,
    std: torch.Tensor,
    geometry: Geometry,
    device: torch.device,
    precision: str,
    *,
    forced: bool,
) -> ChosenEncoder:
    """The first way, of the fast ones before the slow ones, that keeps the vectors.

    Args:
        tower: open_clip's, in fp32 on the CPU; must not be used afterwards.
        mean, std: per channel, in units of pixels.
        precision: the one to try; unless it is `forced`, fp32 follows.

    Raises:
        ConfigurationError: no way gives the model's vectors.
    """
    cpu = torch.device("cpu")
    proof = probe(geometry)
    exact = OpenClipEncoder(tower, mean, std, cpu, torch.float32)
    expected: Vectors = exact(proof).numpy()
    ways = [precision] if forced or precision == "fp32" else [precision, "fp32"]
    worst = 0.0
    for wanted in ways:
        for kind in (FastViT, OpenClipEncoder) if is_supported(tower) else (OpenClipEncoder,):
            if kind is OpenClipEncoder and wanted == "fp32" and device == cpu:
                return ChosenEncoder(exact, wanted, "plain", 1.0, expected.shape[1])
            own = tower if kind is FastViT else copy.deepcopy(tower)
            try:
                made = kind(own, mean, std, device, PRECISIONS[wanted])
                cosine = lowest_cosine(made(proof.to(device)).cpu().numpy(), expected)
            except RuntimeError as error:
                if is_exhaustion(error) or is_lost(error) or kind is OpenClipEncoder:
                    raise
                logger.warning("the fast way does not run here (%s): open_clip's own", str(error).splitlines()[0])
                continue
            way = "lean" if kind is FastViT else "plain"
            if cosine >= PARITY_COSINE:
                logger.info("%s proven against fp32 on a fixed probe: cosine %.5f", wanted, cosine)
                return ChosenEncoder(made, wanted, way, cosine, expected.shape[1])
            worst = cosine
        if wanted == ways[-1]:
            way_out = "POSTERS_PRECISION=auto" if forced and wanted != "fp32" else "POSTERS_DEVICE=cpu"
            raise ConfigurationError(
                f"{wanted} on {device} does not give this model's vectors: cosine {worst:.5f} to fp32 on the CPU, "
                f"where {PARITY_COSINE} is the least. Set {way_out}"
            )
        logger.warning("%s is inexact here (cosine %.5f to fp32): using fp32", wanted, worst)
    raise AssertionError("there is always a last way")


def use_card(device: torch.device, share: float | None) -> None:
    """Make a card the one to use, and bound what may be taken of its memory."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    share = share if share is not None else (WINDOWS_SHARE if sys.platform == "win32" else None)
    if share is not None:
        torch.cuda.set_per_process_memory_fraction(share, device)


PARITY_IMAGES: Final = 4
PARITY_COSINE: Final = 0.999  # below it, a fast way is not the same embedding any more


def probe(geometry: Geometry) -> torch.Tensor:
    """Fixed images with edges, gradients and noise: uint8 (PROOF_IMAGES, 3, height, width)."""
    generator = np.random.default_rng(0)
    across = np.linspace(0, 255, geometry.width)[None, :]
    down = np.linspace(0, 255, geometry.height)[:, None]
    images = []
    for index in range(PARITY_IMAGES):
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
