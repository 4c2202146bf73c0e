"""Choose the fastest encoder whose vectors match open_clip's in fp32."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from producer.embedding import Vectors
from producer.errors import ConfigurationError
from worker.images.resize import Geometry
from worker.model.device import PRECISIONS, is_exhaustion, is_lost
from worker.model.encoder import FastViT, OpenClipEncoder, is_supported
from worker.model.executors import Encoder

PARITY_IMAGES: Final = 4
PARITY_COSINE: Final = 0.999  # least cosine to open_clip's vectors in fp32 that counts as the same embedding
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Canary:
    """An image that is embedded now and then among the posters, to see whether the device still computes the model.

    Hardware that silently computes wrong numbers gives vectors of unit length as well.
    """

    pixels: torch.Tensor  # uint8 (3, height, width), on the CPU
    vector: Vectors  # (dimension,), as the encoder gave it when its vectors were found to be the model's

    def problem(self, vector: Vectors) -> str:
        """What is wrong with the vector that the device gives for the image now; empty if nothing is."""
        cosine = float(vector.astype(np.float64) @ self.vector.astype(np.float64))
        if cosine >= PARITY_COSINE:
            return ""
        return f"the device computes wrong vectors: that of a known image has a cosine of {cosine:.5f} to what it was"


@dataclass(frozen=True)
class ChosenEncoder:
    """An encoder on its device."""

    encoder: Encoder  # uint8 (n, 3, height, width) on the device → float32 (n, dimension), unit length
    precision: str
    implementation: str  # ``lean`` (FastViT) or ``plain`` (OpenClipEncoder); stores record it in the provenance
    canary: Canary

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        return len(self.canary.vector)


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
    """The first encoder, in order of speed, whose vectors pass the parity check.

    Args:
        tower: open_clip's image tower, in fp32 on the CPU; must not be used afterwards.
        mean, std: per channel, in units of pixels.
        precision: the one to try; unless it is `forced`, fp32 follows.

    Raises:
        ConfigurationError: no encoder gives the model's vectors.
    """
    cpu = torch.device("cpu")
    images = parity_images(geometry)
    exact = OpenClipEncoder(tower, mean, std, cpu, torch.float32)
    expected: Vectors = exact(images).numpy()
    precisions = [precision] if forced or precision == "fp32" else [precision, "fp32"]
    cosine = 0.0
    for candidate in precisions:
        for kind in (FastViT, OpenClipEncoder) if is_supported(tower) else (OpenClipEncoder,):
            if kind is OpenClipEncoder and candidate == "fp32" and device == cpu:
                return ChosenEncoder(exact, candidate, "plain", Canary(images[0], expected[0]))
            try:
                source = tower if kind is FastViT else copy.deepcopy(tower)  # OpenClipEncoder moves its tower
                encoder = kind(source, mean, std, device, PRECISIONS[candidate])
                vectors: Vectors = encoder(images.to(device)).cpu().numpy()
                cosine = lowest_cosine(vectors, expected)
            except RuntimeError as error:
                if is_exhaustion(error) or is_lost(error) or kind is OpenClipEncoder:
                    raise
                logger.warning("FastViT does not run here (%s): using open_clip's tower", str(error).splitlines()[0])
                continue
            if cosine >= PARITY_COSINE:
                logger.info("%s passed the parity check against fp32: cosine %.5f", candidate, cosine)
                implementation = "lean" if kind is FastViT else "plain"
                return ChosenEncoder(encoder, candidate, implementation, Canary(images[0], vectors[0].copy()))
        if candidate != precisions[-1]:
            logger.warning("%s is inexact here (cosine %.5f to fp32): using fp32", candidate, cosine)
    way_out = "POSTERS_PRECISION=auto" if forced and precision != "fp32" else "POSTERS_DEVICE=cpu"
    raise ConfigurationError(
        f"{precisions[-1]} on {device} does not give this model's vectors: cosine {cosine:.5f} to fp32 on the CPU, "
        f"at least {PARITY_COSINE} is required. Set {way_out}"
    )


def parity_images(geometry: Geometry) -> torch.Tensor:
    """Fixed images with edges, gradients and noise: uint8 (PARITY_IMAGES, 3, height, width)."""
    generator = np.random.default_rng(0)
    across = np.linspace(0, 255, geometry.width)[None, :]
    down = np.linspace(0, 255, geometry.height)[:, None]
    images = []
    for index in range(PARITY_IMAGES):
        waves = 127 + 127 * np.sin(across / (3 + 9 * index)) * np.cos(down / (5 + 7 * index))
        noise = generator.normal(0, 12 * index, (3, geometry.height, geometry.width))
        images.append(np.stack([waves, (across + down) / 2, np.abs(across - down)]) + noise)
    return torch.from_numpy(np.clip(np.stack(images), 0, 255).astype(np.uint8))


def lowest_cosine(vectors: Vectors, expected: Vectors) -> float:
    """The lowest cosine of a vector to its expected one; 0 where one is NaN or nearer to another's expected vector.

    The second condition detects swapped rows, which vectors that all lie close together would hide.
    """
    cosines = vectors.astype(np.float64) @ expected.astype(np.float64).T
    if not np.isfinite(cosines).all() or (cosines.argmax(axis=1) != np.arange(len(expected))).any():
        return 0.0
    return float(np.diagonal(cosines).min())
