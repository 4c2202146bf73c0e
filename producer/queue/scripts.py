"""Load the Lua scripts in lua/: steps that must happen whole or not at all. None of them reads the clock.

A script whose first write takes no memory is let through by a Redis that is full (maxmemory); one whose
first write needs memory is refused before it has written anything. So what a worker does, which frees
memory in the end, begins with a deletion, and what a producer does begins with the writing.
"""

from collections.abc import Callable
from typing import Any

from producer.redis_client import RedisClient


def load_script(client: RedisClient, name: str) -> Callable[..., Any]:
    """The script ``lua/NAME.lua`` of the queue for a client."""
    return client.load_script("producer.queue", name)
