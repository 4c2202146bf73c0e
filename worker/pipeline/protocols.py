"""What the pipeline needs of an embedder; CLIPEmbedder is one, tests bring others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from producer.embedding import Space, Vectors
from worker.images.decode import Geometry


class EmbeddedChunk(Protocol):
    """What the embedder returns: vectors (n, dimension), a reason for each row that has none, device seconds."""

    @property
    def vectors(self) -> Vectors: ...
    @property
    def failures(self) -> Mapping[int, str]: ...
    @property
    def seconds(self) -> float: ...


class Pending(Protocol):
    """A chunk on its way through the device; its pixels must not be changed before the result is there."""

    def result(self) -> EmbeddedChunk: ...


class Embedder(Protocol):
    """What the pipeline needs of CLIPEmbedder."""

    @property
    def space(self) -> Space: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def chunk(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def provenance(self) -> Mapping[str, str]: ...

    def submit(self, pixels: torch.Tensor) -> Pending: ...
