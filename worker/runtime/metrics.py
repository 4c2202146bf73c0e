"""Metrics of a worker for Prometheus: what it counts anyway, read when somebody asks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client import Metric as Family

from producer.metrics.families import family, histogram
from producer.queue.workers import node_of
from producer.settings import Settings
from worker.model.device import memory_bytes
from worker.runtime.batch_runner import BatchRunner
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.request_runner import RequestRunner

if TYPE_CHECKING:
    from worker.clip_embedder import CLIPEmbedder
    from worker.pipeline.pipeline import Pipeline

logger = logging.getLogger(__name__)


class WorkerMetrics:
    """Reads the counts of the threads that work. It keeps none of its own, and costs nothing while nobody asks."""

    def __init__(
        self,
        embedder: CLIPEmbedder,
        pipeline: Pipeline,
        batches: BatchRunner,
        requests: Mapping[str, RequestRunner],
        heartbeat: Heartbeat,
    ) -> None:
        """`requests` by kind; all of them belong to the caller."""
        self._embedder, self._pipeline, self._batches = embedder, pipeline, batches
        self._requests, self._heartbeat = requests, heartbeat

    def collect(self) -> Iterator[Family]:
        """The families of producer/metrics/families.py; in any thread."""
        return chain(self._worker(), self._work(), self._device(), self._answers())

    def _worker(self) -> Iterator[Family]:
        fields, lease = self._heartbeat.fields, self._heartbeat.gpu_lease
        about = (str(fields[name]) for name in ("model", "space", "device", "precision"))
        yield from family("posters_worker_info", {(node_of(self._heartbeat.owner), *about): 1})
        yield from family("posters_child_restarts_total", float(str(fields["restarts"])))
        yield from family("posters_canary_failures_total", float(str(fields["wrong_vectors"])))
        yield from family("posters_device_lease_held", None if lease is None else lease.is_held)
        if "progress_at" in fields:
            yield from family("posters_last_progress_timestamp_seconds", float(str(fields["progress_at"])))

    def _work(self) -> Iterator[Family]:
        timings, share = self._pipeline.all_timings, self._pipeline.share
        stages = {
            "device": timings.on_device,
            "waiting_for_decode": timings.waiting_for_decode,
            "waiting_for_store": timings.waiting_for_store,
        }
        yield from family("posters_processed_total", dict(self._batches.outcomes))
        yield from family("posters_failures_total", dict(self._batches.failures))
        yield from family("posters_images_total", timings.images)
        yield from family("posters_batch_seconds_total", timings.total)
        yield from family("posters_stage_seconds_total", stages)
        yield from family("posters_request_device_seconds_total", share.all_requests_s)

    def _device(self) -> Iterator[Family]:
        check, memory = self._pipeline.check, memory_bytes(self._embedder.device)
        yield from family("posters_chunk_size_images", self._embedder.chunk)
        yield from family("posters_chunk_size_limit_images", self._embedder.chunk_limit)
        yield from family("posters_halvings_total", self._embedder.halvings)
        for name in ("used", "peak", "free"):
            yield from family(f"posters_device_memory_{name}_bytes", memory.get(name))
        yield from family("posters_canary_checks_total", check.passed)
        yield from family("posters_canary_last_check_timestamp_seconds", check.passed_at or None)

    def _answers(self) -> Iterator[Family]:
        runners = self._requests.items()
        outcomes = {(kind, outcome): n for kind, runner in runners for outcome, n in runner.outcomes.items()}
        yield from family("posters_requests_total", outcomes)
        durations = {kind: (runner.durations.buckets(), runner.durations.sum_s) for kind, runner in runners}
        yield from histogram("posters_request_seconds", durations)
        waits = {kind: (runner.waits.buckets(), runner.waits.sum_s) for kind, runner in runners}
        yield from histogram("posters_request_wait_seconds", waits)


def serve_metrics(settings: Settings, metrics: WorkerMetrics) -> Callable[[], None] | None:
    """Serve metrics at the port of the settings until the function that is returned is called.

    A port that cannot be opened is logged: work is worth more than its figures.
    """
    if settings.metrics_port is None:
        return None
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    where = f"{settings.metrics_host}, port {settings.metrics_port}"
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        reason = error.strerror or error
        logger.error("no metrics: %s, cannot be listened on (%s): change POSTERS_METRICS_PORT or _HOST", where, reason)
        return None
    logger.info("metrics at %s", where)

    def close() -> None:
        server.shutdown()
        server.server_close()

    return close
