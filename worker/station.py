"""The place where batches are worked on: one model, one pipeline, one claim at a time, and a pulse."""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from worker.announcement import FAILED, LOADING, MODEL, READY, RENEWAL_S, WEIGHTS, Announcements
from worker.errors import ConfigurationError, DeviceLost, PosterError, RedisUnreachable, UnreadablePoster
from worker.ledger import Ledger
from worker.messages import EmbedBatch
from worker.progress import Claim, Failure, Outcome
from worker.queries import CRASHED, Answer, Queries
from worker.settings import Settings, without_password

if TYPE_CHECKING:
    from worker.pipeline import Pipeline
    from worker.vectors import VectorStore

PULSE_S: Final = 0.5  # how often the ledger hears how far a batch is
FIRST_PAUSE_S: Final = 2.0  # before a batch that met a passing trouble is tried again; doubles
LONGEST_PAUSE_S: Final = 60.0
EX_DEVICE_LOST: Final = 70  # sysexits.h: internal software error
EX_HUNG: Final = 75  # sysexits.h: temporary failure, try again

logger = logging.getLogger(__name__)


class Station:
    """Works on one batch after the other; `work` never raises for a reason that a retry would mend."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        owner: str,
        pipeline: Pipeline,
        store: VectorStore,
        announced: dict[str, object],
        *,
        solo: bool,
    ) -> None:
        """`owner` signs claims; `announced` are the fields that the pulse keeps saying."""
        self._settings, self._name, self._owner, self._solo = settings, name, owner, solo
        self._pipeline, self._store = pipeline, store
        self._ledger = Ledger(settings.redis_url, claim_s=settings.claim_s, keep_s=settings.keep_jobs_days * 86400)
        self._queries = Queries(settings.redis_url)
        self._announcements = Announcements(settings.redis_url)
        self._announced = announced
        self._current: tuple[EmbedBatch, float] | None = None
        self._done = 0
        self._pause_s = FIRST_PAUSE_S
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._pulse.start()

    def work(self, batch: EmbedBatch) -> None:
        """Claim, embed, count. A batch that cannot be done now is given back, uncounted."""
        try:
            self._work(batch)
        except RedisUnreachable as error:
            # Nothing is lost: the claim expires, the batch is still open, and it is sent again.
            logger.error("batch %s: %s", batch.batch, error)

    def answer(self, token: str) -> None:
        """Embed the image of a query and answer whoever waits for it; nothing of it is stored or counted."""
        try:
            data = self._queries.take(token)
            self._queries.answer(token, CRASHED if data is None else self._look_at(data))
        except RedisUnreachable as error:
            logger.error("query %s: %s", token, error)  # whoever waits hears nothing in time, and may ask again
        except Exception as error:  # a defect of ours: whoever waits is told at once, and Celery logs the traceback
            self._queries.answer(token, {"word": "internal", "reason": f"{type(error).__name__}: {error}"})
            raise

    def quarantine(self, message: Any, reason: str) -> None:
        """Put aside a message that no version of this program can have sent, with its reason."""
        logger.error("a message was put aside: %s", reason)
        self._ledger.quarantine(repr(message)[:10_000], reason)

    def close(self) -> None:
        """Withdraw the announcement and end the threads."""
        self._ended.set()
        try:
            self._announcements.withdraw(self._name)
        except RedisUnreachable:
            logger.info("Redis is away; the announcement expires by itself")
        self._pipeline.close()
        self._store.close()

    def _work(self, batch: EmbedBatch) -> None:
        verdict, attempt, begun_before = self._ledger.claim(batch, self._owner)
        if verdict is not Claim.WORK:
            logger.info("batch %s: nothing to do, it is %s", batch.batch, verdict.value)
            return
        if attempt > self._settings.attempts:
            self._isolate(batch, attempt - 1)
            return
        began = time.monotonic()
        self._done, self._current = 0, (batch, began)
        try:
            outcome = self._pipeline.run(batch, self._progress, begun_before=begun_before)
        except DeviceLost as error:
            self._leave(error, f"batch {batch.batch}")
        except (PosterError, OSError) as error:
            pause = self._pause_s * random.uniform(0.75, 1.25)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            logger.warning("batch %s waits %.0f s and is tried again: %s", batch.batch, pause, error)
            self._ledger.give_back(batch, self._owner, pause)
            return
        except Exception:
            # A defect of ours: let the attempt count, so that the batch is cut down to the poster
            # that provokes it, and let Celery log the traceback.
            self._ledger.give_back(batch, self._owner, FIRST_PAUSE_S, count=True)
            raise
        finally:
            self._current = None
        self._pause_s = FIRST_PAUSE_S
        counted = self._ledger.finish(batch, outcome)
        self._report(batch, outcome, time.monotonic() - began, counted)

    def _look_at(self, data: bytes) -> Answer | dict[str, str]:
        try:
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
            self._ledger.finish(batch, Outcome(failures=(Failure(poster.id, poster.path, "crashed-worker", reason),)))
            logger.error("%s: crashed-worker: %s", poster.path, reason)
            return
        halves = self._ledger.cut(batch)
        if halves:
            logger.warning("batch %s ended its worker %d times and is cut in two", batch.batch, crashes)
            self._resend(halves)

    def _resend(self, halves: tuple[EmbedBatch, EmbedBatch]) -> None:
        from worker.celery import create_app, send

        with create_app(self._settings) as app:
            for half in halves:
                send(app, half)

    def _progress(self, done: int) -> None:
        self._done = done

    def _report(self, batch: EmbedBatch, outcome: Outcome, seconds: float, counted: bool) -> None:
        timings = self._pipeline.timings
        self._announced["progress_at"] = time.time()
        if outcome.embedded:
            self._announced["images_per_second"] = f"{outcome.embedded / seconds:.1f}"
        logger.info(
            "batch %s: %d embedded, %d reused, %d unchanged, %d failed in %.2f s "
            "(waited %.2f s for decoding, %.2f s on the device, %.2f s for the store)%s",
            batch.batch,
            outcome.embedded,
            outcome.reused,
            outcome.unchanged,
            len(outcome.failures),
            seconds,
            timings.waiting_for_decode,
            timings.on_device,
            timings.waiting_for_store,
            "" if counted else "; it had been counted before",
        )

    def _beat(self) -> None:
        """Keep the claim and the announcement alive; in a solo worker, end a batch that hangs."""
        renewed = beaten = -1e9
        said = -1
        while not self._ended.wait(PULSE_S):
            now, current = time.monotonic(), self._current
            try:
                if current and (self._done != said or now - beaten > self._settings.claim_s / 3):
                    said, beaten = self._done, now
                    self._ledger.beat(current[0], self._owner, said)
                if now - renewed > RENEWAL_S:
                    self._announcements.say(self._name, READY, self._announced)
                    renewed = now
            except RedisUnreachable:
                renewed = now  # the main thread reports it; try again at the next renewal
            if self._solo and current and now - current[1] > self._settings.batch_time_limit_s:
                logger.critical("batch %s hangs; this process leaves, its supervisor starts another", current[0].batch)
                logging.shutdown()
                os._exit(EX_HUNG)


def start_station(settings: Settings, name: str, owner: str, *, solo: bool) -> Station | None:
    """Load the model, warm it up, say so; None when that cannot be done, after saying why."""
    announcements = Announcements(settings.redis_url)
    about: dict[str, object] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "root": settings.root.resolve(),
        "store": without_password(settings.store),
        "model": settings.model_name,
        "pretrained": settings.pretrained,
        "batch_size": settings.batch_size,
    }
    _try_to_say(announcements, name, LOADING, about)
    try:
        _pin_card(settings.gpu)
        from worker.clip_embedder import CLIPEmbedder
        from worker.images import Limits
        from worker.pipeline import Pipeline
        from worker.vectors import open_store
        from worker.weights import find_weights

        began = time.monotonic()
        if not settings.root.is_dir():
            raise ConfigurationError(f"the posters root {settings.root.resolve()} is not a folder: set POSTERS_ROOT")
        store = open_store(settings.store)
        store.check()
        _try_to_say(announcements, name, LOADING, about | {"stage": WEIGHTS})
        find_weights(
            settings.model_name, settings.pretrained, quick_gelu=settings.quick_gelu, cache_dir=settings.cache_dir
        )
        _try_to_say(announcements, name, LOADING, about | {"stage": MODEL})
        embedder = CLIPEmbedder.from_settings(settings)
        embedder.warm_up()
        pipeline = Pipeline(
            embedder,
            store,
            root=settings.root.resolve(),
            threads=settings.decode_threads,
            look_ahead_images=settings.look_ahead_images,
            max_file_bytes=settings.max_file_bytes,
            decode_memory_bytes=settings.decode_memory_bytes,
            limits=Limits(settings.max_pixels),
        )
    except (PosterError, ImportError, OSError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, PosterError) else str(error)
        logger.critical("this worker cannot start: %s", reason)
        told = _try_to_say(announcements, name, FAILED, about | {"reason": reason, "error": type(error).__name__})
        if not told and not solo and sys.platform != "win32":
            import signal

            os.kill(os.getppid(), signal.SIGTERM)  # the parent cannot read it in Redis
        return None
    finally:
        announcements.close()
    about |= {
        "device": embedder.device_name,
        "precision": embedder.precision,
        "space": embedder.space.id,
        "space_json": embedder.space.to_json(),
        "batch_size": embedder.chunk,
    }
    logger.info(
        "ready: %s on %s in %s, space %s, loaded in %.1f s; posters in %s, vectors to %s",
        embedder.space.model,
        embedder.device_name,
        embedder.precision,
        embedder.space.id,
        time.monotonic() - began,
        about["root"],
        about["store"],
    )
    return Station(settings, name, owner, pipeline, store, about, solo=solo)


def _pin_card(gpu: str | None) -> None:
    """Show CUDA one card only; must happen before torch is imported."""
    if gpu is not None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _try_to_say(announcements: Announcements, name: str, state: str, fields: dict[str, object]) -> bool:
    try:
        announcements.say(name, state, fields)
    except RedisUnreachable as error:
        logger.warning("cannot announce this worker yet: %s", error)
        return False
    return True
