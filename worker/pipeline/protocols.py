"""Interfaces of embedders, which fakes in the tests implement as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import torch

from producer.embedding import Space
from producer.requests.codec import Answer, Refusal, Request
from worker.images.resize import Geometry
from worker.model.inference import Pending
from worker.model.parity import Canary
from worker.model.text import EmbeddedTexts
from worker.pipeline.device_share import DeviceShare


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
    @property
    def canary(self) -> Canary | None: ...

    def submit(self, pixels: torch.Tensor, *, urgent: bool = False) -> Pending: ...


class TextSource(Protocol):
    """What answering texts needs of CLIPEmbedder."""

    @property
    def space(self) -> Space: ...
    @property
    def has_text(self) -> bool: ...

    def load_text(self) -> None: ...
    def embed_texts(self, texts: Sequence[str]) -> EmbeddedTexts: ...


class AnsweringEmbedder(Protocol):
    """What the thread that answers requests of a kind needs; `Any` is a request that `prepare` has read."""

    @property
    def share(self) -> DeviceShare: ...
    @property
    def space(self) -> str: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def limit(self) -> int: ...

    def submit(self, call: Callable[[], Any]) -> Future[Any]: ...
    def prepare(self, request: Request) -> Any: ...
    def embed(self, prepared: Sequence[Any]) -> list[Answer | Refusal]: ...
    def close(self) -> None: ...
