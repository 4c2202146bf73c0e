"""Requests: a thread takes what has gathered, has it embedded in one forward pass, and answers.

It works beside the thread that runs batches, in the process that holds the model. Claims and ledger are not involved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from producer.errors import BadMessage, DeviceLost, RedisUnreachable, StoreError, UnreadablePoster, WrongVectors
from producer.queue.workers import ANNOUNCEMENT_S, ANSWERED_AT
from producer.requests.codec import DECODED, DECODING, Answer, Refusal, Request, decode_request
from producer.requests.inbox import Inbox, Taken
from worker.runtime.backoff import Backoff
from worker.runtime.heartbeat import EX_SOFTWARE, EX_WRONG_VECTORS, Heartbeat, exit_now
from worker.runtime.request_figures import Durations, Rate

if TYPE_CHECKING:
    from worker.pipeline.protocols import AnsweringEmbedder

POLL_S: Final = 1  # of a blocking read, after which a stop is noticed
RETRY_S: Final = 1.0  # while Redis is unreachable
REFUSED_S: Final = 0.05  # between two looks for requests while a full Redis refuses to wait for them
ORPHANS_S: Final = 5.0  # between two looks for requests that dead workers left
JOIN_S: Final = 5.0  # for the requests in hand when the worker stops
logger = logging.getLogger(__name__)


class RequestRunner(threading.Thread):
    """Answers the requests of one list until `close`.

    What it has taken stays in Redis until it is answered. If Redis or the store fails in between, all of it is given
    back; if the process dies, its successor judges it (`Inbox.recover`).

    Attributes:
        outcomes: requests so far that were answered, refused.
        waits: seconds from putting each into Redis to taking it, where that is known.
        durations: seconds from taking each to its answer.
    """

    def __init__(self, inbox: Inbox, embedder: AnsweringEmbedder, heartbeat: Heartbeat, limit_s: float) -> None:
        """`limit_s`: of reading one request, after which the process ends. Closes the first two."""
        super().__init__(name="requests", daemon=True)
        self._inbox, self._embedder, self._heartbeat, self._limit_s = inbox, embedder, heartbeat, limit_s
        self._backoff, self._stop_event = Backoff(), threading.Event()
        self._outage_logged = False
        self._has_recovered = False  # what a predecessor of this process left is judged
        self._orphans_at = time.monotonic() + ANNOUNCEMENT_S  # when to look for them next
        self._rate = Rate()
        self._taken_at: dict[str, float] = {}  # monotonic, of the requests in hand
        self.outcomes = Counter(answered=0, refused=0)
        self.waits, self.durations = Durations(), Durations()

    def run(self) -> None:
        """Answer until `close`; end the process on a defect, as nobody would notice that requests wait forever."""
        try:
            while not self._stop_event.is_set():
                self._answer_or_give_back()
        except DeviceLost as error:
            logger.critical("requests: %s; exiting so that a fresh process takes over", error)
            self._give_back()
            if isinstance(error, WrongVectors):
                self._heartbeat.release_batch()
                self._heartbeat.publish_wrong_vectors()
                exit_now(EX_WRONG_VECTORS)
            exit_now(EX_SOFTWARE)
        except Exception:
            if self._stop_event.is_set():  # `close` has ended the threads that decode, as they took too long
                self._give_back()
                return
            logger.critical("the thread that answers requests failed; this process exits", exc_info=True)
            exit_now(EX_SOFTWARE)

    def adopt(self, token: str) -> None:
        """Have the image request of an older producer wait with the others; in any thread."""
        try:
            self._inbox.adopt(token)
        except RedisUnreachable as error:
            logger.error("image request %s: %s", token, error)  # its caller times out, and may repeat it

    def stop(self) -> None:
        """Take no more requests; does not block."""
        self._stop_event.set()

    def close(self) -> None:
        """Answer what is in hand, end the thread, and close the connections."""
        self.stop()
        if self.is_alive():
            self.join(JOIN_S)
        if not self.is_alive():
            self._give_back()
        self._embedder.close()
        self._inbox.close()

    def _answer_or_give_back(self) -> None:
        """Answer what has gathered; after an outage of Redis or the store, give back what is in hand, and pause."""
        pause_s = 0.0
        try:
            self._answer_next()
            self._outage_logged = False
            return
        except RedisUnreachable as error:
            if not self._outage_logged:
                logger.warning("requests: %s", error)
            self._outage_logged, pause_s = True, RETRY_S
            self._orphans_at = time.monotonic() + ANNOUNCEMENT_S  # live workers must register again first
        except (StoreError, OSError) as error:
            pause_s = self._backoff.pause_s()
            logger.warning("requests for posters will be tried again in %.0f s: %s", pause_s, error)
        self._give_back()
        self._stop_event.wait(pause_s)

    def _answer_next(self) -> None:
        if not self._has_recovered:
            if count := self._inbox.recover():
                logger.warning("a process of this worker died with %d request(s) in hand", count)
            self._has_recovered = True
        if time.monotonic() >= self._orphans_at:
            self._inbox.recover_orphans()
            self._orphans_at = time.monotonic() + ORPHANS_S
        try:
            if not self._inbox.wait(POLL_S):
                return
        except RedisUnreachable:  # a full Redis refuses to wait, and lets taking through
            self._stop_event.wait(REFUSED_S)
        if not self._embedder.share.wait_for_turn(POLL_S):
            return
        began = time.monotonic()
        self._taken_at = {}
        answers, prepared = self._gather()
        if not answers and not prepared:
            return  # another worker was faster
        self._answer(answers)
        if prepared:
            with self._heartbeat.watch("requests"):  # with a large model on a CPU, a forward pass takes minutes
                found = self._embedder.embed(list(prepared.values()))
            self._answer(dict(zip(prepared, found, strict=True)))
            self._backoff.reset()
        rate = self._rate.add(len(answers) + len(prepared), began)
        self._heartbeat.note(requests_per_second=rate, **{ANSWERED_AT: time.time()})

    def _answer(self, answers: Mapping[str, Answer | Refusal]) -> None:
        self._inbox.answer(answers)
        now, refused = time.monotonic(), sum(isinstance(answer, Refusal) for answer in answers.values())
        self.outcomes.update(answered=len(answers) - refused, refused=refused)
        for token in answers:
            self.durations.add(now - self._taken_at[token])

    def _gather(self) -> tuple[dict[str, Refusal], dict[str, Any]]:
        """Take and decode requests until no more have come meanwhile: those that were refused, and the others."""
        reading: dict[str, Future[Any]] = {}
        while taken := self._inbox.take(self._embedder.limit - len(reading), len(reading)):
            now = time.monotonic()
            for each in taken:
                self._taken_at[each.token] = now
                if each.waited_s is not None:
                    self.waits.add(each.waited_s)
                reading[each.token] = self._embedder.submit(partial(self._prepare, each))
            wait(reading.values())
            if len(reading) >= self._embedder.limit:
                break
        read = {token: future.result() for token, future in reading.items()}
        refused = {token: result for token, result in read.items() if isinstance(result, Refusal)}
        return refused, {token: result for token, result in read.items() if not isinstance(result, Refusal)}

    def _prepare(self, taken: Taken) -> Any:
        """Read a request, or refuse it; runs in a thread. Raises RedisUnreachable, StoreError, OSError."""
        try:
            request = decode_request(taken.head, taken.body)
            if request.kind not in self._embedder.kinds:
                return Refusal("unsupported", f"this worker does not answer requests of the kind {request.kind}")
            if (refusal := self._other_space(request)) is not None:
                return refusal
            self._inbox.mark(taken.token, DECODING)
            try:
                with self._heartbeat.watch("a request", limit_s=self._limit_s):
                    return self._embedder.prepare(request)
            finally:
                self._inbox.mark(taken.token, DECODED)
        except UnreadablePoster as error:
            return Refusal(error.word, error.reason)
        except BadMessage as error:
            logger.warning("request %s cannot be read: %s", taken.token, error)
            return Refusal("internal", f"the worker cannot read the request: {error}")
        except (RedisUnreachable, StoreError, OSError):
            raise
        except Exception as error:  # a defect: its caller gets an answer, and its neighbors their vectors
            logger.exception("request %s", taken.token)
            return Refusal("internal", f"{type(error).__name__}: {error}")

    def _other_space(self, request: Request) -> Refusal | None:
        own = self._embedder.space
        if request.space in (None, own):
            return None
        reason = f"it was sent for the space {request.space}, and the worker that took it makes {own}: try again"
        return Refusal("internal", reason, is_mismatch=True)

    def _give_back(self) -> None:
        if self._has_recovered:
            with suppress(RedisUnreachable):  # the next `take` returns them, of this worker or of another
                self._inbox.give_back()
