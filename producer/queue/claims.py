"""Claims: which worker holds an open batch, from its claim until it is finished, returned or split."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection
from functools import partial
from typing import Final, NamedTuple, cast

from producer.errors import BadMessage
from producer.queue.jobs import JobStore
from producer.queue.keys import ACTIVE, NOBODY, PAUSED, RESTING, RETURNED, claim_key, job_keys
from producer.queue.messages import BULK, LANES, QUEUES, AnyBatch, BatchMessage, EmbedBatch
from producer.queue.progress import Claim, Failure, Outcome
from producer.queue.scripts import load_script
from producer.redis_client import RedisClient

QUEUE_PAGE: Final = 64  # messages per script call: a few milliseconds in which Redis answers nobody else
CLAIMS_PAGE: Final = 500


def new_holder(owner: str) -> str:
    """A holder id, OWNER#NONCE, unique to one delivery."""
    return f"{owner}#{secrets.token_hex(4)}"


class Claimed(NamedTuple):
    """The answer to a claim.

    Attributes:
        verdict: whether it was granted.
        attempt: one more than those that ended badly; 0 unless it was granted.
        begun_before: whether an earlier attempt began, counted or not.
        text: the batch as it was recorded; empty where it is not open, or another worker's.
        posters: how many were recorded with it; None: a producer of version 0.1 did not note it.
    """

    verdict: Claim
    attempt: int
    begun_before: bool
    text: str = ""
    posters: int | None = None

    def batch(self, message: AnyBatch) -> EmbedBatch:
        """The batch that `message` names.

        Raises:
            NewerMessage: a newer version of this program recorded it.
            BadMessage: it cannot be read.
        """
        try:
            batch = EmbedBatch.decode(json.loads(self.text))
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"it is not JSON: {error}") from error
        if (batch.job, batch.batch) != (message.job, message.batch):
            raise BadMessage(f"it is recorded as batch {batch.batch!r} of job {batch.job!r}")
        if self.posters not in (None, len(batch.posters)):
            raise BadMessage(f"it holds {len(batch.posters)} posters, and was recorded with {self.posters}")
        return batch


