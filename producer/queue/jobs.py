"""The ledger of jobs in Redis: their counts, failures and open batches. It is authoritative, the broker is not.

A batch moves in one direction: ``record_step`` (before it is sent) → ``Claims.claim`` (the attempt is counted
before a poster is read) → ``Claims.finish`` (counted once, however often it is delivered).
The keys are in keys.py, the atomic steps in lua/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast

from producer.errors import JobUnknown, LedgerSetBack
from producer.queue.keys import ACTIVE, JOBS, MAX_JOBS, PROBE, PROBE_S, SENDER_S, job_keys, sender_key
from producer.queue.messages import EmbedBatch
from producer.queue.progress import Failure, Progress
from producer.queue.scripts import load_script
from producer.redis_client import connect

COUNTS: Final = ("submitted", "embedded", "reused", "unchanged", "failed", "cancelled")
FAILURES_PAGE: Final = 500  # per round trip
Page = tuple[int, list[Failure]]


class JobStore:
    """Read and write jobs. Threads may share an instance.

    Every method raises RedisUnreachable when Redis does not answer within the timeouts of
    redis_client.connect; it then happened whole or not at all, and may be repeated.
    """

    def __init__(self, url: str, *, claim_s: float = 30, keep_s: int = 30 * 86400) -> None:
        """`url` as settings.redis_url; `claim_s` as settings.claim_s; `keep_s`: lifetime of finished jobs."""
        self.url, self.claim_s, self.keep_s = url, claim_s, keep_s
        self.redis = connect(url)
        script = partial(load_script, self.redis)
        self._create, self._record_step = script("create_job"), script("record_step")
        self._mark_sent, self._mark_cancelled = script("mark_sent"), script("mark_cancelled")
        self._retire, self._progress = script("retire_job"), script("job_progress")
        self._keep_active, self._note_expected = script("keep_active"), script("note_expected")

    # for producers

    def create(self, job: str, *, keep_s: int | None = None, **about: str) -> None:
        """Create a job in state ``sending``; `about` is stored with it (root, store, space, …).

        With `keep_s` the job is forgotten so soon after its end, and is not listed.
        """
        entry = dict.fromkeys(COUNTS, "0") | about
        entry |= {"state": "sending", "created": repr(time.time()), "keep_s": str(keep_s or self.keep_s)}
        keys = [*job_keys(job, ""), ACTIVE, sender_key(job), JOBS]
        fields = [text for field in entry.items() for text in field]
        self._create(keys, [job, SENDER_S, int(keep_s is None), MAX_JOBS, *fields])

    def record_step(
        self,
        job: str,
        number: int,
        *,
        batch: EmbedBatch | None = None,
        unchanged: int = 0,
        failures: Sequence[Failure] = (),
    ) -> bool:
        """Record one step of sending, once: a batch before it is sent, and posters settled without one.

        Args:
            number: from 1; a step that was recorded before stays as it is, so that a caller that got no
                answer may repeat the call.

        Returns:
            False when the job was cancelled in the meantime: nothing was recorded, and nothing may be sent.

        Raises:
            LedgerSetBack: the job, or a step before this one, is gone: Redis came back without it.
        """
        failed = [text for failure in failures for text in (failure.id, json.dumps(failure[1:]))]
        sent = [batch.batch, json.dumps(batch.encode()), len(batch.posters)] if batch else []
        arguments = [job, number, SENDER_S, unchanged, len(failures), *failed, *sent]
        taken = self._record_step(_state_keys(job), arguments)
        _check(job, taken)
        return taken != -2

    def renew_sending(self, job: str) -> None:
        """Show that the producer is alive while its window is full."""
        self.redis.set(sender_key(job), "alive", ex=SENDER_S)

    def note_expected(self, job: str, posters: int) -> None:
        """Note how many posters the whole job will have."""
        self._note_expected(job_keys(job, ""), [posters])

    def mark_sent(self, job: str, steps: int = 0) -> None:
        """Mark a job as sent: no more batches will come.

        Raises:
            LedgerSetBack: Redis came back without some of the `steps` that were recorded.
        """
        _check(job, self._mark_sent(_state_keys(job), [job, repr(time.time()), self.keep_s, steps]))

    def mark_cancelled(self, job: str) -> bool:
        """Mark a job as cancelled: no worker begins any more of it. False when it is at rest already.

        Raises:
            JobUnknown: there is no such job.
        """
        taken = self._mark_cancelled(job_keys(job, "", "open"))
        if taken == -1:
            self.keep_active(job)  # Redis has lost its entry alone: what is open is done all the same, and expires
            self._retire_if_at_rest(job)
            raise _unknown(job)
        return bool(taken)

    # for all

    def progress(self, job: str) -> Progress:
        """The job's counts at this moment; JobUnknown if there is no such job."""
        return decode_progress(job, self._progress(progress_keys(job)))

    def created(self, job: str) -> float | None:
        """When a job began, seconds since 1970; None: it is unknown."""
        text = cast(str | None, self.redis.hget(job_keys(job, "")[0], "created"))
        return None if text is None else float(text)

    def list_jobs(self, limit: int = 20) -> list[str]:
        """Ids of the newest jobs, newest first, whatever the clocks of their producers show."""
        names = cast(list[str], self.redis.zrevrange(JOBS, 0, limit - 1))
        return [name for name in names if self.redis.exists(*job_keys(name, ""))]

    def failures(self, job: str, ask: Callable[[Callable[[], Page]], Page] = lambda page: page()) -> Iterator[Failure]:
        """The job's failures, in no order, lazily; `ask` calls for each page, and may repeat the call."""
        cursor, more = 0, True
        while more:
            cursor, some = ask(partial(self._failures, job, cursor))
            yield from some
            more = cursor != 0

    def _failures(self, job: str, cursor: int) -> Page:
        """A page of the job's failures, and the cursor of the next one; 0: this was the last."""
        cursor, found = cast(
            tuple[int, dict[str, str]], self.redis.hscan(job_keys(job, "failures")[0], cursor, count=FAILURES_PAGE)
        )
        return cursor, [Failure(poster, *json.loads(text)) for poster, text in found.items()]

    def list_active(self) -> list[str]:
        """Jobs that may hold open batches; those at rest are removed from the list, and expire in time."""
        names = sorted(cast(set[str], self.redis.smembers(ACTIVE)))
        return [name for name in names if not self._retire_if_at_rest(name)]

    def keep_active(self, job: str) -> bool:
        """Put a job with open batches back among the active ones, which redelivery searches. True if it was missing."""
        return bool(self._keep_active([*job_keys(job, "", "open"), ACTIVE], [job]))

    def server_info(self) -> dict[str, Any]:
        """What Redis says about itself (INFO)."""
        return dict(self.redis.info())

    def check_write(self) -> None:
        """Write a probe, which expires."""
        self.redis.set(PROBE, "1", ex=PROBE_S)

    def _retire_if_at_rest(self, job: str) -> bool:
        keys = [*_state_keys(job), *job_keys(job, "doing")]
        return bool(self._retire(keys, [job, repr(time.time()), self.keep_s]))

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()


