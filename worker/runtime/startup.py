"""Start of a worker: posters root, store, GPU, weights, model; each stage is published in the registry."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from producer.errors import ConfigurationError, DeviceLost, PosterError, RedisUnreachable, StoreUnavailable
from producer.queue.jobs import JobStore
from producer.queue.workers import (
    FAILED,
    LOADED_AT,
    LOADING,
    MODEL,
    READY,
    RELOADED_S,
    STORE,
    WAITING,
    WEIGHTS,
    WorkerRegistry,
    node_of,
)
from producer.requests.codec import IMAGE, LISTS, POSTER, TEXT
from producer.requests.inbox import Inbox
from producer.settings import Settings, load_settings, without_password
from worker.runtime import health
from worker.runtime.batch_runner import BatchRunner
from worker.runtime.heartbeat import EX_SOFTWARE, Heartbeat, exit_now
from worker.runtime.request_runner import RequestRunner

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore
    from worker.clip_embedder import CLIPEmbedder
    from worker.pipeline.pipeline import Pipeline
    from worker.pipeline.protocols import AnsweringEmbedder


# Tells the process that loads a model again since when work waits: monotonic.
WAKING_VARIABLE: Final = "_POSTERS_WAKING"
REQUEST_LIMIT: Final = 2  # times the limit for decoding an image, in seconds of the wall clock: cores are shared
STORE_RETRY_S: Final = 1.0  # between two tries of a store that cannot be written for now
FIRST_NAMES: Final = 5  # of the posters root
logger = logging.getLogger(__name__)


class Runners(NamedTuple):
    """What runs batches and answers requests, with one model.

    Each kind of request has a thread of its own: those for images need neither the store, for which posters wait, nor
    the text tower, for which the first text waits.
    """

    batches: BatchRunner
    requests: Mapping[str, RequestRunner]  # by kind
    close_metrics: Callable[[], None] | None

    def close(self) -> None:
        """Close all, with the pipeline, the store, the heartbeat and the connections that they use."""
        if self.close_metrics is not None:
            self.close_metrics()
        for runner in self.requests.values():
            runner.stop()
        for runner in self.requests.values():
            runner.close()
        self.batches.close()


def start_runners(owner: str, *, solo: bool) -> Runners | None:
    """Wait for store and GPU, load the model and warm it up; None when that fails, after publishing FAILED.

    Celery swallows what a signal handler raises and would go on to consume messages without a model. Nothing may
    escape here, therefore: on any error this worker publishes FAILED and exits.
    """
    heartbeat: Heartbeat | None = None
    try:
        settings = load_settings()
        job_store = JobStore(settings.redis_url, claim_s=settings.claim_s, keep_s=settings.keep_jobs_days * 86400)
        heartbeat = Heartbeat(settings, owner, job_store)
        _register(settings, heartbeat)
        return _load(settings, owner, job_store, heartbeat)
    except PosterError as error:
        logger.critical("this worker cannot start: %s", error)
        _publish_failure(heartbeat, str(error), error, solo=solo)
    except Exception as error:  # whatever it is: see above
        reason = f"{type(error).__name__}: {error}"
        logger.exception("this worker cannot start: %s", reason)
        _publish_failure(heartbeat, reason, error, solo=solo)
    return None


def _register(settings: Settings, heartbeat: Heartbeat) -> None:
    heartbeat.note(device_before=_device_before(settings, heartbeat.owner))
    heartbeat.take_over()
    published = heartbeat.publish(
        LOADING,
        host=socket.gethostname(),
        pid=os.getpid(),
        root=settings.root.resolve(),
        store=without_password(settings.store),
        folder=os.getcwd(),
        model=settings.model_name,
        pretrained=settings.pretrained,
        batch_size=settings.batch_size,
    )
    if not published:
        logger.warning("Redis does not answer yet; this worker registers as soon as it does")
    heartbeat.start()


def _publish_failure(heartbeat: Heartbeat | None, reason: str, error: Exception, *, solo: bool) -> None:
    """Publish FAILED, which makes the parent process exit, or try again what it unloaded; and release the GPU."""
    published = heartbeat is not None and heartbeat.publish(FAILED, reason=reason, error=type(error).__name__)
    is_reloading = heartbeat is not None and WAKING_VARIABLE in os.environ  # its parent waits until it can read that
    if not published and not solo and not is_reloading and sys.platform != "win32":
        os.kill(os.getppid(), signal.SIGTERM)  # the parent cannot read the state from Redis
    if heartbeat is not None:
        heartbeat.release_gpu()


def _load(settings: Settings, owner: str, job_store: JobStore, heartbeat: Heartbeat) -> Runners:
    if settings.metrics_port is not None and find_spec("prometheus_client") is None:
        raise ConfigurationError(
            "POSTERS_METRICS_PORT is set: pip install 'poster-embedding-queue[metrics]', or unset it"
        )
    _pin_gpu(settings.gpu)
    from producer.queue.locks import wait_for_card
    from worker.clip_embedder import CLIPEmbedder
    from worker.model.device import choose_device, memory_bytes
    from worker.model.driver import device_facts
    from worker.model.weights import find_weights
    from worker.pipeline.pipeline import Pipeline

    root = settings.root.resolve()
    if not root.is_dir():
        raise ConfigurationError(f"the posters root {root} is not a folder: set POSTERS_ROOT")
    heartbeat.note(root_inode=root.stat().st_ino)
    store = _wait_for_store(settings, heartbeat)
    heartbeat.note(device_setting=settings.device, **device_facts())
    chosen = choose_device(settings.device)
    gpu = _gpu_uuid(chosen)
    if gpu is not None:
        heartbeat.note(card=gpu)
        heartbeat.gpu_lease = wait_for_card(
            job_store, gpu, owner, lambda reason: heartbeat.publish(WAITING, stage="", reason=reason)
        )
    began = time.monotonic()
    if room := memory_bytes(chosen):
        heartbeat.note(gpu_free_bytes=room["free"], gpu_total_bytes=room["total"])
    heartbeat.publish(LOADING, stage=WEIGHTS, reason="")
    find_weights(settings.model_name, settings.pretrained, quick_gelu=settings.quick_gelu, cache_dir=settings.cache_dir)
    heartbeat.publish(LOADING, stage=MODEL)
    embedder = CLIPEmbedder.from_settings(settings)
    heartbeat.health.expect(embedder.warm_up())
    pipeline = Pipeline(embedder, store, settings)
    seconds = time.monotonic() - began
    space, device, precision = embedder.space, embedder.device_name, embedder.precision
    logger.info("ready: %s on %s in %s, space %s, in %.1f s", space.model, device, precision, space.id, seconds)
    logger.info("posters in %s, vectors to %s", root, without_password(settings.store))
    if room:
        heartbeat.note(gpu_used_bytes=memory_bytes(embedder.device)["allocated"])  # by the model, without chunks
    made = {"space": space.id, "space_json": space.to_json(), "device": device, "precision": precision}
    kinds = [IMAGE, POSTER, *([TEXT] if settings.text else [])]
    lost = _lost_device(settings, device, str(heartbeat.fields["device_before"]))
    made |= {"requests": ",".join(kinds), "device_before": lost, "lost_device": lost, LOADED_AT: repr(time.time())}
    if waiting_since := os.environ.get(WAKING_VARIABLE):
        made[RELOADED_S] = f"{time.monotonic() - float(waiting_since):.1f}"
        logger.info("the model is loaded again, %s s after work had come", made[RELOADED_S])
    heartbeat.publish(READY, **made, batch_size=embedder.chunk, stage="", reason="")
    _start_probes(root, embedder, store, heartbeat)
    answering = {kind: _answering(kind, settings, owner, pipeline, embedder, heartbeat) for kind in kinds}
    for runner in answering.values():
        runner.start()
    batches = BatchRunner(settings, owner, pipeline, store, job_store, heartbeat)
    close_metrics = None
    if settings.metrics_port is not None:
        from worker.runtime.metrics import WorkerMetrics, serve_metrics

        close_metrics = serve_metrics(settings, WorkerMetrics(embedder, pipeline, batches, answering, heartbeat))
    return Runners(batches, answering, close_metrics)


def _start_probes(root: Path, embedder: CLIPEmbedder, store: VectorStore, heartbeat: Heartbeat) -> None:
    """Ask device, store and posters root again and again whether they answer, the device while nothing is in hand."""
    state = heartbeat.health

    def probe_device() -> None:
        if state.is_idle:  # a forward pass that hangs shows otherwise
            embedder.probe()

    def end(error: Exception) -> None:
        defect = None if isinstance(error, DeviceLost) else error
        logger.critical("a probe failed: %s; exiting so that a fresh process takes over", error, exc_info=defect)
        exit_now(EX_SOFTWARE)

    probes = {
        health.DEVICE: probe_device,
        health.STORE: store.current,
        health.ROOT: lambda: heartbeat.note(root_names=_first_names(root)),
    }
    health.Prober(state, probes, end).start()


def _device_before(settings: Settings, owner: str) -> str:
    """The card that this worker, or the one in whose place it was started, had or has lost; empty: none is known."""
    try:
        with closing(WorkerRegistry(settings.redis_url)) as registry:
            named = [worker for worker in registry.alive() if worker.name == node_of(owner)]
    except RedisUnreachable:
        return ""
    known = [worker for worker in named if worker.get("device") or worker.get("device_before")]
    if not known:
        return ""
    newest = max(known, key=lambda worker: float(worker.get("at")))
    device = newest.get("device")
    return device if device.startswith("cuda") else newest.get("device_before")


def _lost_device(settings: Settings, device: str, before: str) -> str:
    """The card in whose place this worker uses the CPU, because its device is `auto`; empty: none."""
    if settings.device != "auto" or device.startswith("cuda") or not before:
        return ""
    logger.warning(
        "THE CPU IS USED in place of %s, which this worker had before: does nvidia-smi show the card? With "
        "POSTERS_DEVICE=cuda, a worker ends without it",
        before,
    )
    return before


def _answering(
    kind: str, settings: Settings, owner: str, pipeline: Pipeline, embedder: CLIPEmbedder, heartbeat: Heartbeat
) -> RequestRunner:
    """The thread that answers requests of a kind."""
    from worker.pipeline.request_embedder import RequestEmbedder
    from worker.pipeline.text_embedder import TextEmbedder

    def on_loading(is_loading: bool) -> None:
        heartbeat.publish(READY, text="loading" if is_loading else "")

    answers: AnsweringEmbedder = (
        TextEmbedder(pipeline.share, embedder, on_loading)
        if kind == TEXT
        else RequestEmbedder(pipeline, pipeline.store)
    )
    # An image is bounded by the limit for decoding it. A disk may be slow, and so may loading a text tower.
    limit_s = REQUEST_LIMIT * settings.decode_time_limit_s if kind == IMAGE else settings.batch_time_limit_s
    return RequestRunner(Inbox(settings.redis_url, LISTS[kind], owner), answers, heartbeat, limit_s)


def _first_names(root: Path) -> str:
    """A few names in the posters root, as JSON: a program that does not find one of them has another folder."""
    with os.scandir(root) as entries:
        return json.dumps([entry.name for entry in islice(entries, FIRST_NAMES)])


def _wait_for_store(settings: Settings, heartbeat: Heartbeat) -> VectorStore:
    """The store, once it can be written; one that is locked, full or unreachable is waited for."""
    from producer.vectors import open_store

    logged = ""
    while True:
        try:
            store = open_store(settings.store, settings.store_mode)
            try:
                heartbeat.note(store_id=store.check())
            except BaseException:
                store.close()
                raise
            return store
        except StoreUnavailable as error:
            reason = str(error)
        if reason != logged:
            logger.warning("waiting for the store: %s", reason)
        logged = reason
        heartbeat.publish(LOADING, stage=STORE, reason=reason)
        time.sleep(STORE_RETRY_S)


def _gpu_uuid(device: Any) -> str | None:
    """UUID of the GPU that this worker will use, a torch.device; None: the CPU, which workers may share."""
    from worker.model.device import card_of

    return card_of(device)


def _pin_gpu(gpu: str | None) -> None:
    """Make one GPU visible to CUDA; must be called before torch is imported."""
    if gpu is not None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # number GPUs as nvidia-smi does
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
