"""The place where batches are worked on: one model, one pipeline, one claim at a time."""

from __future__ import annotations

import logging
import os
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from producer.errors import DeviceLost, NewerMessage, PosterError, RedisUnreachable, UnreadablePoster
from producer.queue.claims import Claims, sign
from producer.queue.dead_letters import DeadLetters
from producer.queue.image_requests import CRASHED, Answer, ImageRequests
from producer.queue.jobs import JobStore
from producer.queue.messages import EmbedBatch
from producer.queue.progress import Claim, Failure, Outcome
from producer.queue.workers import LOADING, READY, WorkerRegistry
from producer.settings import Settings
from worker.pipeline.timings import Timings
from worker.runtime.heartbeat import Heartbeat, Stopped

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore
    from worker.pipeline.pipeline import Pipeline


ASK_AGAIN_S: Final = 1.0  # for which an idle worker leaves the lane to another
FOREIGN_PAUSE_S: Final = 5.0  # before a batch for another worker's space is sent again
NEWER_PAUSE_S: Final = 60.0  # before a batch that a newer worker can read is sent again
FADING: Final = 0.8  # per batch: what is announced tells of the last five or so, and not of the first of the day
SHORTEST_S: Final = 1e-6  # no batch takes less; a clock may say so
EX_DEVICE_LOST: Final = 70  # sysexits.h: internal software error
logger = logging.getLogger(__name__)


