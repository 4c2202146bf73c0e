"""Embedding spaces, and vectors that know theirs: only vectors of one space may be compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

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


class SpacedVectors(np.ndarray[Any, np.dtype[np.float32]]):
    """Vectors with the id of their space in `space`, which searches check.

    Views, slices, copies and pickles keep it. Sums, products and means have none: they may mix two spaces, and a search
    asks for the space of an array that does not know it.
    """

    space: str | None = None

    def __array_finalize__(self, source: object) -> None:
        self.space = getattr(source, "space", None)

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)
        make, arguments, state = reduced
        return make, arguments, (state, self.space)

    def __setstate__(self, state: Any) -> None:
        numbers, self.space = state
        super().__setstate__(numbers)

    def __deepcopy__(self, memo: Any) -> SpacedVectors:
        return self.copy()

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else array


def with_space(vectors: Vectors, space_id: str) -> SpacedVectors:
    """A view of the vectors that knows their space."""
    view = np.asarray(vectors).view(SpacedVectors)
    view.space = space_id
    return view


def space_of(vectors: object) -> str | None:
    """The id of the space that an array belongs to; None for an array that does not know it."""
    return getattr(vectors, "space", None)
