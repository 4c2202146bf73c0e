"""The identity of an embedding: vectors may be compared only inside one space."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Space:
    """What has to be equal for two vectors to be comparable.

    Precision and device are left out on purpose: they change the last digits, not the meaning
    (cosine ≥ 0.999 to fp32 is proven when the model is loaded).

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
