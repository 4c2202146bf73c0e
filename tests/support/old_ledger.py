"""What version 0.1 left in Redis, put back into a Redis of today with ordinary commands."""

from __future__ import annotations

import json
from pathlib import Path

import redis

FIXTURES = Path(__file__).parent / "fixtures"  # written by write_v0_1.py there
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
