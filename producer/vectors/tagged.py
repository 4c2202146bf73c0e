"""Vectors that know their space, so that two spaces cannot meet by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from producer.embedding import Vectors
from producer.errors import SpaceMismatch


class SpacedVectors(np.ndarray[Any, np.dtype[np.float32]]):
    """An array of vectors with the id of their space in `space`; rows and slices keep it.

    NumPy's operations on arrays of two spaces raise SpaceMismatch. What they compute (cosines, means,
    a stack of rows) is plain numbers again, without a space.
    """

    space: str | None = None

    def __array_finalize__(self, source: object) -> None:
        """Views, slices and copies belong where their source belongs."""
        self.space = getattr(source, "space", None)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Compute with plain arrays, after a look at the spaces."""
        out = options.get("out", ())
        _meet([*inputs, *out])
        if out:
            options["out"] = tuple(_plain(array) for array in out)
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return out[0] if out and len(out) == 1 else result

    def dot(self, other: Any, out: Any = None) -> Any:
        """As ``numpy.dot``."""
        return np.dot(self, other, out)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """The same for functions that are no ufuncs: dot, stack, einsum …"""
        _meet([*arguments, *options.values()])
        return super().__array_function__(function, types, arguments, options)


def spaced(vectors: Vectors, space_id: str) -> SpacedVectors:
    """The same numbers, not copied, as vectors of that space."""
    view = np.asarray(vectors).view(SpacedVectors)
    view.space = space_id
    return view


def space_of(vectors: object) -> str | None:
    """The id of the space that an array says it belongs to; None where it does not say."""
    return getattr(vectors, "space", None)


def _plain(array: Any) -> Any:
    return np.asarray(array) if isinstance(array, SpacedVectors) else array


def _meet(arrays: Iterable[object]) -> None:
    spaces = sorted(set(_spaces(arrays)))
    if len(spaces) > 1:
        raise SpaceMismatch(f"vectors of two spaces cannot be compared: {' and '.join(spaces)}")


def _spaces(arrays: Iterable[object]) -> Iterable[str]:
    for array in arrays:
        if isinstance(array, SpacedVectors):
            if array.space is not None:
                yield array.space
        elif isinstance(array, list | tuple):
            yield from _spaces(array)
