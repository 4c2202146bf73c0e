"""How this project talks to Redis: always with timeouts, always with errors fit for a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import redis
from redis.backoff import ConstantBackoff
from redis.connection import parse_url
from redis.retry import Retry

from producer.errors import ConfigurationError, RedisUnreachable
from producer.settings import without_password

# A call that meets a Redis that hangs waits once for its answer, and once more, on a second connection, for
# the greeting: twice the longer of these, below the 5 s of a backend's call. There is no health check before
# a command: it would double that, and the second try mends a connection that a firewall dropped as well.
CONNECT_TIMEOUT_S: Final = 1.5
ANSWER_TIMEOUT_S: Final = 2.0  # our commands take milliseconds; a Redis that writes its AOF may pause


def connect(url: str, **options: Any) -> redis.Redis:
    """A client with text answers, bounded waiting and one retry; connects on first use.

    Raises:
        ConfigurationError: redis-py does not understand the URL, or an option in it.
    """
    try:
        client: redis.Redis = redis.Redis.from_url(
            url,
            **{
                "decode_responses": True,
                "encoding_errors": "surrogateescape",
                "socket_timeout": ANSWER_TIMEOUT_S,
                "socket_connect_timeout": CONNECT_TIMEOUT_S,
                **({} if url.startswith("unix:") else {"socket_keepalive": True}),
                "retry": Retry(ConstantBackoff(0.1), 1),
                **options,
            },
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # an option that it does not know shows here, not at first use
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"redis_url {without_password(url)!r} cannot be used: {error}") from error
    return client


class Broker(NamedTuple):
    """The same Redis as kombu wants to hear of it: a URL without options, and those of TLS."""

    url: str
    ssl: dict[str, Any] | None


def broker(url: str, transport: str = "redis") -> Broker:
    """Translate settings.redis_url for kombu, which reads less of it, and would not check a certificate by itself.

    Args:
        transport: the name of kombu's transport.

    Raises:
        ConfigurationError: redis-py does not understand the URL.
    """
    try:
        parts = parse_url(url)
    except ValueError as error:
        raise ConfigurationError(f"redis_url {without_password(url)!r} cannot be used: {error}") from error
    user, password = (quote(parts.get(name) or "", safe="") for name in ("username", "password"))
    who = f"{user}:{password}@" if user or password else ""
    database = parts.get("db") or 0
    if "path" in parts:
        return Broker(f"{transport}+socket://{who}{quote(parts['path'])}?virtual_host={database}", None)
    host = str(parts.get("host", "localhost"))
    address = f"[{host}]" if ":" in host else quote(host)
    ssl = None
    if url.startswith("rediss:"):
        ssl = {"ssl_cert_reqs": "required"} | {name: parts[name] for name in parts if name.startswith("ssl_")}
    return Broker(f"{transport}://{who}{address}:{parts.get('port', 6379)}/{database}", ssl)


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
        raise RedisUnreachable(
            f"Redis at {without_password(url)} forbids a command: {error}. docs/redis.acl lists what is needed."
        ) from error
    except redis.exceptions.OutOfMemoryError as error:
        raise RedisUnreachable(f"Redis at {without_password(url)} is full (maxmemory): {error}") from error
    except (redis.RedisError, OSError) as error:
        raise RedisUnreachable(
            f"Redis at {without_password(url)} does not answer ({error}). "
            "Start it, or set POSTERS_REDIS_URL to the one that runs."
        ) from error