def progress_keys(job: str) -> list[str]:
    """Keys of job_progress.lua."""
    return [*job_keys(job, "", "open", "doing"), sender_key(job)]


def decode_progress(job: str, answer: Sequence[Any]) -> Progress:
    """The counts that job_progress.lua returned; JobUnknown if there is no such job."""
    fields, open_batches, done, sender = answer
    entry: dict[str, str] = dict(zip(fields[::2], fields[1::2], strict=True))
    if "state" not in entry:
        raise _unknown(job)
    state = entry["state"]
    if state == "sending" and not sender:
        state = "abandoned"  # its producer died; the same command again goes on where it stopped
    at_rest = state != "sending" and open_batches == 0
    if at_rest and state == "sent":
        state = "finished"
    return Progress(
        job=job,
        state=state,
        **{name: int(entry.get(name, 0)) for name in COUNTS},
        doing=sum(map(int, done)),
        open_batches=open_batches,
        steps=int(entry.get("step", 0)),
        created=float(entry["created"]),
        ended=float(entry.get("ended", entry["created"])) if at_rest else None,
        expected=int(entry.get("expected", 0)),
    )


def _state_keys(job: str) -> list[str]:
    return [*job_keys(job, "", "open", "failures", "tries"), sender_key(job), ACTIVE]


def _check(job: str, taken: int) -> None:
    if taken == -1:
        raise LedgerSetBack(f"job {job} is gone from the ledger: did Redis lose its data? Run it again")
    if taken == -3:
        raise LedgerSetBack(
            f"Redis came back without the last steps of job {job}, as from an old copy of its data: "
            "run the same command again; it will resume from what is stored"
        )


def _unknown(job: str) -> JobUnknown:
    return JobUnknown(f"no job {job!r} in the ledger at this Redis; `status` lists the jobs there are")
