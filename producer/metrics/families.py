"""Every metric: its name, type, labels and meaning. docs/operating.md, the alert rules and the board are checked by it.

No label comes from a file, a catalogue or a caller: the number of series stays small, whatever the collection holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily


class Metric(NamedTuple):
    """What a metric is; its name has Prometheus' suffix for its type and unit."""

    name: str
    kind: str  # counter, gauge, histogram
    meaning: str
    labels: tuple[str, ...] = ()


# Of one worker, at POSTERS_METRICS_PORT. Counters begin again with each process that holds the model, except how often
# it was replaced, and how often for wrong vectors.
WORKER: Final = (
    Metric("posters_worker_info", "gauge", "1; what runs here", ("worker", "model", "space", "device", "precision")),
    Metric(
        "posters_processed_total",
        "counter",
        "posters of finished batches: `embedded`, `reused`, `unchanged`, `failed`",
        ("outcome",),
    ),
    Metric("posters_failures_total", "counter", "posters that failed, by the word of the failure", ("word",)),
    Metric("posters_images_total", "counter", "images that batches embedded, counted with each chunk"),
    Metric("posters_batch_seconds_total", "counter", "time in batches, counted with each chunk"),
    Metric(
        "posters_stage_seconds_total",
        "counter",
        "time of batches in which the `device` worked, or waited: `waiting_for_decode`, `waiting_for_store`; the first "
        "may overlap with the others",
        ("stage",),
    ),
    Metric("posters_request_device_seconds_total", "counter", "time in which the device worked for requests"),
    Metric("posters_chunk_size_images", "gauge", "images per forward pass, as memory allows"),
    Metric("posters_chunk_size_limit_images", "gauge", "the same, at most"),
    Metric("posters_halvings_total", "counter", "times that memory ran out, and the chunk was halved"),
    Metric("posters_device_memory_used_bytes", "gauge", "memory that this worker holds of its card; none on a CPU"),
    Metric("posters_device_memory_peak_bytes", "gauge", "the most that it held"),
    Metric("posters_device_memory_free_bytes", "gauge", "memory of its card that nobody holds"),
    Metric("posters_requests_total", "counter", "requests that were `answered`, or `refused`", ("kind", "outcome")),
    Metric("posters_request_seconds", "histogram", "from taking a request to its answer", ("kind",)),
    Metric("posters_request_wait_seconds", "histogram", "from putting a request into Redis to taking it", ("kind",)),
    Metric(
        "posters_child_restarts_total",
        "counter",
        "times that the process with the model was replaced",
    ),
    Metric("posters_device_lease_held", "gauge", "1 while the lease of the card is ours; none on a CPU"),
    Metric("posters_canary_checks_total", "counter", "checks of the device with a known image"),
    Metric("posters_canary_last_check_timestamp_seconds", "gauge", "when the last one was passed"),
    Metric("posters_canary_failures_total", "counter", "times that the device computed wrong vectors"),
    Metric("posters_last_progress_timestamp_seconds", "gauge", "when the last batch ended"),
)
# Of the queue, at /metrics of `serve`.
QUEUE: Final = (
    Metric("posters_redis_up", "gauge", "1 if Redis answers; otherwise all others of this table are missing"),
    Metric("posters_queue_messages", "gauge", "messages that wait on a lane: `interactive`, `bulk`", ("lane",)),
    Metric("posters_queue_oldest_seconds", "gauge", "age of the job whose batch comes next; 0: of none", ("lane",)),
    Metric("posters_requests_waiting", "gauge", "requests that wait: `image`, `text`, `poster`", ("kind",)),
    Metric("posters_bulk_resting", "gauge", "1 while bulk work rests: it is paused, or all workers have quiet hours"),
    Metric("posters_jobs_active", "gauge", "jobs that are being sent, or have open batches"),
    Metric("posters_open_batches", "gauge", "batches that are recorded and not finished"),
    Metric("posters_dead_letters", "gauge", "messages that no worker could read"),
    Metric(
        "posters_workers",
        "gauge",
        "live workers: `ready`, `unloaded` (ready as well), `faulty`, `loading`, `waiting` (for a card), `failed`",
        ("state",),
    ),
    Metric("posters_redis_memory_used_bytes", "gauge", "memory that Redis has taken"),
    Metric("posters_redis_memory_max_bytes", "gauge", "memory that it may take; 0: without a limit"),
)
KINDS: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
BY_NAME: Final = {metric.name: metric for metric in (*WORKER, *QUEUE)}


def family(name: str, values: float | Mapping[Any, float] | None) -> Iterator[Family]:
    """A counter or gauge with its value, or one value for each label or tuple of labels; nothing for None."""
    if values is not None:
        made = _empty(name)
        for key, value in values.items() if isinstance(values, Mapping) else [((), values)]:
            labels = (key,) if isinstance(key, str) else key
            if len(labels) != len(BY_NAME[name].labels):  # the library would leave some out
                raise ValueError(f"{name} has the labels {BY_NAME[name].labels}, not {labels}")
            made.add_metric(labels, value)
        yield made


def histogram(name: str, values: Mapping[str, tuple[Sequence[tuple[str, float]], float]]) -> Iterator[Family]:
    """A histogram with, for each label, the cumulated buckets and the sum."""
    made = _empty(name)
    for label, (buckets, total) in values.items():
        made.add_metric([label], buckets, total)
    yield made


def _empty(name: str) -> Any:
    metric = BY_NAME[name]
    return KINDS[metric.kind](name, metric.meaning.replace("`", ""), labels=metric.labels)