class BatchRunner:
    """Works on one batch after the other; `work` never raises for a reason that a retry would mend."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        pipeline: Pipeline,
        store: VectorStore,
        job_store: JobStore,
        heartbeat: Heartbeat,
    ) -> None:
        """`owner` signs claims; `pulse` beats already; all of them are the station's to close."""
        self._settings, self._owner = settings, owner
        self._pipeline, self._store, self._job_store, self._heartbeat = pipeline, store, job_store, heartbeat
        # Without Redis there is nothing else to do, and what was done must be counted: these wait for it. They raise
        # RedisUnreachable once this worker was asked to stop.
        waiting = job_store.redis.waiting(_log_outage, heartbeat.leaving)
        self._claims, self._registry = Claims(job_store, waiting), WorkerRegistry(settings.redis_url, waiting)
        self._claims_once, self._dead_letters = Claims(job_store), DeadLetters(job_store)  # these try once
        self._queries = ImageRequests(settings.redis_url)
        self._backoff = Backoff()
        self._lately = Timings()
        self._passed_on = False  # the batch before was another's as well

    def work(self, batch: EmbedBatch) -> bool:
        """Claim, embed, count. False when the batch must go back to its lane as it is, because this worker stops.

        While Redis is away it waits: what it has embedded is counted when Redis is back. Any other trouble
        that passes gives the batch back, uncounted; the ledger has it sent again.
        """
        holder = sign(self._owner)
        try:
            return self._work(batch, holder)
        except RedisUnreachable as error:  # and it was asked to stop: the claim expires, the batch stays open
            logger.error("batch %s: %s", batch.batch, error)
            return False
        except BaseException:
            # Somebody ends this process while it works (a signal became SystemExit). That is no fault of the
            # batch, unless it took longer than it may: then the very ending is the batch's.
            with suppress(RedisUnreachable):
                self._claims_once.release(batch, holder, count=self._heartbeat.overdue())
            raise

    def answer(self, token: str) -> None:
        """Embed the image of a query and answer whoever waits for it; nothing of it is stored or counted."""
        try:
            data = self._queries.take(token)
            self._queries.answer(token, CRASHED if data is None else self._look_at(data))
        except RedisUnreachable as error:
            logger.error("query %s: %s", token, error)  # whoever waits hears nothing in time, and may ask again
        except Exception as error:  # a defect of ours: whoever waits is told at once; Celery must not see it, as above
            logger.exception("query %s", token)
            with suppress(RedisUnreachable):
                self._queries.answer(token, {"word": "internal", "reason": f"{type(error).__name__}: {error}"})

    def leave(self) -> None:
        """Give back the batch in work after its present chunk; called from a signal's handler or a thread."""
        self._heartbeat.leaving.set()

    def dead_letters(self, message: Any, reason: PosterError, batch_id: str) -> None:
        """Reject a message that this program cannot have sent; one of a newer version stays open for a newer worker."""
        newer = isinstance(reason, NewerMessage)
        if newer:
            with suppress(RedisUnreachable):
                self._claims_once.defer(batch_id, NEWER_PAUSE_S)
        self._dead_letters.reject(repr(message), str(reason), once=batch_id if newer else "")

    def close(self) -> None:
        """End the threads, withdraw the announcement, let go of the card."""
        self._pipeline.close()
        self._store.close()
        self._heartbeat.stop()
        self._job_store.close()

    def _work(self, batch: EmbedBatch, holder: str) -> bool:
        verdict, attempt, begun_before = self._claims.claim(batch, holder)
        if verdict is Claim.CANCELLED:
            self._claims.withdraw(batch)
        if verdict is not Claim.WORK:
            logger.info("batch %s: nothing to do, it is %s", batch.batch, verdict.value)
            return True
        if attempt > self._settings.attempts:
            self._isolate(batch, attempt - 1)
            return True
        makers = self._others_that_make(batch)
        passed_on, self._passed_on = self._passed_on, bool(makers)
        if makers:
            self._claims.release(batch, holder, FOREIGN_PAUSE_S)
            if passed_on and READY in makers:
                # This worker stands idle. Without a step back it would take from the lane, each time for the
                # pause, what the other could work on; a message of its own it still takes in a second.
                self._heartbeat.leaving.wait(ASK_AGAIN_S)
            return True
        began = time.perf_counter()  # on Windows, time.monotonic() stands still for 16 ms at a time
        try:
            with self._heartbeat.work(batch, holder):
                outcome = self._pipeline.run(batch, self._heartbeat.tell, begun_before=begun_before)
        except Stopped as reason:
            logger.warning("batch %s is left where it is: %s", batch.batch, reason)
            return not self._claims.release(batch, holder)
        except DeviceLost as error:
            self._leave(error, f"batch {batch.batch}")
        except (PosterError, OSError) as error:
            pause = self._backoff.pause_s()
            logger.warning("batch %s waits %.0f s and is tried again: %s", batch.batch, pause, error)
            self._claims.release(batch, holder, pause)
            return True
        except Exception:
            # A defect of ours, or no memory left: let the attempt count, so that the batch is cut down to the
            # poster that provokes it. Celery must not see it: a MemoryError would end the parent process.
            logger.exception("batch %s could not be done, and is tried again", batch.batch)
            self._claims.release(batch, holder, FIRST_PAUSE_S, count=True)
            return True
        self._backoff.is_over()
        seconds = time.perf_counter() - began
        try:
            self._announce(batch, outcome, seconds)
        except Exception:  # what was embedded must be counted, whatever can be said of its pace
            logger.exception("batch %s: its pace could not be announced", batch.batch)
        counted = self._claims.finish(batch, outcome)
        self._report(batch, outcome, seconds, counted)
        return True

    def _others_that_make(self, batch: EmbedBatch) -> set[str]:
        """States of the others that may make the batch's space; empty when it is this worker's, or nobody's.

        One that loads may, until it says what it makes. One that waits for a card does not: it may be the stand-in
        for this worker, and wait for as long as this one lives. What is nobody's the pipeline fails: the model was
        changed since it was queued.
        """
        mine = self._heartbeat.fields.get("space")
        if batch.space is None or mine is None or batch.space == mine:
            return set()
        everyone = self._registry.alive()
        others = [other for other in everyone if other.owner != self._heartbeat.owner]
        ready = {other.state for other in others if other.state == READY and other.get("space") == batch.space}
        return ready | {other.state for other in others if other.state == LOADING}

    def _look_at(self, data: bytes) -> Answer | dict[str, str]:
        try:
            with self._heartbeat.look():
                vector = self._pipeline.embed_one(data)
        except UnreadablePoster as error:
            return {"word": error.word, "reason": error.reason}
        except DeviceLost as error:
            self._leave(error, "a query")
        return Answer(self._pipeline.embedder.space.id, vector.astype("<f4").tobytes())

    def _leave(self, error: DeviceLost, what: str) -> NoReturn:
        logger.critical("%s: %s; this process leaves, a fresh one takes over", what, error)
        logging.shutdown()
        os._exit(EX_DEVICE_LOST)  # a normal exit would wait for a device that no longer answers

    def _isolate(self, batch: EmbedBatch, crashes: int) -> None:
        """Close in on the poster that ends the process: cut the batch in two, or bury the one poster."""
        if len(batch.posters) == 1:
            poster = batch.posters[0]
            reason = f"the worker ended {crashes} times while it worked on this poster"
            outcome = Outcome(failures=(Failure(poster.id, poster.path, "crashed-worker", reason),))
            self._claims.finish(batch, outcome)
            logger.error("%s: crashed-worker: %s", poster.path, reason)
            return
        # A half that ends its worker, too, is suspected enough to be cut at once: log2(n) deaths find the poster.
        if self._claims.split(batch, self._settings.attempts - 1):
            logger.warning("batch %s ended its worker %d times and is split in two", batch.batch, crashes)

    def _announce(self, batch: EmbedBatch, outcome: Outcome, seconds: float) -> None:
        """Say how fast things go and what holds them up, before whoever waits for the batch hears that it is done."""
        self._heartbeat.fields["progress_at"] = time.time()
        if not outcome.embedded or batch.reply:  # a single poster in a hurry tells nothing of the pace
            return
        self._lately = self._lately.followed_by(self._pipeline.timings, keep=FADING)
        self._heartbeat.publish(
            READY,
            images_per_second=f"{outcome.embedded / max(seconds, SHORTEST_S):.1f}",
            bottleneck=self._lately.bottleneck(),
        )

    def _report(self, batch: EmbedBatch, outcome: Outcome, seconds: float, counted: bool) -> None:
        spent = self._pipeline.timings.summary()
        again = "" if counted else "; it had been counted before"
        logger.info("batch %s: %s in %.2f s (%s)%s", batch.batch, outcome.summary(), seconds, spent, again)


def _log_outage(error: RedisUnreachable) -> None:
    logger.warning("%s This worker waits for it.", error)


FIRST_PAUSE_S: Final = 2.0  # doubles
LONGEST_PAUSE_S: Final = 60.0


class Backoff:
    """Pauses of 2 s, 4 s … 60 s, a quarter more or less, so that not all come back at once."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._grows_at: float | None = None  # monotonic: when the pause that was given last is over

    def pause_s(self) -> float:
        """Doubles when trouble outlasts a pause; the batches that meet it meanwhile do not count as more of it."""
        now = time.monotonic()
        if self._grows_at is None or now >= self._grows_at:
            if self._grows_at is not None:
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._grows_at = now + self._pause_s
        return self._pause_s * random.uniform(0.75, 1.25)

    def is_over(self) -> None:
        """Something went well: the next trouble is a new one."""
        self._pause_s, self._grows_at = FIRST_PAUSE_S, None
