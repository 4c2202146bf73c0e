"""The ledger: every Redis key of a job, with its lifetime. What it says is the truth, not the broker.

    posters:jobs            zset    job id → created                   trimmed with its jobs
    posters:active          set     jobs that may hold open batches    until the job is at rest
    posters:job:J           hash    state, counts, created, …          settings.keep_jobs_days after the end
    posters:job:J:open      hash    batch id → EmbedBatch as JSON      until the batch is finished
    posters:job:J:tries     hash    batch id → attempts counted,       until the batch is finished
                                    batch id + # → attempts begun
    posters:job:J:doing     hash    batch id → posters done so far     until the batch is finished
    posters:job:J:failures  hash    poster id → [path, word, reason]   settings.keep_jobs_days after the end
    posters:job:J:vectors   hash    poster id → base64 of the vector   REPLY_S; only where a caller waits
    posters:claim:B         string  who works on batch B               settings.claim_s, renewed meanwhile
    posters:sender:J        string  a producer still sends             SENDER_S, renewed meanwhile
    posters:quarantine      list    messages put aside, with a reason  the newest QUARANTINED_MOST

Batches move in one direction: ``step`` (written before it is sent) → ``claim`` (the attempt is counted
before a poster is touched) → ``finish`` (counted once, whatever is delivered twice). Steps that must not
be torn apart are Lua scripts; they never read the clock, so a clock that jumps cannot hurt them.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from worker import ledger_scripts
from worker.errors import JobUnknown
from worker.messages import EmbedBatch
from worker.progress import Claim, Failure, Outcome, Progress
from worker.redis_client import answers, connect

JOBS: Final = "posters:jobs"
ACTIVE: Final = "posters:active"
QUARANTINE: Final = "posters:quarantine"
QUARANTINED_MOST: Final = 1000  # enough to see what a wrong sender does, too few to fill Redis
REPLY_S: Final = 300  # longer than any backend waits for one vector
SENDER_S: Final = 30  # a producer renews it with every batch; silence means that it died
COUNTS: Final = ("submitted", "embedded", "reused", "unchanged", "failed", "cancelled")


def _keys(job: str, *names: str) -> list[str]:
    return [f"posters:job:{job}" + (f":{name}" if name else "") for name in names]


def _claim_key(batch: str) -> str:
    return f"posters:claim:{batch}"


class Ledger:
    """Read and write the ledger. Safe to share between threads.

    Every method raises RedisUnreachable when Redis does not answer within the timeouts of
    redis_client.connect; what it was doing then either happened whole or not at all.
    """

    def __init__(self, url: str, *, claim_s: float = 30, keep_s: int = 30 * 86400) -> None:
        """`url` as settings.redis_url; `claim_s` as settings.claim_s; `keep_s`: lifetime of ended jobs."""
        self.url = url
        self._claim_ms = int(claim_s * 1000)
        self._keep_s = keep_s
        self._redis = connect(url)
        script = self._redis.register_script
        self._claim, self._finish, self._cut = (
            script(ledger_scripts.CLAIM),
            script(ledger_scripts.FINISH),
            script(ledger_scripts.CUT),
        )
        self._give_back, self._beat = script(ledger_scripts.GIVE_BACK), script(ledger_scripts.BEAT)
        self._step, self._sent = script(ledger_scripts.STEP), script(ledger_scripts.SENT)

    # the producer's side

    def create(self, job: str, *, keep_s: int | None = None, **about: str) -> None:
        """Begin a job in state ``sending``; `about` is kept with it (root, store, space, …).

        With `keep_s` the job is a passing one: forgotten so soon after its end, and in no list.
        """
        now = time.time()
        entry: dict[Any, Any] = dict.fromkeys(COUNTS, "0")
        entry |= {"state": "sending", "created": repr(now), "keep_s": str(keep_s or self._keep_s)} | about
        with answers(self.url):
            pipe = self._redis.pipeline()
            pipe.hset(f"posters:job:{job}", mapping=entry)
            if keep_s is None:
                pipe.zadd(JOBS, {job: now})
                pipe.zremrangebyscore(JOBS, "-inf", now - 2 * self._keep_s)
            pipe.sadd(ACTIVE, job)
            pipe.set(f"posters:sender:{job}", "alive", ex=SENDER_S)
            pipe.execute()

    def step(
        self,
        job: str,
        number: int,
        *,
        batch: EmbedBatch | None = None,
        unchanged: int = 0,
        failures: Sequence[Failure] = (),
    ) -> bool:
        """Write down one step of sending, once: a batch (before it is sent), and posters settled without one.

        Args:
            number: counts from 1; a step that was written before is left as it is, so that a caller
                that heard no answer may simply ask again.

        Returns:
            False when the job was cancelled in the meantime: nothing was written, and nothing may be sent.

        Raises:
            JobUnknown: the job's entry is gone, for example because Redis lost its data.
        """
        keys = [*_keys(job, "", "open", "failures"), f"posters:sender:{job}", ACTIVE]
        told = [text for failure in failures for text in (failure.id, json.dumps(failure[1:]))]
        sent = [batch.batch, json.dumps(batch.encode()), len(batch.posters)] if batch else []
        arguments: list[Any] = [job, number, SENDER_S, unchanged, len(failures), *told, *sent]
        with answers(self.url):
            taken = self._step(keys, arguments)
        if taken == -1:
            raise JobUnknown(f"job {job} is gone from the ledger: did Redis lose its data? Run it again")
        return taken != -2

    def still_sending(self, job: str) -> None:
        """Say that the producer lives while it waits for room in its window."""
        with answers(self.url):
            self._redis.set(f"posters:sender:{job}", "alive", ex=SENDER_S)

    def sent(self, job: str) -> None:
        """No more batches will come."""
        keys = [*_keys(job, "", "open", "failures"), f"posters:sender:{job}"]
        with answers(self.url):
            self._sent(keys, [repr(time.time()), self._keep_s])

    def cancel(self, job: str) -> int:
        """Withdraw every batch that nobody works on; how many posters. They leave `submitted`."""
        withdrawn = 0
        key, opened = _keys(job, "", "open")
        self.progress(job)
        with answers(self.url):
            self._redis.hset(key, "state", "cancelled")
            for batch_id, text in self._redis.hscan_iter(opened):
                if not self._redis.exists(_claim_key(batch_id)):
                    batch = EmbedBatch.decode(json.loads(text))
                    if self._settle(batch, Outcome(), cancelled=len(batch.posters)):
                        withdrawn += len(batch.posters)
        return withdrawn

    # the worker's side

    def claim(self, batch: EmbedBatch, owner: str) -> tuple[Claim, int, bool]:
        """Ask for a batch: verdict, number of this attempt from 1, whether it was begun before.

        Attempts that `give_back` took back are not counted, but they did begin.
        """
        keys = [*_keys(batch.job, "open", "tries"), _claim_key(batch.batch)]
        with answers(self.url):
            verdict, attempt, deliveries = cast(list[Any], self._claim(keys, [batch.batch, owner, self._claim_ms]))
        return Claim(verdict), attempt, deliveries > 1

    def beat(self, batch: EmbedBatch, owner: str, done: int) -> bool:
        """Renew the claim and say how far it is; False when the batch is not `owner`'s any more."""
        keys = [*_keys(batch.job, "open", "doing"), _claim_key(batch.batch)]
        with answers(self.url):
            return bool(self._beat(keys, [batch.batch, owner, self._claim_ms, done]))

    def give_back(self, batch: EmbedBatch, owner: str, after_s: float, *, count: bool = False) -> None:
        """Return a batch, to be sent again after `after_s`; `count`: the attempt stays counted."""
        keys = [*_keys(batch.job, "open", "tries"), _claim_key(batch.batch)]
        with answers(self.url):
            self._give_back(keys, [batch.batch, owner, max(1, int(after_s * 1000)), int(not count)])

    def finish(self, batch: EmbedBatch, outcome: Outcome) -> bool:
        """Count a batch as finished, once; False when it was finished before."""
        parts = outcome.embedded + outcome.reused + outcome.unchanged + len(outcome.failures)
        if parts != len(batch.posters):
            raise ValueError(f"batch {batch.batch} holds {len(batch.posters)} posters, its outcome {parts}")
        with answers(self.url):
            return self._settle(batch, outcome)

    def cut(self, batch: EmbedBatch) -> tuple[EmbedBatch, EmbedBatch] | None:
        """Replace an open batch by its halves; None when it was finished in the meantime."""
        opened, tries, doing = _keys(batch.job, "open", "tries", "doing")
        halves = batch.halves()
        texts = [text for half in halves for text in (half.batch, json.dumps(half.encode()))]
        with answers(self.url):
            cut = self._cut([opened, tries, _claim_key(batch.batch), doing], [batch.batch, *texts])
        return halves if cut else None

    def quarantine(self, message: str, reason: str) -> None:
        """Put aside a message that is not a batch."""
        entry = json.dumps({"at": time.time(), "reason": reason, "message": message})
        with answers(self.url):
            pipe = self._redis.pipeline()
            pipe.lpush(QUARANTINE, entry)
            pipe.ltrim(QUARANTINE, 0, QUARANTINED_MOST - 1)
            pipe.execute()

    # everybody's

    def quarantined(self) -> int:
        """How many messages were put aside."""
        with answers(self.url):
            return int(self._redis.llen(QUARANTINE))

    def progress(self, job: str) -> Progress:
        """The job's counts at this moment; JobUnknown if there is no such job."""
        key, opened, doing = _keys(job, "", "open", "doing")
        with answers(self.url):
            pipe = self._redis.pipeline()
            pipe.hgetall(key)
            pipe.hlen(opened)
            pipe.hvals(doing)
            pipe.exists(f"posters:sender:{job}")
            entry, open_batches, done, sender = pipe.execute()
        if not entry:
            raise JobUnknown(f"no job {job!r} in the ledger at this Redis; `status` lists the jobs there are")
        state = entry["state"]
        if state == "sending" and not sender:
            state = "abandoned"  # its producer died; the same command again goes on where it stopped
        at_rest = state != "sending" and open_batches == 0
        return Progress(
            job=job,
            state=state,
            **{name: int(entry.get(name, 0)) for name in COUNTS},
            doing=sum(map(int, done)),
            open_batches=open_batches,
            created=float(entry["created"]),
            ended=float(entry.get("ended", entry["created"])) if at_rest else None,
        )

    def about(self, job: str) -> dict[str, str]:
        """Everything that `create` was told of the job."""
        with answers(self.url):
            entry = cast(dict[str, str], self._redis.hgetall(f"posters:job:{job}"))
        return {name: value for name, value in entry.items() if name not in COUNTS}

    def jobs(self, most: int = 20) -> list[str]:
        """Ids of the newest jobs, newest first."""
        with answers(self.url):
            names = cast(list[str], self._redis.zrevrange(JOBS, 0, most - 1))
            return [name for name in names if self._redis.exists(f"posters:job:{name}")]

    def failures(self, job: str) -> Iterator[Failure]:
        """The job's failures, in no order, lazily."""
        with answers(self.url):
            for poster, text in self._redis.hscan_iter(_keys(job, "failures")[0], count=500):
                yield Failure(poster, *json.loads(text))

    def vectors(self, job: str, ids: Sequence[str]) -> dict[str, bytes]:
        """Little-endian float32 bytes of those ids that a replying batch has left."""
        with answers(self.url):
            found = cast(list[Any], self._redis.hmget(_keys(job, "vectors")[0], list(ids)))
        return {name: base64.b64decode(text) for name, text in zip(ids, found, strict=True) if text}

    def active(self) -> list[str]:
        """Jobs that may hold open batches; those at rest are struck off the list."""
        with answers(self.url):
            names = cast(set[str], self._redis.smembers(ACTIVE))
            pipe = self._redis.pipeline()
            for name in names:
                pipe.hlen(_keys(name, "open")[0])
                pipe.exists(f"posters:sender:{name}")
            found = pipe.execute()
            idle = [
                name for name, left, sender in zip(names, found[::2], found[1::2], strict=True) if not (left or sender)
            ]
            if idle:
                self._redis.srem(ACTIVE, *idle)
        return sorted(names.difference(idle))

    def unclaimed(self, job: str) -> dict[str, int]:
        """Open batches that no live worker holds: batch id → attempts begun."""
        opened, tries = _keys(job, "open", "tries")
        with answers(self.url):
            ids = cast(list[str], self._redis.hkeys(opened))
            if not ids:
                return {}
            pipe = self._redis.pipeline()
            for batch_id in ids:
                pipe.exists(_claim_key(batch_id))
            pipe.hmget(tries, ids)
            *claimed, begun = pipe.execute()
        return {
            batch_id: int(count or 0) for batch_id, held, count in zip(ids, claimed, begun, strict=True) if not held
        }

    def load(self, job: str, batch_id: str) -> EmbedBatch | None:
        """An open batch as it was written down; None when it is not open any more."""
        with answers(self.url):
            text = cast(str | None, self._redis.hget(_keys(job, "open")[0], batch_id))
        return EmbedBatch.decode(json.loads(text)) if text else None

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()

    def _settle(self, batch: EmbedBatch, outcome: Outcome, cancelled: int = 0) -> bool:
        keys = [
            *_keys(batch.job, "", "open", "tries", "doing", "failures", "vectors"),
            _claim_key(batch.batch),
        ]
        failures = [text for failure in outcome.failures for text in (failure.id, json.dumps(failure[1:]))]
        vectors = [text for name, raw in outcome.vectors.items() for text in (name, base64.b64encode(raw))]
        counts = [outcome.embedded, outcome.reused, outcome.unchanged, len(outcome.failures), cancelled]
        head = [batch.batch, repr(time.time()), self._keep_s, REPLY_S, *counts, len(outcome.failures)]
        arguments: list[Any] = [*head, *failures, *vectors]
        return bool(self._finish(keys, arguments))
