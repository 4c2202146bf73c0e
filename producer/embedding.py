"""The identity of an embedding: vectors may be compared only inside one space."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Space:
    """Everything that must be equal for two vectors to be comparable.

    Precision and device are left out on purpose: they change the last digits, not the meaning
    (cosine ≥ 0.999 to fp32 is checked when the model is loaded).

    Attributes:
        model: open_clip's name of the architecture, for example ``ViT-B-32``.
        weights: hex digest of the image tower's tensors, whatever file they came from.
        activation: ``gelu`` or ``quick_gelu``.
        preprocessing: size, resize mode, interpolation, mean and std as one line of text.
        dimension: numbers per vector.
    """

    model: str
    weights: str
    activation: str
    preprocessing: str
    dimension: int

    @cached_property
    def id(self) -> str:
        """A short name that is stable across machines: model and 12 hex digits of the rest."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.model.lower()}.{digest[:12]}"

    def to_json(self) -> str:
        """All fields as one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Space:
        """The inverse of to_json."""
        return cls(**json.loads(text))


Vectors = npt.NDArray[np.float32]
LENGTH_TOLERANCE: Final = 1e-3  # rounding of 512 float32 squares is below 1e-6; a forgotten normalization is not


def is_unit(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """(N,) of bool: which of (N, dimension) vectors are of length 1. NaN, infinity and zero are not."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return np.asarray(np.abs(lengths - 1) <= LENGTH_TOLERANCE)
