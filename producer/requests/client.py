"""The caller's side of requests: put one into Redis, wait for its answer, withdraw it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from producer.embedding import SpacedVectors
from producer.errors import RedisUnreachable
from producer.queue.workers import Announcement
from producer.redis_client import connect
from producer.requests.codec import (
    AT_ONCE,
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


class RequestClient:
    """Put requests and wait for answers. Every method raises RedisUnreachable; threads may share an instance."""

    def __init__(self, url: str, max_requests: int, workers: Callable[[], list[Announcement]]) -> None:
        """`url` and `max_requests` as in the settings; `workers` lists those alive, for the seconds in Busy."""
        self._redis = connect(url, decode_responses=False)
        self._most, self._workers = max_requests, workers
        self._put = self._redis.load_script("producer.requests", "put_request")

    def embed(self, request: Request, timeout_s: float, name: str) -> SpacedVectors | None:
        """Put a request and wait for its vector; None, with nothing left behind, if none comes in time.

        Raises:
            Busy: too many requests wait already.
            UnreadablePoster, SpaceMismatch: it has no vector; says why.
        """
        found = self.embed_all([(request, name)], timeout_s)
        return found[0] if found else None

    def embed_all(self, requests: Sequence[tuple[Request, str]], timeout_s: float) -> list[SpacedVectors] | None:
        """Put requests with their names, AT_ONCE at a time, and wait for their vectors, in order; otherwise as `embed`.

        The first that has no vector, or comes too late, ends all.
        """
        deadline, found = time.monotonic() + timeout_s, []
        for start in range(0, len(requests), AT_ONCE):
            part = requests[start : start + AT_ONCE]
            left: dict[str, Request] = {}
            try:
                for request, name in part:
                    left[self.put(request, max(0.1, deadline - time.monotonic()), name)] = request
                for token, (request, name) in zip(list(left), part, strict=True):
                    vector = self.wait(request, token, deadline - time.monotonic(), name)
                    if vector is None:
                        return None
                    found.append(vector)
                    del left[token]
            except RedisUnreachable:
                left.clear()  # they expire by themselves
                raise
            finally:
                for token, request in left.items():
                    self.withdraw(request, token)
        return found

    def put(self, request: Request, keep_s: float, name: str = "the image") -> str:
        """Put a request; its token. It is kept for `keep_s`, at most KEEP_S, which `wait` renews.

        Raises:
            UnreadablePoster: it is too large.
            Busy: `max_requests` wait already.
        """
        check_size(request, name)
        token = new_token()
        self._send(request, token, keep_s, name)
        return token

    def wait(self, request: Request, token: str, timeout_s: float, name: str = "the image") -> SpacedVectors | None:
        """The vector; None when none came within `timeout_s` (inf: no limit), and the request is withdrawn.

        A request that Redis has lost, or whose answer was lost on its way, is put again.

        Raises:
            Busy: it is to be put again, and `max_requests` wait already.
            UnreadablePoster, SpaceMismatch: it has no vector; says why.
        """
        renewed_at, is_lost = time.monotonic(), False
        deadline = renewed_at + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if time.monotonic() - renewed_at > KEEP_S / 3:
                renewed_at = time.monotonic()
                is_lost = not self._redis.expire(request_key(token), math.ceil(min(left, KEEP_S)))
            pause = min(max(left, MIN_WAIT_S), POLL_S)
            if found := cast(Any, self._redis.blpop([answer_key(token)], timeout=pause)):
                return decode_answer(found[1], name)
            if is_lost:  # and no answer is there
                self._send(request, token, left, name)
                is_lost = False
        self.withdraw(request, token)
        return None

    def withdraw(self, request: Request, token: str) -> None:
        """Leave nothing of a request behind, whether it waits, is in hand, or was answered."""
        pipe = self._redis.pipeline(transaction=True)
        for command in withdraw_commands(request, token):
            pipe.execute_command(*command)
        pipe.execute()

    def _send(self, request: Request, token: str, keep_s: float, name: str) -> None:
        waiting = int(self._put(*put_call(request, token, keep_s, self._most)))
        if waiting < 0:
            check_waiting(waiting, self._workers(), name)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
