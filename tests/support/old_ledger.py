"""Version 0.1 beside today's: what it left in Redis, and its worker's steps on a ledger of today."""

from __future__ import annotations

import json
from pathlib import Path

import redis

from producer.queue.jobs import JobStore
from producer.queue.keys import ACTIVE, NOBODY, RETURNED, claim_key, job_keys
from producer.queue.messages import EmbedBatch

FIXTURES = Path(__file__).parent / "fixtures"  # written by write_v0_1.py there; scripts and validation are copies
STORE, LEDGER = FIXTURES / "store-v0.1.db", FIXTURES / "ledger-v0.1.json"
LIFETIME_S = 3600  # of keys that expire; how long they still had when they were read does not matter


def restore(client: redis.Redis) -> None:
    """Write every key of the dump: hash, list, set, zset or string; those that expired expire again."""
    for key, entry in json.loads(LEDGER.read_text(encoding="utf-8")).items():
        value = entry["value"]
        match entry["type"]:
            case "hash":
                client.hset(key, mapping=value)
            case "list":
                client.rpush(key, *value)
            case "set":
                client.sadd(key, *value)
            case "zset":
                client.zadd(key, dict(value))
            case "string":
                client.set(key, value)
        if entry["expires"]:
            client.expire(key, LIFETIME_S)


class OldWorker:
    """The steps that a worker of version 0.1 takes with a batch."""

    def __init__(self, job_store: JobStore, owner: str) -> None:
        """`job_store` is the caller's to close."""
        self._redis, self._owner, self._holder = job_store.redis, owner, f"{owner}#1"

    def claim(self, batch: EmbedBatch) -> tuple[str, int]:
        """Verdict, and attempts counted."""
        arguments = [batch.batch, self._holder, self._owner, 30_000]
        verdict, attempt, _ = self._run("claim_batch", batch, ("", "open", "tries"), arguments)
        return verdict, int(attempt)

    def renew(self, batch: EmbedBatch, done: int) -> bool:
        """True while it holds the batch."""
        return bool(self._run("renew_claim", batch, ("open", "doing"), [batch.batch, self._holder, 30_000, done]))

    def release(self, batch: EmbedBatch) -> bool:
        """True if it held the batch; the attempt is taken back."""
        arguments = [batch.batch, self._holder, batch.job, 0, 1, NOBODY]
        return bool(self._run("release_claim", batch, ("open", "tries"), arguments, RETURNED))

    def finish(self, batch: EmbedBatch) -> bool:
        """True if it counted the batch, as embedded."""
        names = ("", "open", "tries", "doing", "failures", "vectors")
        arguments = [batch.job, batch.batch, "1.0", 3600, 300, 0, NOBODY, len(batch.posters), 0, 0, 0, 0, 0]
        return bool(self._run("finish_batch", batch, names, arguments, ACTIVE, RETURNED))

    def split(self, batch: EmbedBatch) -> bool:
        """True if it replaced the batch by its halves."""
        parts = [text for half in batch.halves() for text in (half.batch, json.dumps(half.encode()), len(half.posters))]
        arguments = [batch.job, batch.batch, 1, *parts]
        return bool(self._run("split_batch", batch, ("open", "tries", "doing"), arguments, RETURNED))

    def _run(self, script: str, batch: EmbedBatch, names: tuple[str, ...], arguments: list, *more: str):
        text = (FIXTURES / "lua-v0.1" / f"{script}.lua").read_text(encoding="utf-8")
        return self._redis.register_script(text)(
            [*job_keys(batch.job, *names), claim_key(batch.batch), *more], arguments
        )
