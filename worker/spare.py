"""The last resort for one image: fp32 on the CPU, as open_clip computes it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from worker.device import is_exhaustion
from worker.errors import PosterError
from worker.vectors import Vectors

logger = logging.getLogger(__name__)


class Spare:
    """A second tower, made when it is first needed: it costs memory, and most collections never need it."""

    def __init__(self, make: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> None:
        """`make` gives a tower in fp32 on the CPU, from the same weights; it may raise PosterError."""
        self._make = make
        self._tower: Callable[[torch.Tensor], torch.Tensor] | None = None

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> Vectors | str:
        """uint8 (1, 3, height, width) → float32 (dimension,) of unit length, or why there is none."""
        try:
            if self._tower is None:
                logger.warning(
                    "an image is embedded on the CPU in fp32: it does not fit the device, or came out as no number"
                )
                self._tower = self._make()
            vector: Vectors = self._tower(pixels)[0].numpy()
        except PosterError as error:
            return f"it needs the CPU, and the weights cannot be read again: {error}"
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            return "not even one image fits into memory, neither on the device nor on the CPU"
        if not is_unit(vector[None])[0]:
            return "the model gives no vector for it, not even in fp32"
        return vector


def is_unit(vectors: Vectors) -> np.ndarray:
    """Which rows are of length 1, as all that is stored must be; NaN, infinity and zero are not."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.isclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
