"""Requests over redis.asyncio: put one, wait for its answer by a blocking read, withdraw it."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from typing import Any, Final, cast

from producer.aio.connections import Connections
from producer.embedding import SpacedVectors
from producer.errors import RedisUnreachable
from producer.queue.workers import OWNERS, PREFIX, Announcement, decode_entry, without_replaced
from producer.requests.codec import (
    KEEP_S,
    MIN_WAIT_S,
    POLL_S,
    Request,
    answer_key,
    check_size,
    check_waiting,
    decode_answer,
    new_token,
    put_call,
    request_key,
    withdraw_commands,
)

PACKAGE: Final = "producer.requests"


class AsyncRequests:
    """Like RequestClient, for asyncio. Every method raises RedisUnreachable."""

    def __init__(self, url: str, max_requests: int) -> None:
        """`url` and `max_requests` as in the settings."""
        self._most = max_requests
        self._bytes, self._text = Connections(url, decode_responses=False), Connections(url)
        self._withdrawing: set[asyncio.Task[None]] = set()

    async def embed(self, request: Request, timeout_s: float, name: str) -> SpacedVectors | None:
        """Put a request and wait for its vector; None, with nothing left behind, if none comes in time.

        Raises:
            Busy: too many requests wait already.
            UnreadablePoster, SpaceMismatch: it has no vector; says why.
        """
        check_size(request, name)
        token = new_token()
        try:
            await self._put(request, token, max(0.1, timeout_s), name)
            vector = await self._wait(request, token, timeout_s, name)
        except RedisUnreachable:  # it expires by itself
            raise
        except BaseException:  # a cancelled call as well
            with suppress(RedisUnreachable):
                await self._withdraw(request, token)
            raise
        if vector is None:
            await self._withdraw(request, token)
        return vector

    async def workers(self) -> list[Announcement]:
        """The workers that are alive."""
        client = await self._text.get()
        owners = sorted(cast(set[str], await cast(Any, client.smembers(OWNERS))))
        entries = [decode_entry(owner, await cast(Any, client.hgetall(PREFIX + owner))) for owner in owners]
        return without_replaced([worker for worker in entries if worker is not None])

    async def script(self, name: str, keys: list[str]) -> Any:
        """The answer of one of the queue's scripts, as text."""
        return await (await self._text.get()).run_script("producer.queue", name, keys)

    async def close(self) -> None:
        """Finish withdrawing, and close the connections of the running loop."""
        if self._withdrawing:
            await asyncio.wait(self._withdrawing)
        await self._bytes.close()
        await self._text.close()

    async def _put(self, request: Request, token: str, keep_s: float, name: str) -> None:
        call = put_call(request, token, keep_s, self._most)
        waiting = int(await (await self._bytes.get()).run_script(PACKAGE, "put_request", *call))
        if waiting < 0:
            check_waiting(waiting, await self.workers(), name)

    async def _wait(self, request: Request, token: str, timeout_s: float, name: str) -> SpacedVectors | None:
        client, renewed_at, is_lost = await self._bytes.get(), time.monotonic(), False
        deadline = renewed_at + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if time.monotonic() - renewed_at > KEEP_S / 3:
                renewed_at = time.monotonic()
                is_lost = not await client.expire(request_key(token), math.ceil(min(left, KEEP_S)))
            pause = min(max(left, MIN_WAIT_S), POLL_S)
            if found := await cast(Any, client.blpop([answer_key(token)], timeout=pause)):
                return decode_answer(found[1], name)
            if is_lost:  # and no answer is there: as RequestClient.wait
                await self._put(request, token, left, name)
                is_lost = False
        return None

    async def _withdraw(self, request: Request, token: str) -> None:
        """Leave nothing of a request behind; goes on where the caller is cancelled once more."""

        async def withdraw() -> None:
            await (await self._bytes.get()).transaction_of(withdraw_commands(request, token))

        task = asyncio.ensure_future(withdraw())
        self._withdrawing.add(task)
        task.add_done_callback(self._withdrawing.discard)
        await asyncio.shield(task)
