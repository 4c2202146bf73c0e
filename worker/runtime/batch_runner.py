"""Batches: claim, embed, count; release, split or fail those that cannot be embedded."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from producer.errors import BadMessage, DeviceLost, NewerMessage, PosterError, RedisUnreachable, WrongVectors
from producer.output import printable
from producer.queue.claims import Claimed, Claims, new_holder
from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.messages import BULK, BatchMessage, EmbedBatch
from producer.queue.progress import Claim, Failure, Outcome
from producer.queue.workers import LOADING, READY, WorkerRegistry, node_of
from producer.settings import Settings
from worker.pipeline.timings import Timings
from worker.runtime.backoff import FIRST_PAUSE_S, Backoff
from worker.runtime.heartbeat import BatchInterrupted, Heartbeat

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore
    from worker.pipeline.pipeline import Pipeline


# A kill from outside, a power cut, a stop that a hanging Redis did not learn of: not the poster's fault. But a poster
# that takes all memory dies in the same way, by the kernel's SIGKILL: so many of them, beyond `attempts`, count.
UNEXPLAINED_DEATHS: Final = 3
LANE_PAUSE_S: Final = 1.0  # for which an idle worker leaves the lane to another
OTHER_SPACE_PAUSE_S: Final = 5.0  # before a batch for another worker's space is sent again
NEWER_PAUSE_S: Final = 60.0  # before a batch that a newer worker can read is sent again
SPEED_DECAY: Final = 0.8  # weight of the batch before: the published bottleneck covers about the last five batches
MIN_BATCH_S: Final = 1e-6  # a clock may not advance during a short batch
logger = logging.getLogger(__name__)


class BatchRunner:
    """Runs one batch after the other; `run` never raises for errors that a retry in the same process can resolve.

    Attributes:
        outcomes: posters so far that were embedded, reused, unchanged, failed.
        failures: those that failed, by word.
    """

    def __init__(
        self,
        settings: Settings,
        owner: str,
        pipeline: Pipeline,
        store: VectorStore,
        job_store: JobStore,
        heartbeat: Heartbeat,
    ) -> None:
        """`owner` identifies this worker's claims; `heartbeat` is running; `close` closes all of them."""
        self._settings, self._owner = settings, owner
        self._pipeline, self._store, self._job_store, self._heartbeat = pipeline, store, job_store, heartbeat
        # These wait for Redis: without it there is nothing else to do, and what was embedded must be counted. They
        # raise RedisUnreachable once this worker is asked to stop.
        waiting = job_store.redis.waiting(_log_outage, heartbeat.stopping)
        self._claims, self._registry = Claims(job_store, waiting), WorkerRegistry(settings.redis_url, waiting)
        self._claims_once, self._dead_letters = Claims(job_store), DeadLetters(job_store)  # these try once
        self._backoff = Backoff()
        self.outcomes = Counter(embedded=0, reused=0, unchanged=0, failed=0)
        self.failures: Counter[str] = Counter()
        self._timings = Timings()
        self._left_last_batch = False  # to another worker

    def run(self, message: BatchMessage) -> bool:
        """Claim, embed and count a batch; False when its message must be requeued: this worker is stopping, or rests.

        What the batch holds, the ledger says.

        While Redis is unreachable it waits: what it has embedded is counted when Redis is back. Any other transient
        failure releases the batch without counting the attempt, and redelivery sends it again.

        Raises:
            DeviceLost: this process must exit; the batch stays claimed, its parent releases it and the attempt counts.
            WrongVectors: this process must exit; the batch is released, and the attempt does not count.
        """
        if message.lane == BULK and self._settings.quiet.until():
            return False  # asked for just before; until their end the transport asks for no other
        holder = new_holder(self._owner)
        try:
            with self._heartbeat.message():
                claimed = self._claims.claim(message, holder)
                if claimed.verdict is Claim.WORK:
                    return self._run_claimed(message, holder, claimed)
                if claimed.verdict is Claim.CANCELLED:
                    self._claims.withdraw(message, claimed.text)
                reason = claimed.verdict.value
                logger.info("batch %s: nothing to do, it is %s", message.batch, reason, extra=_fields(message))
                return True
        except RedisUnreachable as error:  # and this worker is stopping: the claim expires, the batch stays open
            logger.error("batch %s: %s", message.batch, error, extra=_fields(message))
            return False
        except WrongVectors:  # the device is at fault, not the batch: the attempt does not count
            with suppress(RedisUnreachable):
                self._claims_once.release(message, holder)
            self._heartbeat.publish_wrong_vectors()
            raise
        except DeviceLost:
            raise
        except BaseException:
            # A signal ends this process (as SystemExit). That is not the batch's fault, unless it has exceeded its
            # time limit: then the batch is why the process is killed, and the attempt counts.
            with suppress(RedisUnreachable):
                self._claims_once.release(message, holder, count=self._heartbeat.is_overdue())
            raise

    def stop_after_chunk(self) -> None:
        """Release the batch in progress after its current chunk; may be called from a signal handler or a thread."""
        self._heartbeat.stopping.set()

    def reject(self, message: Any, reason: PosterError, batch_id: str) -> None:
        """Dead-letter a malformed message; the batch of one of a newer version stays open for a newer worker."""
        newer = isinstance(reason, NewerMessage)
        with self._heartbeat.message():
            if newer:
                with suppress(RedisUnreachable):
                    self._claims_once.defer(batch_id, NEWER_PAUSE_S)
            self._dead_letters.reject(repr(message), str(reason), once=batch_id if newer else "")

    def close(self) -> None:
        """End the threads, leave the registry, release the GPU."""
        self._pipeline.close()
        self._store.close()
        self._heartbeat.stop()
        self._job_store.close()

    def _run_claimed(self, message: BatchMessage, holder: str, claimed: Claimed) -> bool:
        try:
            batch = claimed.batch(message)
        except BadMessage as error:
            self._defer_or_fail(message, holder, claimed.text, error)
            return True
        if claimed.attempt > self._settings.attempts and self._is_given_up(batch, claimed.attempt - 1):
            self._split_or_fail(batch, claimed.attempt - 1)
            return True
        if self._leave_to_other_worker(batch, holder):
            return True
        began = time.perf_counter()  # on Windows, time.monotonic() stands still for 16 ms at a time
        try:
            with self._heartbeat.watch(f"batch {batch.batch}", (batch, holder)):
                outcome = self._pipeline.run(batch, self._heartbeat.report, begun_before=claimed.begun_before)
        except BatchInterrupted as reason:
            logger.warning("batch %s is released: %s", batch.batch, reason, extra=_fields(batch))
            return not self._claims.release(batch, holder)
        except DeviceLost:
            raise
        except (PosterError, OSError) as error:
            pause = self._backoff.pause_s()
            self._heartbeat.health.failed(error)
            text = "batch %s will be retried in %.0f s: %s"
            logger.warning(text, batch.batch, pause, error, extra=_fields(batch))
            self._claims.release(batch, holder, pause)
            return True
        except Exception:
            # A defect, or no memory left: the attempt counts, so that the batch is split down to the poster that
            # causes it. Celery must not see the error: a MemoryError would end the parent process.
            logger.exception("batch %s failed; it will be retried", batch.batch, extra=_fields(batch))
            self._claims.release(batch, holder, FIRST_PAUSE_S, count=True)
            return True
        self._backoff.reset()
        self._heartbeat.health.done()
        self._count(batch, holder, outcome, time.perf_counter() - began)
        return True

    def _count(self, batch: EmbedBatch, holder: str, outcome: Outcome, seconds: float) -> None:
        try:
            self._publish_speed(batch, outcome, seconds)
        except Exception:  # what was embedded must be counted all the same
            logger.exception("batch %s: its speed could not be published", batch.batch, extra=_fields(batch))
        try:
            counted = self._finish(batch, outcome)
        except ValueError:  # a defect of the pipeline: the attempt counts, as in _run_claimed
            logger.exception("batch %s is not counted; it will be retried", batch.batch, extra=_fields(batch))
            self._claims.release(batch, holder, FIRST_PAUSE_S, count=True)
            return
        timings, again = self._pipeline.timings, "" if counted else "; it had been counted before"
        about = _fields(batch) | {
            **{"worker": node_of(self._heartbeat.owner), "posters": len(batch.posters)},
            **outcome.counts(),
            "seconds": round(seconds, 3),
            "images_per_second": round(outcome.embedded / max(seconds, MIN_BATCH_S), 1),
            **timings.entry(),
        }
        message = "batch %s: %s in %.2f s (%s)%s"
        logger.info(message, batch.batch, outcome.summary(), seconds, timings.summary(), again, extra=about)

    def _finish(self, batch: EmbedBatch, outcome: Outcome) -> bool:
        """See Claims.finish; what is counted in the ledger is counted for this process as well."""
        counted = self._claims.finish(batch, outcome)
        if counted:
            failed = len(outcome.failures)
            self.outcomes.update(
                embedded=outcome.embedded, reused=outcome.reused, unchanged=outcome.unchanged, failed=failed
            )
            self.failures.update(failure.word for failure in outcome.failures)
        return counted

    def _defer_or_fail(self, message: BatchMessage, holder: str, text: str, reason: BadMessage) -> None:
        """Leave a batch that a newer version recorded to a newer worker; fail one that nobody can read."""
        if isinstance(reason, NewerMessage):
            self._claims.release(message, holder, NEWER_PAUSE_S)
            self._dead_letters.reject(text, str(reason), once=message.batch)
        else:
            count = self._claims.fail_unreadable(message, text, f"no worker can read its batch: {reason}")
            self.outcomes["failed"] += count
            self.failures["internal"] += count
            text = "no worker can read batch %s, its %d posters fail: %s"
            logger.error(text, message.batch, count, reason, extra=_fields(message))

    def _leave_to_other_worker(self, batch: EmbedBatch, holder: str) -> bool:
        """Release a batch for a space that another worker produces, or may produce once it has loaded its model."""
        states = self._states_of_other_workers_for(batch)
        left_last_batch, self._left_last_batch = self._left_last_batch, bool(states)
        if not states:
            return False
        self._claims.release(batch, holder, OTHER_SPACE_PAUSE_S)
        if left_last_batch and READY in states:
            # This worker is idle. Without a pause it would keep taking the other worker's batches from the lane
            # and delay each of them; a batch for its own space it still takes within a second.
            self._heartbeat.stopping.wait(LANE_PAUSE_S)
        return True

    def _states_of_other_workers_for(self, batch: EmbedBatch) -> set[str]:
        """States of the other workers that may produce the batch's space; empty when it is this worker's, or nobody's.

        A worker that is loading its model may, as its space is not known yet. One that is waiting for a GPU may not:
        it may be the standby for this worker, and wait as long as this one lives. A batch for a space that nobody
        produces fails in the pipeline: the model was changed since it was sent.
        """
        own = self._heartbeat.fields.get("space")
        if batch.space is None or own is None or batch.space == own:
            return set()
        others = [worker for worker in self._registry.alive() if worker.owner != self._heartbeat.owner]
        ready = {other.state for other in others if other.state == READY and other.get("space") == batch.space}
        return ready | {other.state for other in others if other.state == LOADING}

    def _is_given_up(self, batch: EmbedBatch, deaths: int) -> bool:
        """Whether a batch is not tried again as it is; a single poster only for what was its own fault."""
        if len(batch.posters) > 1 or deaths >= self._settings.attempts + UNEXPLAINED_DEATHS:
            return True
        return self._claims.crashes(batch) >= self._settings.attempts

    def _split_or_fail(self, batch: EmbedBatch, crashes: int) -> None:
        """Find the poster that crashes the worker by bisection: split a batch, fail a single poster."""
        if len(batch.posters) == 1:
            poster = batch.posters[0]
            reason = f"the worker died {crashes} times while processing this poster"
            outcome = Outcome(failures=(Failure(poster.id, poster.path, "crashed-worker", reason),))
            self._finish(batch, outcome)
            about = _fields(batch) | {"id": poster.id, "path": poster.path}
            logger.error("%s: crashed-worker: %s", printable(poster.path), reason, extra=about)
            return
        # A half that crashes its worker once is split at once: log2(n) crashes find the poster.
        if self._claims.split(batch, self._settings.attempts - 1):
            text = "batch %s killed its worker %d times and is split in two"
            logger.warning(text, batch.batch, crashes, extra=_fields(batch))

    def _publish_speed(self, batch: EmbedBatch, outcome: Outcome, seconds: float) -> None:
        """Publish speed and bottleneck before the batch is counted, so that its sender sees them with the result."""
        self._heartbeat.note(progress_at=time.time())
        if not outcome.embedded:
            return
        self._timings = self._timings.followed_by(self._pipeline.timings, keep=SPEED_DECAY)
        self._heartbeat.publish(
            READY,
            images_per_second=f"{outcome.embedded / max(seconds, MIN_BATCH_S):.1f}",
            bottleneck="; ".join(filter(None, (self._timings.bottleneck(), self._timings.sharing()))),
            batch_share=f"{self._timings.share():.2f}",
        )


def _fields(batch: BatchMessage | EmbedBatch) -> dict[str, str]:
    """What a message of the log is about, for a program that reads it."""
    return {"job": batch.job, "batch": batch.batch}


def _log_outage(error: RedisUnreachable) -> None:
    logger.warning("%s Waiting for Redis.", error)
