"""How this project talks to Redis: always with timeouts, always with errors fit for a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from worker.errors import ConfigurationError, RedisUnreachable
from worker.settings import without_password

CONNECT_TIMEOUT_S: Final = 1.5  # twice of it and of the next stay below the 5 s of a backend's call
ANSWER_TIMEOUT_S: Final = 2.0  # our commands take milliseconds; a Redis that writes its AOF may pause
KEEPALIVE_S: Final = 30  # finds a connection that a firewall dropped without a word


def connect(url: str, **options: Any) -> redis.Redis:
    """A client with text answers, bounded waiting and one retry; connects on first use.

    Raises:
        ConfigurationError: redis-py does not understand the URL.
    """
    try:
        client: redis.Redis = redis.Redis.from_url(
            url,
            **{
                "decode_responses": True,
                "encoding_errors": "surrogateescape",
                "socket_timeout": ANSWER_TIMEOUT_S,
                "socket_connect_timeout": CONNECT_TIMEOUT_S,
                "health_check_interval": KEEPALIVE_S,
                "retry": Retry(ConstantBackoff(0.1), 1),
                **options,
            },
        )
    except ValueError as error:
        raise ConfigurationError(f"redis_url {without_password(url)!r} cannot be used: {error}") from error
    return client


@contextmanager
def answers(url: str) -> Iterator[None]:
    """Turn what redis-py raises inside the block into RedisUnreachable that says what to do."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise RedisUnreachable(
            f"Redis at {without_password(url)} refuses the user or password ({error}); see POSTERS_REDIS_URL"
        ) from error
    except redis.exceptions.NoPermissionError as error:
        raise RedisUnreachable(f"Redis at {without_password(url)} forbids a command: {error}") from error
    except redis.exceptions.OutOfMemoryError as error:
        raise RedisUnreachable(f"Redis at {without_password(url)} is full (maxmemory): {error}") from error
    except (redis.RedisError, OSError) as error:
        raise RedisUnreachable(
            f"Redis at {without_password(url)} does not answer ({error}). "
            "Start it, or set POSTERS_REDIS_URL to the one that runs."
        ) from error
