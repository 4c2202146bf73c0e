"""The producer: enqueue posters, follow jobs, search vectors. What a backend imports; it loads no torch.

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

if TYPE_CHECKING:
    from producer.client import Producer
    from producer.job import Job
    from producer.search.index import Index
    from producer.search.nearest import Match


__all__ = ["Index", "Job", "Match", "Producer"]
_HOMES = {
    "Index": "producer.search.index",
    "Job": "producer.job",
    "Match": "producer.search.nearest",
    "Producer": "producer.client",
}


def __getattr__(name: str) -> Any:
    """Import what is used when it is used: a backend that only might enqueue pays nothing for it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
