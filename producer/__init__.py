"""The producer: enqueue posters, follow jobs, read vectors. What a backend imports; it loads no torch.

from producer import Producer
producer = Producer()
job = producer.enqueue(["a.jpg", "b.png"])
vector = producer.embed("a.jpg", timeout=5)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.client import Job, Producer

__all__ = ["Job", "Producer"]


def __getattr__(name: str) -> Any:
    """Import the client when it is used: a backend that only might enqueue pays nothing for it."""
    if name in __all__:
        from producer import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
