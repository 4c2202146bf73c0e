"""The worker's side of requests: take what has gathered, say how far each is, answer, give back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from producer.queue.workers import PREFIX
from producer.redis_client import RedisClient, connect
from producer.requests.codec import (
    ANSWER,
    ANSWER_S,
    CRASH_DEATHS,
    CRASHED,
    DECODING,
    IMAGE,
    IN_HAND_S,
    MAX_IMAGE_BYTES,
    REQUEST,
    Answer,
    Refusal,
    Request,
    encode_answer,
    encode_request,
    request_key,
)

ADOPTED_S: Final = 60  # its caller renews another key; such callers wait for seconds
TAKE_BYTES: Final = 2 * MAX_IMAGE_BYTES  # in one reply of Redis; more is left for the next


def holds_requests(client: RedisClient, waiting: str, owner: str) -> bool:
    """Whether requests wait in a list, are in the hands of this worker, or were left by one that died.

    Args:
        client: decodes responses.
        waiting: the list.
        owner: the worker.
    """
    pipe = client.pipeline(transaction=False)
    pipe.llen(waiting)
    pipe.hlen(f"{waiting}:by:{owner}")
    pipe.smembers(f"{waiting}:owners")
    count, in_hand, owners = pipe.execute()
    if count or in_hand:
        return True
    others = owners - {owner}
    return any(client.hlen(f"{waiting}:by:{other}") and not client.exists(PREFIX + other) for other in others)


class Taken(NamedTuple):
    """A request as it was taken, not decoded yet.

    Attributes:
        waited_s: since it was put, by the clock of Redis; None: that is unknown.
    """

    token: str
    head: bytes
    body: bytes
    waited_s: float | None


class Inbox:
    """The requests of one list, as one worker sees them. Every method raises RedisUnreachable, and may be repeated.

    What is taken stays in Redis, and is noted as this worker's, until it is answered or given back.
    """

    def __init__(self, url: str, waiting: str, owner: str) -> None:
        """`url` as settings.redis_url; `waiting`: the list; `owner`: the worker, as its registry entry has it."""
        self._redis = connect(url, decode_responses=False)
        self._list, self._owner = waiting, owner
        self._owners, self._in_hand = f"{waiting}:owners", f"{waiting}:by:{owner}"
        self._take = self._redis.load_script("producer.requests", "take_requests")
        self._answer = self._redis.load_script("producer.requests", "answer_requests")
        self._return = self._redis.load_script("producer.requests", "return_requests")

    def wait(self, timeout_s: int) -> bool:
        """Whether a request waits, now or within `timeout_s`; takes none.

        The newest is moved from its end of the list to the same end, which blocks while the list is empty.
        """
        return cast(Any, self._redis.blmove(self._list, self._list, timeout_s, "LEFT", "LEFT")) is not None

    def take(self, most: int, held: int = 0) -> list[Taken]:
        """Take up to `most` of the oldest, beside the `held` ones; those that expired are dropped."""
        arguments = [self._owner, most, REQUEST, MAX_IMAGE_BYTES, TAKE_BYTES, IN_HAND_S, held]
        found = self._take([self._list, self._in_hand, self._owners], arguments)
        return [
            Taken(token.decode(errors="replace"), head, body, None if waited_us == b"" else int(waited_us) / 1e6)
            for token, head, body, waited_us in found
        ]

    def mark(self, token: str, stage: str) -> None:
        """Note how far a taken request is."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(self._in_hand, token, stage)
        pipe.expire(self._in_hand, IN_HAND_S)  # a worker that was taken for dead holds nothing any more
        pipe.execute()

    def answer(self, answers: Mapping[str, Answer | Refusal]) -> None:
        """Answer requests by their tokens; those that were withdrawn, or answered before, are left alone."""
        if answers:
            texts = [text for token, answer in answers.items() for text in (token, encode_answer(answer))]
            self._answer([self._in_hand, self._owners], [self._owner, REQUEST, ANSWER, ANSWER_S, *texts])

    def give_back(self) -> None:
        """Put what this worker holds back to where it was taken."""
        self._give_back(self._owner, crashed=False)

    def recover(self, owner: str | None = None) -> int:
        """Judge what a dead process left in hand; `owner` None: this worker's predecessor. Returns how many.

        A request that was being decoded is answered with CRASHED, and so is one that CRASH_DEATHS workers held when
        they died. All others are asked again.
        """
        return self._give_back(owner or self._owner, crashed=True)

    def recover_orphans(self) -> int:
        """`recover` for every worker that left requests in hand and is not alive any more."""
        owners = {owner.decode(errors="replace") for owner in cast(Any, self._redis.smembers(self._owners))}
        dead = [owner for owner in owners - {self._owner} if not self._redis.exists(PREFIX + owner)]
        return sum(self.recover(owner) for owner in dead)

    def adopt(self, token: str) -> None:
        """Put the image of a producer that knew no requests yet, under posters:query:TOKEN, among those that wait.

        Its answer has the same key and the same form.
        """
        key = f"posters:query:{token}"
        data = cast(bytes, self._redis.getrange(key, 0, MAX_IMAGE_BYTES - 1))
        pipe = self._redis.pipeline(transaction=True)
        pipe.delete(key)
        if data:  # it has not expired
            head, body = encode_request(Request(IMAGE, data))
            pipe.hset(request_key(token), mapping={"head": head, "body": body})
            pipe.expire(request_key(token), ADOPTED_S)
            pipe.lpush(self._list, token)
        pipe.execute()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _give_back(self, owner: str, *, crashed: bool) -> int:
        deaths = CRASH_DEATHS if crashed else 0
        keys = [self._list, f"{self._list}:by:{owner}", self._owners]
        return int(self._return(keys, [owner, REQUEST, ANSWER, ANSWER_S, deaths, DECODING, encode_answer(CRASHED)]))
