"""Dead letters: messages that no worker can read, each with the reason, for a person to read."""

from __future__ import annotations

import json
import logging
import time
from typing import Final, cast

from producer.errors import RedisUnreachable
from producer.queue.jobs import JobStore
from producer.queue.keys import DEAD_LETTERS, MAX_DEAD_LETTERS, ONCE_S, rejected_once_key

SHOWN_CHARACTERS: Final = 10_000  # enough to recognize a message by; the rest would only fill Redis
LOGGED_CHARACTERS: Final = 200
logger = logging.getLogger(__name__)


class DeadLetters:
    """Keep rejected messages, and count them."""

    def __init__(self, job_store: JobStore) -> None:
        """The job store, and with it the connections, are the caller's to close."""
        self._redis = job_store.redis

    def put(self, message: str, reason: str, *, once: str = "") -> None:
        """Add a dead letter.

        Args:
            message: its text, of which SHOWN_CHARACTERS are kept.
            reason: one sentence for a person.
            once: an id that is added at most once a day, however often it comes.
        """
        shown = message[:SHOWN_CHARACTERS]
        entry = json.dumps({"at": time.time(), "reason": reason, "characters": len(message), "message": shown})
        if once and not self._redis.set(rejected_once_key(once), "1", nx=True, ex=ONCE_S):
            return
        pipe = self._redis.pipeline()
        pipe.lpush(DEAD_LETTERS, entry)
        pipe.ltrim(DEAD_LETTERS, 0, MAX_DEAD_LETTERS - 1)
        pipe.execute()

    def reject(self, message: str, reason: str, *, once: str = "", lane: str = "") -> None:
        """Like `put`, but also logs. Where Redis is unreachable, the log gets the beginning of the message.

        Tries once: a worker waiting on a full Redis could never finish the work that frees its memory.
        """
        logger.error("a message%s was rejected: %s", f" on {lane}" if lane else "", reason)
        try:
            self.put(message, reason, once=once)
        except RedisUnreachable as error:  # had it been a batch of ours: that is still open in the ledger
            logger.error("it could not be stored (%s); it began with %r", error, message[:LOGGED_CHARACTERS])

    def count(self) -> int:
        """How many there are; at most MAX_DEAD_LETTERS are kept."""
        return int(self._redis.llen(DEAD_LETTERS))

    def clear(self) -> int:
        """Remove them all; the number of them."""
        pipe = self._redis.pipeline()
        pipe.llen(DEAD_LETTERS)
        pipe.delete(DEAD_LETTERS)
        return int(pipe.execute()[0])

    def newest_reason(self) -> str:
        """Why the newest message was rejected; empty when there is none."""
        entries = cast(list[str], self._redis.lrange(DEAD_LETTERS, 0, 0))
        return str(json.loads(entries[0])["reason"]) if entries else ""
