"""Metrics of a worker: all of its figures, at a port that need not be free."""

import logging
import socket
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from producer.metrics.families import WORKER
from producer.settings import Settings
from tests.support.fake_embedder import batch, make, root, write  # noqa: F401 (fixtures)
from tests.support.prometheus import Scraped, free_port, scrape
from worker.runtime import metrics as module
from worker.runtime.metrics import WorkerMetrics, serve_metrics
from worker.runtime.request_figures import Durations

GIGABYTE = 2**30
FIELDS = {"model": "m", "space": "s", "device": "cuda:0", "precision": "fp16", "restarts": 2, "wrong_vectors": 1}


@pytest.fixture
def metrics(make, monkeypatch):  # noqa: F811
    """Of a worker on a card, whose pipeline is real and has done nothing yet."""
    pipeline = make()
    monkeypatch.setattr(module, "memory_bytes", lambda device: {"used": GIGABYTE, "peak": 2 * GIGABYTE, "free": 0})
    embedder = SimpleNamespace(device=None, chunk=4, chunk_limit=16, halvings=2)
    batches = SimpleNamespace(outcomes={"embedded": 3, "failed": 1}, failures={"damaged": 1})
    waits, durations = Durations(), Durations()
    for seconds in (0.001, 0.2, 0.2, 99):
        durations.add(seconds)
    runner = SimpleNamespace(outcomes={"answered": 4, "refused": 0}, waits=waits, durations=durations)
    heartbeat = SimpleNamespace(
        owner="w@tests/1/a", fields=FIELDS | {"progress_at": 5.5}, gpu_lease=SimpleNamespace(is_held=True)
    )
    made = WorkerMetrics(embedder, pipeline, batches, {"image": runner}, heartbeat)
    made.pipeline, made.fields = pipeline, heartbeat.fields
    return made


def figures(metrics):
    registry = CollectorRegistry()
    registry.register(metrics)
    return Scraped(generate_latest(registry).decode())


def test_a_worker_on_a_card_has_every_figure(metrics, root):  # noqa: F811
    """All that the catalogue of metrics names, once a batch has ended; memory and the lease of its card as well."""
    metrics.pipeline.check.passed, metrics.pipeline.check.passed_at = 1, 9.0
    found = figures(metrics)
    names, known = found.declared(WORKER)
    assert names == known
    assert found["posters_device_memory_used_bytes",] == GIGABYTE
    assert found["posters_device_memory_peak_bytes",] == 2 * GIGABYTE
    assert found["posters_device_lease_held",] == 1
    assert found["posters_child_restarts_total",] == 2
    assert found["posters_canary_failures_total",] == 1
    assert found["posters_halvings_total",] == 2
    assert found["posters_worker_info", "cuda:0", "m", "fp16", "s", "w@tests"] == 1
    assert found["posters_last_progress_timestamp_seconds",] == 5.5


def test_labels_are_those_of_the_catalogue(metrics):
    """In its order; none comes from what is embedded."""
    labels = {metric.name.removesuffix("_total"): set(metric.labels) for metric in WORKER}
    for family in figures(metrics).families:
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels[family.name], family.name


def test_a_histogram_adds_up(metrics):
    """Buckets are cumulated, and what is longer than all of them is in the last."""
    found = figures(metrics)
    bounds = ("0.005", "0.1", "0.25", "60.0", "+Inf")
    assert [found["posters_request_seconds_bucket", "image", bound] for bound in bounds] == [1, 1, 3, 3, 4]
    assert found["posters_request_seconds_sum", "image"] == pytest.approx(99.401)
    assert found["posters_request_wait_seconds_count", "image"] == 0


def test_counts_only_grow_while_batches_follow_each_other(metrics, root):  # noqa: F811
    """Prometheus takes a smaller value for a restart: it is read within batches and between them."""
    seen = []

    def read(done):
        found = figures(metrics)
        stage = found["posters_stage_seconds_total", "waiting_for_decode"]
        seen.append((found["posters_images_total",], stage, found["posters_batch_seconds_total",]))

    posters = [write(root, number) for number in range(24)]
    for start in (0, 8, 16):
        metrics.pipeline.run(batch(posters[start : start + 8]), read)
        read(0)
    for column in zip(*seen, strict=True):
        assert list(column) == sorted(column)
    assert (seen[0][0] < 8, seen[0][2] > 0) == (True, True), "within a batch"
    assert seen[-1][0] == 24


def test_a_port_that_is_taken_is_logged(metrics, caplog):
    """Work is worth more than its figures: the worker goes on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(metrics_port=other.getsockname()[1])
        with caplog.at_level(logging.ERROR):
            assert serve_metrics(settings, metrics) is None
    assert f"port {settings.metrics_port}, cannot be listened on" in caplog.text
    assert "POSTERS_METRICS_PORT" in caplog.text


def test_a_closed_port_is_free(metrics):
    """For the next process of the same worker."""
    settings = Settings(metrics_port=free_port())
    close = serve_metrics(settings, metrics)
    assert scrape(settings.metrics_port)["posters_chunk_size_images",] == 4
    close()
    with socket.create_server(("127.0.0.1", settings.metrics_port)):
        pass
