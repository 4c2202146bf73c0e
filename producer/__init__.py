"""The client library: enqueue posters, follow jobs, search vectors. It loads no torch.

from producer import Index, Producer
producer = Producer()
job = producer.enqueue(["a.jpg", "b.png"])
vector = producer.embed("a.jpg", timeout=5)
index = Index.open()
matches = index.search(vector, k=5)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from producer.errors import (
    ActivationMismatch,
    BadMessage,
    ConfigurationError,
    DeviceLost,
    DeviceUnavailable,
    EmbedTimeout,
    JobUnknown,
    LedgerSetBack,
    NewerMessage,
    NoWorker,
    PosterError,
    PruneRefused,
    RedisUnreachable,
    SpaceMismatch,
    StoreError,
    StoreUnavailable,
    UnknownModel,
    UnreadablePoster,
    WeightsUnavailable,
)

if TYPE_CHECKING:
    from producer.client import Producer
    from producer.job import Job
    from producer.search.index import Index
    from producer.search.nearest import Match

__all__ = [
    "ActivationMismatch",
    "BadMessage",
    "ConfigurationError",
    "DeviceLost",
    "DeviceUnavailable",
    "EmbedTimeout",
    "Index",
    "Job",
    "JobUnknown",
    "LedgerSetBack",
    "Match",
    "NewerMessage",
    "NoWorker",
    "PosterError",
    "Producer",
    "PruneRefused",
    "RedisUnreachable",
    "SpaceMismatch",
    "StoreError",
    "StoreUnavailable",
    "UnknownModel",
    "UnreadablePoster",
    "WeightsUnavailable",
]
_MODULES = {
    "Index": "producer.search.index",
    "Job": "producer.job",
    "Match": "producer.search.nearest",
    "Producer": "producer.client",
}


def __getattr__(name: str) -> Any:
    """Import a class when it is used: `import producer` stays fast."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
