"""The interface between pipeline and embedder: CLIPEmbedder implements it, and so do the fakes of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from producer.embedding import Space
from worker.images.resize import Geometry
from worker.model.inference import Pending


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
