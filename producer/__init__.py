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

from producer import errors
from producer.errors import *  # noqa: F403

if TYPE_CHECKING:
    from producer.aio.client import AsyncProducer as AsyncProducer
    from producer.aio.job import AsyncJob as AsyncJob
    from producer.client import Producer as Producer
    from producer.job import Job as Job
    from producer.search.index import Index as Index
    from producer.search.nearest import Match as Match

_MODULES = {
    "AsyncJob": "producer.aio.job",
    "AsyncProducer": "producer.aio.client",
    "Index": "producer.search.index",
    "Job": "producer.job",
    "Match": "producer.search.nearest",
    "Producer": "producer.client",
}
if not TYPE_CHECKING:  # type checkers read the imports above
    __all__ = sorted([*_MODULES, *(name for name, value in vars(errors).items() if isinstance(value, type))])


def __getattr__(name: str) -> Any:
    """Import a class when it is used: `import producer` stays fast."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