class Claims:
    """Claim, renew, release, finish and split batches. Threads may share an instance.

    Every method may be repeated when RedisUnreachable was raised.
    """

    def __init__(self, job_store: JobStore, client: RedisClient | None = None) -> None:
        """`client` None: the job store's. The caller closes both."""
        self._job_store, self._redis = job_store, client or job_store.redis
        self._claim_ms = int(job_store.claim_s * 1000)
        script = partial(load_script, self._redis)
        self._claim, self._renew = script("claim_batch"), script("renew_claim")
        self._release, self._release_dead = script("release_claim"), script("release_dead_claim")
        self._finish, self._split = script("finish_batch"), script("split_batch")
        self._queued_ids, self._resume = script("queued_ids"), script("resume_bulk")

    # the worker's side

    def claim(self, batch: AnyBatch, holder: str) -> Claimed:
        """Claim a batch.

        `holder` is from `new_holder`; a new holder of the same owner takes the batch over: it is the child that
        replaces a dead one.
        """
        keys = [*job_keys(batch.job, "", "open", "tries"), claim_key(batch.batch), PAUSED, RESTING]
        owner, is_bulk = holder.rpartition("#")[0], int(batch.lane == BULK)
        arguments = [batch.batch, holder, owner, self._claim_ms, batch.job, is_bulk]
        verdict, attempt, begun, text, posters = self._claim(keys, arguments)
        count = None if posters is None else int(posters)
        return Claimed(Claim(verdict), int(attempt or 0), int(begun or 0) > 1, text, count)

    def renew(self, batch: AnyBatch, holder: str, done: int) -> bool:
        """Renew the claim and record how many posters are done. Returns False if the holder no longer has the batch."""
        keys = [*job_keys(batch.job, "open", "tries", "doing"), claim_key(batch.batch)]
        return bool(self._renew(keys, [batch.batch, holder, self._claim_ms, done]))

    def release(self, batch: AnyBatch, holder: str, after_s: float = 0, *, count: bool = False) -> bool:
        """Return a batch, to be sent again after `after_s`; with `count` the attempt is counted, as a crash.

        Returns False, and changes nothing, if the holder no longer has the batch.
        """
        keys = [*job_keys(batch.job, "open", "tries"), claim_key(batch.batch), RETURNED]
        after_ms = round(after_s * 1000)
        return bool(self._release(keys, [batch.batch, holder, batch.job, after_ms, int(count), NOBODY]))

    def release_dead(self, batch: AnyBatch, owner: str, *, crashed: bool) -> bool:
        """For a parent process: release the batch that its child died with. Returns False if `owner` had no claim.

        Otherwise the next worker would respect the dead child's claim until it expires. The attempt is counted;
        `crashed`: the child died by itself, and was not killed from outside.
        """
        keys = [*job_keys(batch.job, "open", "tries"), claim_key(batch.batch), RETURNED]
        return bool(self._release_dead(keys, [batch.batch, owner, batch.job, int(crashed)]))

    def crashes(self, batch: AnyBatch) -> int:
        """How many of a batch's attempts are known to have crashed; of the others, nobody knows why they ended."""
        return int(cast(str | None, self._redis.hget(job_keys(batch.job, "tries")[0], f"{batch.batch}!")) or 0)

    def finish(self, batch: EmbedBatch, outcome: Outcome) -> bool:
        """Count a batch as finished, once. Returns False if it was finished before.

        Raises:
            ValueError: the outcome does not add up to the batch; nothing was counted, and the batch stays open.
        """
        counted = self._count(batch, outcome) if outcome.posters == len(batch.posters) else -1
        if counted < 0:
            raise ValueError(f"batch {batch.batch} holds {len(batch.posters)} posters, its outcome {outcome.posters}")
        return counted > 0

    def withdraw(self, batch: AnyBatch, text: str) -> int:
        """Remove a batch, recorded as `text`, from its cancelled job. Returns how many posters.

        0: a worker holds it, or it was finished.
        """
        return self._count(batch, Outcome(), "withdrawn", cancelled=len(_posters(text)) or 1)

    def fail_unreadable(self, batch: AnyBatch, text: str, reason: str) -> int:
        """Fail the posters of an open batch that was recorded as `text`, which nobody can read: its job must end.

        Returns how many.
        """
        names = _posters(text) or [(batch.batch, batch.batch)]
        failures = tuple(Failure(*name, "internal", reason) for name in names)
        return self._count(batch, Outcome(failures=failures), "unreadable")

    def split(self, batch: EmbedBatch, counted: int = 0) -> tuple[EmbedBatch, EmbedBatch] | None:
        """Replace an open batch by its halves, which redelivery sends. Returns None if it was finished meanwhile.

        Args:
            counted: attempts that a half of several posters begins with; a single poster begins with none.
        """
        halves = batch.halves()
        parts = [part for half in halves for part in (half.batch, json.dumps(half.encode()), len(half.posters))]
        keys = [*job_keys(batch.job, "open", "tries", "doing"), claim_key(batch.batch), RETURNED]
        return halves if self._split(keys, [batch.job, batch.batch, counted, *parts]) else None

    # redelivery, and commands

    def cancel(self, job: str) -> int:
        """Withdraw every batch that no worker holds. Returns the number of posters, which leave `submitted`.

        Raises:
            JobUnknown: there is no such job.
        """
        if not self._job_store.mark_cancelled(job):
            return 0
        batches = self._redis.hscan_iter(job_keys(job, "open")[0])
        return sum(self.withdraw(BatchMessage(job, batch_id), text) for batch_id, text in batches)

    def pause(self) -> float:
        """Pause the bulk lane: no worker begins a batch of it. Returns since when it is paused, seconds since 1970."""
        self._redis.set(PAUSED, repr(time.time()), nx=True)
        return self.paused_since() or time.time()

    def paused_since(self) -> float | None:
        """Since when the bulk lane is paused, seconds since 1970; None: it is not."""
        since = cast(str | None, self._redis.get(PAUSED))
        return None if since is None else float(since)

    def resume(self) -> int:
        """End the pause. Returns how many batches rested, which redelivery sends now."""
        return int(self._resume([PAUSED, RESTING, RETURNED], []))

    def resting(self) -> set[str]:
        """The batches that rest while the bulk lane is paused."""
        return set(cast(list[str], self._redis.hkeys(RESTING))) if self.paused_since() is not None else set()

    def open_batches(self, job: str) -> set[str]:
        """Ids of the job's open batches."""
        return set(cast(list[str], self._redis.hkeys(job_keys(job, "open")[0])))

    def message(self, job: str, batch_id: str) -> BatchMessage | None:
        """The message for an open batch, of whatever version; None when it is not open any more.

        The bulk lane where it cannot be told which: the worker that claims the batch says what is wrong with it.
        """
        text = cast(str | None, self._redis.hget(job_keys(job, "open")[0], batch_id))
        if text is None:
            return None
        lane = _record(text).get("lane")
        return BatchMessage(job, batch_id, lane if isinstance(lane, str) and lane in LANES else BULK)

    def claimed(self, batches: Collection[str]) -> set[str]:
        """The subset of the batches that are claimed, or paused after a release."""
        found: set[str] = set()
        names = sorted(batches)
        for start in range(0, len(names), CLAIMS_PAGE):
            part = names[start : start + CLAIMS_PAGE]
            held = cast(list[str | None], self._redis.mget([claim_key(name) for name in part]))
            found.update(name for name, holder in zip(part, held, strict=True) if holder)
        return found

    def queued(self, wanted: Collection[str]) -> set[str]:
        """The subset of the wanted batches that are on a lane. Only their ids travel, not the messages."""
        found: set[str] = set()
        for lane in LANES:
            start = 0
            while len(found) < len(wanted):
                page = self._queued_ids([QUEUES[lane]], [start, start + QUEUE_PAGE - 1])
                if not page:
                    break
                found.update(name for name in map(_task_id, page) if name in wanted)
                start += QUEUE_PAGE
        return found

    def any_queued(self, lanes: Collection[str]) -> bool:
        """Whether one of the lanes holds a message."""
        return any(self._redis.llen(QUEUES[lane]) for lane in lanes)

    def waiting(self, lane: str) -> tuple[int, str | None]:
        """How many messages a lane holds, and the job of the one that comes next; None: of none, or of no batch."""
        count = int(self._redis.llen(QUEUES[lane]))
        names = [_task_id(text) for text in self._queued_ids([QUEUES[lane]], [-1, -1])]
        return count, names[0].partition(".")[0] if names and "." in names[0] else None

    def take_returned(self) -> list[tuple[str, str]]:
        """Take the returned batches whose pause is over, as (job, batch); each goes to one caller."""
        resting = cast(dict[str, str], self._redis.hgetall(RETURNED))
        ready = set(resting) - self.claimed(resting) if resting else set()
        return [(resting[name], name) for name in sorted(ready) if self._redis.hdel(RETURNED, name)]

    def defer(self, batch_id: str, after_s: float) -> None:
        """Pause an open batch that this version cannot read, unless it is claimed."""
        self._redis.set(claim_key(batch_id), NOBODY, px=round(after_s * 1000), nx=True)

    def _count(self, batch: AnyBatch, outcome: Outcome, kind: str = "done", *, cancelled: int = 0) -> int:
        names = ("", "open", "tries", "doing", "failures")
        keys = [*job_keys(batch.job, *names), claim_key(batch.batch), ACTIVE, RETURNED]
        failures = [text for failure in outcome.failures for text in (failure.id, json.dumps(failure[1:]))]
        counts = [outcome.embedded, outcome.reused, outcome.unchanged, len(outcome.failures), cancelled]
        now, keep_s = repr(time.time()), self._job_store.keep_s
        head = [batch.job, batch.batch, now, keep_s, kind, NOBODY, *counts]
        return int(self._finish(keys, [*head, *failures]))


def _record(text: str) -> dict[str, object]:
    """The fields of a recorded batch of any version; none where it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _posters(text: str) -> list[tuple[str, str]]:
    """Ids and paths in a recorded batch of any version, as far as they can be read."""
    posters = _record(text).get("posters")
    entries = posters if isinstance(posters, list) else []
    return [(str(entry[0]), str(entry[1])) for entry in entries if isinstance(entry, list) and len(entry) > 1]


def _task_id(text: str) -> str:
    """The task id of a message: as Redis found it, or in the message as kombu writes it."""
    if not text.startswith(("{", "[")):
        return text
    try:
        return str(json.loads(text)["headers"]["id"])
    except (ValueError, LookupError, TypeError):
        return ""  # not a message of ours; the worker rejects it
