"""The vector store in Redis: for several machines, and for Redis' own search. Format: docs/store.md.

posters:v:SPACE:ID        hash   vector, digest, size, mtime_ns, stored
posters:vector-ids:SPACE  zset   every id with score 0, so that ranges come in byte order
posters:contents:SPACE    zset   digest:id of every row with score 0, so that a range finds the rows of a content
posters:space:SPACE       hash   space, created, changed, version, provenance, calibration
posters:spaces            zset   space ids by the time of their creation
posters:current-space     string the space that readers use
posters:probe             string written by `check`, for a second
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from producer.embedding import Space, Vectors
from producer.errors import PosterError, RedisUnreachable, StoreError, StoreUnavailable
from producer.redis_client import RedisClient, ScriptMissing, connect
from producer.settings import without_password
from producer.vectors.base import Calibration, Row, SpaceInfo
from producer.vectors.codec import checked, first_version, pack, unpack, unpack_many

SPACES: Final = "posters:spaces"
CURRENT: Final = "posters:current-space"
PROBE: Final = "posters:probe"
STORE_ID: Final = "posters:store-id"
ROWS_PAGE: Final = 512  # rows per round trip: one megabyte of 512-number vectors
CANDIDATES: Final = 4  # rows read per content: two writers of one id may leave a stale index entry
ANSWER_TIMEOUT_S: Final = 10.0  # a megabyte over a slow line, and a Redis that writes its AOF


class _StoreClient(RedisClient):
    def translate(self, error: RedisUnreachable) -> PosterError:
        if isinstance(error, ScriptMissing):  # redis-py loads the script then
            return error
        return StoreUnavailable(f"the store cannot be used for now: {error}")


class RedisStore:
    """Keeps the contract of VectorStore in Redis. Safe to share between threads and machines."""

    def __init__(self, url: str) -> None:
        """Connects on first use."""
        self._url = url
        self._redis = connect(url, _StoreClient, decode_responses=False, socket_timeout=ANSWER_TIMEOUT_S)
        self._put_rows = self._redis.load_script("producer.vectors", "put_rows")
        self._get_fields = self._redis.load_script("producer.vectors", "get_fields")

    def put(
        self,
        space: Space,
        rows: Sequence[Row],
        vectors: Vectors,
        provenance: Mapping[str, str] | None = None,
        *,
        seen: Mapping[str, Row] | None = None,
    ) -> None:
        rows, vectors = checked(space, rows, vectors)
        described = "" if provenance is None else json.dumps(dict(provenance), sort_keys=True)
        values: list[Any] = [space.id, space.to_json(), described, repr(time.time()), first_version()]
        values.append("0" if seen is None else "1")
        for row, raw in zip(rows, pack(vectors), strict=True):
            before = seen.get(row.id) if seen else None
            values += [*row, raw, *(before[1:] if before else ("", "", ""))]
        keys = [_space_key(space.id), SPACES, CURRENT, _ids_key(space.id), _contents_key(space.id)]
        self._put_rows([*keys, *(_key(space.id, row.id) for row in rows)], values)

    def get(self, space_id: str, ids: Sequence[str]) -> dict[str, Vectors]:
        dimension = self._dimension(space_id)
        if dimension is None:
            return {}
        found = self._fields(space_id, ids, ["vector"])
        return {name: unpack(raw, dimension) for name, (raw,) in found.items() if raw is not None}

    def rows(self, space_id: str, ids: Sequence[str]) -> dict[str, Row]:
        found = self._fields(space_id, ids, ["digest", "size", "mtime_ns"])
        return {
            name: Row(name, digest.decode(), int(size), int(mtime))
            for name, (digest, size, mtime) in found.items()
            if digest is not None
        }

    def stored(self, space_id: str, ids: Sequence[str]) -> dict[str, float]:
        found = self._fields(space_id, ids, ["stored"])
        return {name: float(stored) for name, (stored,) in found.items() if stored is not None}

    def by_content(self, space_id: str, digests: Sequence[str]) -> dict[str, Vectors]:
        dimension = self._dimension(space_id)
        if dimension is None or not digests:
            return {}
        pipe = self._redis.pipeline(transaction=False)
        for digest in digests:
            # ; follows : in ASCII
            pipe.zrangebylex(_contents_key(space_id), f"[{digest}:", f"({digest};", start=0, num=CANDIDATES)
        named = cast(list[list[bytes]], pipe.execute())
        ids = [
            (digest, name.decode().removeprefix(f"{digest}:"))
            for digest, names in zip(digests, named, strict=True)
            for name in names
        ]
        found = self._fields(space_id, [name for _, name in ids], ["vector", "digest"])
        return {
            digest: unpack(found[name][0], dimension)
            for digest, name in ids
            # the row may have got another content or have gone since the index was read
            if found[name][0] is not None and found[name][1].decode() == digest
        }

    def read(self, space_id: str, chunk: int = 8192) -> Iterator[tuple[list[Row], Vectors]]:
        dimension = self._dimension(space_id)
        if dimension is None:
            return
        for names in self.ids(space_id, chunk):
            found = self._fields(space_id, names, ["vector", "digest", "size", "mtime_ns"])
            there = [name for name in names if found[name][0] is not None]  # others went since the ids were read
            rows = [Row(name, found[name][1].decode(), *map(int, found[name][2:])) for name in there]
            if there:
                yield rows, unpack_many([found[name][0] for name in there], dimension)

    def ids(self, space_id: str, chunk: int = 65536, prefix: str = "", after: str = "") -> Iterator[list[str]]:
        start = f"[{prefix}".encode() if prefix else b"-"
        if after >= prefix and after:
            start = f"({after}".encode()
        while True:
            page = cast(list[bytes], self._redis.zrangebylex(_ids_key(space_id), start, "+", start=0, num=chunk))
            names = [name.decode() for name in page]
            within = [name for name in names if name.startswith(prefix)]
            if within:
                yield within
            if len(within) < len(page) or not page:
                return
            start = b"(" + page[-1]

    def count(self, space_id: str) -> int:
        return int(self._redis.zcard(_ids_key(space_id)))

    def version(self, space_id: str) -> str:
        version, changed = cast(list[bytes | None], self._redis.hmget(_space_key(space_id), ["version", "changed"]))
        # a Redis that was restored from an old copy may count up to the same number again
        return f"{version.decode()}@{(changed or b'').decode()}" if version else ""

    def delete(self, space_id: str, ids: Sequence[str]) -> int:
        gone = 0
        for start in range(0, len(ids), ROWS_PAGE):
            part = list(dict.fromkeys(ids[start : start + ROWS_PAGE]))
            digests = self._digests(space_id, part)
            pipe = self._redis.pipeline(transaction=True)
            for name in part:
                pipe.delete(_key(space_id, name))
            for name, digest in digests.items():
                pipe.zrem(_contents_key(space_id), _content(digest, name))
            if digests:
                self._touch(pipe, space_id, repr(time.time()))
            pipe.zrem(_ids_key(space_id), *part)
            gone += int(pipe.execute()[-1])
        return gone

    def spaces(self) -> list[SpaceInfo]:
        infos = []
        for name in self._space_ids():
            entry = cast(dict[bytes, bytes], self._redis.hgetall(_space_key(name)))
            space = Space.from_json(entry[b"space"].decode())
            count = self.count(name)
            provenance = json.loads(entry.get(b"provenance", b"{}"))
            created, changed = entry[b"created"], entry.get(b"changed", entry[b"created"])
            size = count * space.dimension * 4
            calibration = Calibration.from_json(entry[b"calibration"].decode()) if b"calibration" in entry else None
            infos.append(SpaceInfo(space, count, size, float(created), float(changed), provenance, calibration))
        return infos

    def current(self) -> str | None:
        name = cast(bytes | None, self._redis.get(CURRENT))
        return name.decode() if name else None

    def use(self, space_id: str) -> None:
        self._require_space(space_id)
        self._redis.set(CURRENT, space_id)

    def calibrate(self, space_id: str, calibration: Calibration | None) -> None:
        self._require_space(space_id)
        if calibration is None:
            self._redis.hdel(_space_key(space_id), "calibration")
        else:
            self._redis.hset(_space_key(space_id), "calibration", calibration.to_json())

    def drop(self, space_id: str) -> int:
        gone = 0
        while page := cast(list[bytes], self._redis.zrange(_ids_key(space_id), 0, ROWS_PAGE - 1)):
            gone += self.delete(space_id, [name.decode() for name in page])
        self._redis.delete(_space_key(space_id), _contents_key(space_id))
        self._redis.zrem(SPACES, space_id)
        if self.current() == space_id:
            left = self._space_ids()
            if left:
                self._redis.set(CURRENT, left[0])
            else:
                self._redis.delete(CURRENT)
        return gone

    def check(self) -> str:
        self._redis.set(PROBE, "1", ex=1)
        self._redis.setnx(STORE_ID, secrets.token_hex(8))
        return cast(bytes, self._redis.get(STORE_ID)).decode()

    def close(self) -> None:
        self._redis.close()

    def _require_space(self, space_id: str) -> None:
        known = self._space_ids()
        if space_id not in known:
            shown = without_password(self._url)
            raise StoreError(f"{shown} has no space {space_id!r}; it has: {', '.join(known) or 'none'}")

    def _space_ids(self) -> list[str]:
        return [name.decode() for name in cast(list[bytes], self._redis.zrange(SPACES, 0, -1))]

    def _touch(self, pipe: Any, space_id: str, now: str) -> None:
        """Give the space another version, in the transaction that changes its rows."""
        pipe.hincrby(_space_key(space_id), "version", 1)
        pipe.hset(_space_key(space_id), "changed", now)

    def _fields(self, space_id: str, ids: Sequence[str], names: list[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for start in range(0, len(ids), ROWS_PAGE):
            part = ids[start : start + ROWS_PAGE]
            values = self._get_fields([_key(space_id, name) for name in part], names)
            found.update(zip(part, values, strict=True))
        return found

    def _digests(self, space_id: str, ids: Sequence[str]) -> dict[str, str]:
        found = self._fields(space_id, ids, ["digest"])
        return {name: digest.decode() for name, (digest,) in found.items() if digest is not None}

    def _dimension(self, space_id: str) -> int | None:
        text = cast(bytes | None, self._redis.hget(_space_key(space_id), "space"))
        return Space.from_json(text.decode()).dimension if text else None


def _key(space_id: str, name: str) -> str:
    return f"posters:v:{space_id}:{name}"


def _ids_key(space_id: str) -> str:
    return f"posters:vector-ids:{space_id}"


def _contents_key(space_id: str) -> str:
    return f"posters:contents:{space_id}"


def _content(digest: str, name: str) -> str:
    return f"{digest}:{name}"


def _space_key(space_id: str) -> str:
    return f"posters:space:{space_id}"
