"""Connections of redis.asyncio: a client for each event loop, closed with it, whose errors say what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from producer.redis_client import ANSWER_TIMEOUT_S, REDIS_ERRORS, RETRY_PAUSE_S, create_client, script_text, unreachable


class AsyncRedis(redis.asyncio.Redis):
    """redis.asyncio's client, whose commands, scripts and transactions raise RedisUnreachable."""

    url = ""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Like redis-py's."""
        return await self._bounded(partial(super().execute_command, *args, **options))

    async def run_script(self, package: str, name: str, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
        """Run the script ``lua/NAME.lua`` of a package; the head of the file names its keys and arguments."""
        return await self.register_script(script_text(package, name))(keys, arguments)

    async def transaction_of(self, commands: Iterable[Sequence[Any]]) -> None:
        """Run commands all or none."""

        async def run() -> None:
            async with self.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                await pipe.execute()

        await self._bounded(run)

    async def _bounded(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await an answer for ANSWER_TIMEOUT_S, and once more on a new connection, as the other client does."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await call()
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await call()
        except REDIS_ERRORS as error:
            raise unreachable(self.url, error) from error


class Connections:
    """A client for whichever event loop runs: an application may start several one after the other, or side by side.

    A client is made when a loop first needs one. It is closed at the end of the loop by asyncio.run, uvicorn and all
    others that shut down asynchronous generators, and by `close`. A forked process has loops of its own, and so clients
    of its own.
    """

    def __init__(self, url: str, **options: Any) -> None:
        """`url` as settings.redis_url; `options` are redis-py's."""
        self._url, self._options = url, options
        create_client(url, AsyncRedis, options)  # an URL that cannot be used shows here
        self._held: dict[asyncio.AbstractEventLoop, tuple[AsyncRedis, AsyncGenerator[AsyncRedis]]] = {}

    async def get(self) -> AsyncRedis:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._held:
            for ended in [other for other in self._held if other.is_closed()]:
                del self._held[ended]
            holder = self._hold()
            self._held[loop] = await anext(holder), holder
        return self._held[loop][0]

    async def close(self) -> None:
        """Close the connections of the running loop."""
        if held := self._held.pop(asyncio.get_running_loop(), None):
            await held[1].aclose()

    async def _hold(self) -> AsyncGenerator[AsyncRedis]:
        """Yields a client and closes it when the generator is closed, which a loop does at its end."""
        # redis-py bounds its sending by asyncio.wait_for, which swallows a cancellation at that moment (Python 3.11).
        options = {"retry": Retry(ConstantBackoff(RETRY_PAUSE_S), 1), "socket_timeout": None}
        client = create_client(self._url, AsyncRedis, options | self._options)
        client.url = self._url
        try:
            yield client
        finally:
            await client.aclose()
