"""How a station opens: posters root, store, card, weights, model; each with a word to those who wait."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from producer.errors import ConfigurationError, PosterError, StoreUnavailable
from producer.queue.jobs import JobStore
from producer.queue.workers import FAILED, LOADING, MODEL, READY, STORE, WAITING, WEIGHTS
from producer.settings import Settings, load_settings, without_password
from worker.runtime.batch_runner import BatchRunner
from worker.runtime.heartbeat import Heartbeat

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore


STORE_LOOK_S: Final = 1.0  # between two tries of a store that cannot be written for now
logger = logging.getLogger(__name__)


def start_runner(owner: str, *, solo: bool) -> BatchRunner | None:
    """Wait for the card, load the model, warm it up, say so; None when that cannot be done, after saying why.

    Celery swallows what the handler of a signal raises, and would take messages for a process without a model.
    So nothing may escape here: whatever it is, this worker says that it failed, and leaves.
    """
    heartbeat: Heartbeat | None = None
    try:
        settings = load_settings()
        job_store = JobStore(settings.redis_url, claim_s=settings.claim_s, keep_s=settings.keep_jobs_days * 86400)
        heartbeat = Heartbeat(settings, owner, job_store, solo=solo)
        _announce(settings, heartbeat)
        return _open(settings, owner, job_store, heartbeat)
    except PosterError as error:
        logger.critical("this worker cannot start: %s", error)
        _give_up(heartbeat, str(error), error, solo=solo)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        logger.exception("this worker cannot start: %s", reason)
        _give_up(heartbeat, reason, error, solo=solo)
    return None


def _announce(settings: Settings, heartbeat: Heartbeat) -> None:
    told = heartbeat.publish(
        LOADING,
        host=socket.gethostname(),
        pid=os.getpid(),
        root=settings.root.resolve(),
        store=without_password(settings.store),
        model=settings.model_name,
        pretrained=settings.pretrained,
        batch_size=settings.batch_size,
    )
    if not told:
        logger.warning("Redis does not answer yet; this worker is announced when it does")
    heartbeat.start()


def _give_up(heartbeat: Heartbeat | None, reason: str, error: Exception, *, solo: bool) -> None:
    """Say FAILED, which the parent process hears, and leave the card to others."""
    told = heartbeat is not None and heartbeat.publish(FAILED, reason=reason, error=type(error).__name__)
    if not told and not solo and sys.platform != "win32":
        os.kill(os.getppid(), signal.SIGTERM)  # the parent cannot read it in Redis
    if heartbeat is not None:
        heartbeat.leave_card()


def _open(settings: Settings, owner: str, job_store: JobStore, heartbeat: Heartbeat) -> BatchRunner:
    _pin_card(settings.gpu)
    from producer.queue.locks import wait_for_card
    from worker.clip_embedder import CLIPEmbedder
    from worker.images.decode import Limits
    from worker.model.weights import find_weights
    from worker.pipeline.pipeline import Pipeline

    root = settings.root.resolve()
    if not root.is_dir():
        raise ConfigurationError(f"the posters root {root} is not a folder: set POSTERS_ROOT")
    store = _wait_for_store(settings.store, heartbeat)
    card = _card(settings)
    if card is not None:
        heartbeat.card = wait_for_card(
            job_store, card, owner, lambda reason: heartbeat.publish(WAITING, card=card, stage="", reason=reason)
        )
    began = time.monotonic()
    heartbeat.publish(LOADING, stage=WEIGHTS, reason="")
    find_weights(settings.model_name, settings.pretrained, quick_gelu=settings.quick_gelu, cache_dir=settings.cache_dir)
    heartbeat.publish(LOADING, stage=MODEL)
    embedder = CLIPEmbedder.from_settings(settings)
    embedder.warm_up()
    pipeline = Pipeline(
        embedder,
        store,
        root=root,
        threads=settings.decode_threads,
        look_ahead_images=settings.look_ahead_images,
        max_file_bytes=settings.max_file_bytes,
        decode_memory_bytes=settings.decode_memory_bytes,
        limits=Limits(settings.max_pixels),
    )
    logger.info(
        "ready: %s on %s in %s, space %s, loaded in %.1f s; posters in %s, vectors to %s",
        embedder.space.model,
        embedder.device_name,
        embedder.precision,
        embedder.space.id,
        time.monotonic() - began,
        root,
        without_password(settings.store),
    )
    heartbeat.publish(
        READY,
        device=embedder.device_name,
        precision=embedder.precision,
        space=embedder.space.id,
        space_json=embedder.space.to_json(),
        batch_size=embedder.chunk,
        stage="",
        reason="",
    )
    return BatchRunner(settings, owner, pipeline, store, job_store, heartbeat)


def _wait_for_store(url: str, heartbeat: Heartbeat) -> VectorStore:
    """The store, as soon as it can be written: one that is locked, full or away will be, and no restart is needed."""
    from producer.vectors import open_store

    said = ""
    while True:
        try:
            store = open_store(url)
            try:
                store.check()
            except BaseException:
                store.close()
                raise
            return store
        except StoreUnavailable as error:
            reason = str(error)
        if reason != said:
            logger.warning("this worker waits for the store: %s", reason)
        said = reason
        heartbeat.publish(LOADING, stage=STORE, reason=reason)
        time.sleep(STORE_LOOK_S)


def _card(settings: Settings) -> str | None:
    """The card that this worker will work on; None: the CPU, which workers may share."""
    from worker.model.device import card_of, choose_device

    return card_of(choose_device(settings.device))


def _pin_card(gpu: str | None) -> None:
    """Show CUDA one card only; must happen before torch is imported."""
    if gpu is not None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
