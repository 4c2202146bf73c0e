"""Connections to Redis: bounded waiting, and errors that say what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import redis
import redis.asyncio
from redis.backoff import ConstantBackoff, EqualJitterBackoff
from redis.client import Pipeline
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, ReadOnlyError, WatchError
from redis.retry import Retry

from producer.errors import CommandForbidden, ConfigurationError, PosterError, RedisRefused, RedisUnreachable
from producer.settings import without_password

# A command that meets a Redis that hangs waits once for the answer, and once more, on a second connection, for
# the greeting: twice the longer of these, below the 5 s of a backend's call. There is no health check before
# a command: it would double that, and the second try also replaces a connection that a firewall dropped.
CONNECT_TIMEOUT_S: Final = 1.5
ANSWER_TIMEOUT_S: Final = 2.0  # our commands take milliseconds; a Redis that writes its AOF may pause
# A half-open connection (a firewall dropped its state, a cable is cut) must end within half of the 45 s in
# which a lost batch is sent again. kombu polls for the answer to its BRPOP, so no time-out of the socket covers that.
# Keep-alive probes are sent on a silent connection only: what was sent and not acknowledged is TCP_USER_TIMEOUT's,
# which on Linux also bounds the probes. Elsewhere, PING_AFTER_S bounds it.
DEAD_AFTER_S: Final = 15
PING_AFTER_S: Final = 10  # kombu drops a BRPOP that is overdue so long, and pings a connection that was idle so long
_TCP_OPTIONS: Final = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPALIVE": 5,  # what macOS calls TCP_KEEPIDLE
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": DEAD_AFTER_S // 5 - 1,
    "TCP_USER_TIMEOUT": DEAD_AFTER_S * 1000,  # milliseconds
}
KEEPALIVE: Final = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value for name, value in _TCP_OPTIONS.items() if hasattr(socket, name)
    },
}
RETRY_PAUSE_S: Final = 0.1  # before the second try of a command
RETRY_S: Final = 1.25  # at most, between two tries to reach Redis; half of it at least, so that clients spread
FORBIDDEN_IN_SCRIPT: Final = ("user executing the script can't", "ACL failure in script")  # errors without a code
REDIS_ERRORS: Final = (redis.RedisError, OSError)  # what redis-py and kombu raise
Result = TypeVar("Result")
Client = TypeVar("Client", bound="redis.Redis | redis.asyncio.Redis")


def unreachable(url: str, error: BaseException) -> RedisUnreachable:
    """Translate an error of redis-py into one that says what to do."""
    shown = without_password(url)
    if isinstance(error, redis.AuthenticationError):
        return RedisRefused(f"Redis at {shown} refuses the user or password ({error}); see POSTERS_REDIS_URL")
    if isinstance(error, NoPermissionError) or any(text in str(error) for text in FORBIDDEN_IN_SCRIPT):
        return CommandForbidden(f"Redis at {shown} forbids a command: {error}. docs/redis.acl lists what is needed.")
    if isinstance(error, ReadOnlyError):
        return RedisUnreachable(f"Redis at {shown} is a replica and takes no writes: set the URL of its primary.")
    if isinstance(error, OutOfMemoryError):
        return RedisUnreachable(f"Redis at {shown} is full (maxmemory): {error}")
    text = f"Redis at {shown} does not answer ({error}). Start it, or set POSTERS_REDIS_URL to the one that runs."
    return ScriptMissing(text) if isinstance(error, NoScriptError) else RedisUnreachable(text)


class ScriptMissing(RedisUnreachable, NoScriptError):
    """Redis does not know a script (yet): redis-py catches this as its own error, and loads the script."""


def retry_until_available(
    call: Callable[[], Result],
    on_wait: Callable[[RedisUnreachable], object] | None,
    stop: threading.Event | None = None,
) -> Result:
    """Call until Redis answers; RedisUnreachable only without `on_wait`, or once `stop` is set.

    Args:
        call: may be repeated when its answer was lost.
        on_wait: called with the error of every try that failed.
    """
    backoff, stop = EqualJitterBackoff(cap=RETRY_S, base=RETRY_S), stop or threading.Event()
    while True:
        try:
            return call()
        except ScriptMissing:
            raise
        except RedisUnreachable as error:
            if on_wait is None:
                raise
            on_wait(error)
            if stop.wait(backoff.compute(1)):
                raise


class RedisClient(redis.Redis):
    """redis-py's client, whose commands, scripts and pipelines raise RedisUnreachable."""

    url = ""  # as it was given to `connect`
    _on_outage: Callable[[RedisUnreachable], object] | None = None
    _stop: threading.Event | None = None
    _is_away = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Like redis-py's; waits where `waiting` made this client."""
        call = partial(self.translated, super().execute_command, *args, **options)
        if self._stop is None:
            return call()
        answer = retry_until_available(call, self._report, self._stop)
        self._is_away = False
        return answer

    def load_script(self, package: str, name: str) -> Callable[..., Any]:
        """The script ``lua/NAME.lua`` of a package; the head of the file names its keys and arguments."""
        return self.register_script(script_text(package, name))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Like redis-py's. It never waits: what failed has emptied it."""
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.owner = self
        return pipeline

    def waiting(self, on_outage: Callable[[RedisUnreachable], object], stop: threading.Event) -> RedisClient:
        """A client on the same connections whose commands wait for Redis; once `stop` is set, they raise.

        `on_outage` is called with the first error of an outage.
        """
        client = type(self)(connection_pool=self.connection_pool)
        client.url, client._on_outage, client._stop = self.url, on_outage, stop
        return client

    def translated(self, call: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call redis-py and translate what it raises."""
        try:
            return call(*args, **options)
        except WatchError:  # no failure: the transaction is to be repeated
            raise
        except REDIS_ERRORS as error:
            raise self.translate(unreachable(self.url, error)) from error

    def translate(self, error: RedisUnreachable) -> PosterError:
        """For subclasses: what is raised instead of an error."""
        return error

    def _report(self, error: RedisUnreachable) -> None:
        if not self._is_away and self._on_outage is not None:
            self._on_outage(error)
        self._is_away = True


class _Pipeline(Pipeline):
    owner: RedisClient

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        return self.owner.translated(super().execute, raise_on_error)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        return self.owner.translated(super().immediate_execute_command, *args, **options)


@cache
def script_text(package: str, name: str) -> str:
    """The text of ``lua/NAME.lua`` of a package."""
    return (files(package) / "lua" / f"{name}.lua").read_text("utf-8")


def connect(url: str, kind: type[RedisClient] = RedisClient, **options: Any) -> RedisClient:
    """A client with text answers, bounded waiting and one retry; connects on first use.

    `options` are redis-py's, and override ours.

    Raises:
        ConfigurationError: redis-py does not understand the URL, or an option in it.
    """
    client = create_client(url, kind, {"retry": Retry(ConstantBackoff(RETRY_PAUSE_S), 1)} | options)
    client.url = url
    return client


def create_client(url: str, kind: type[Client], options: Mapping[str, Any]) -> Client:
    """A client of redis-py of any kind with our limits; `options` override them.

    Raises:
        ConfigurationError: redis-py does not understand the URL, or an option in it.
    """
    try:
        chosen: dict[str, Any] = {
            "decode_responses": True,
            "encoding_errors": "surrogateescape",
            "socket_timeout": ANSWER_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            **({} if url.startswith("unix:") else KEEPALIVE),
            **options,
        }
        client = cast(Client, kind.from_url(url, **chosen))
        pool: Any = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # an option that it does not know shows here, not at first use
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"redis_url {without_password(url)!r} cannot be used: {error}") from error
    return client


def broker(url: str, transport: str) -> tuple[str, dict[str, Any] | None]:
    """Translate settings.redis_url for one of kombu's transports: a URL without options, and those of TLS.

    kombu reads less of the URL, and would not check a certificate by itself.

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
        return f"{transport}+socket://{who}{quote(parts['path'])}?virtual_host={database}", None
    host = str(parts.get("host", "localhost"))
    address = f"[{host}]" if ":" in host else quote(host)
    ssl = None
    if url.startswith("rediss:"):
        ssl = {"ssl_cert_reqs": "required"} | {name: parts[name] for name in parts if name.startswith("ssl_")}
    return f"{transport}://{who}{address}:{parts.get('port', 6379)}/{database}", ssl
