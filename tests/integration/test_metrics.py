"""Metrics of a real worker: what they count is what happened, and Prometheus takes it."""

import os
import shutil
import signal
import urllib.error
from contextlib import closing, suppress

import pytest

from bench.image_samples import encoded, picture
from producer.errors import UnreadablePoster
from producer.metrics.families import WORKER
from tests.support.installation import Installation
from tests.support.prometheus import NEEDS_PROMTOOL, free_port, promtool, scrape
from tests.support.redis_server import RedisServer
from tests.support.wait import wait_for

POSTERS = 20


@pytest.fixture(scope="module")
def worker(redis_server, tmp_path_factory):
    """A worker with a port for metrics, which has done one job and answered two images, one of them damaged."""
    with redis_server.client as client:
        client.flushall()
    port = free_port()
    installation = Installation(tmp_path_factory.mktemp("measured"), redis_server, metrics_port=str(port))
    started = installation.worker("w").wait_until_ready()
    started.port, started.installation = port, installation
    names = installation.draw(POSTERS)
    (installation.root / "broken.jpg").write_bytes(b"no image")
    assert installation.producer.enqueue([*names, "broken.jpg"]).wait(60).failed == 1
    copies = [shutil.copy(installation.root / name, installation.root / f"copy-{name}").name for name in names[:5]]
    assert installation.producer.enqueue(copies).wait(60).reused == 5
    image = encoded(picture(90, 90, seed=1), "JPEG", quality=80)
    installation.producer.embed_image(image, timeout=30)
    with pytest.raises(UnreadablePoster):
        installation.producer.embed_image(image[:200], timeout=30)
    refused = ("posters_requests_total", "image", "refused")
    wait_for(lambda: scrape(port)[refused] == 1, "the refusal to be counted: its caller may be faster")
    yield started
    installation.close()


def test_a_worker_counts_what_it_did(worker):
    """Posters by outcome and word, images, stages, requests with their wait, chunk, canary; nothing of a card."""
    figures = scrape(worker.port)
    count = {outcome: figures["posters_processed_total", outcome] for outcome in ("embedded", "reused", "failed")}
    assert count == {"embedded": POSTERS, "reused": 5, "failed": 1}
    assert figures["posters_failures_total", "unreadable"] == 1
    assert figures["posters_images_total",] == POSTERS
    assert figures["posters_stage_seconds_total", "device"] > 0
    # the device may work on one chunk while the next is waited for, so that their sum may be larger
    waited = figures["posters_stage_seconds_total", "waiting_for_decode"]
    assert 0 < waited < figures["posters_batch_seconds_total",] < 60
    assert figures["posters_request_device_seconds_total",] > 0
    assert figures["posters_chunk_size_images",] == figures["posters_chunk_size_limit_images",] == 8
    assert figures["posters_halvings_total",] == 0
    assert figures["posters_requests_total", "image", "answered"] == 1
    assert figures["posters_requests_total", "image", "refused"] == 1
    for name in ("posters_request_seconds", "posters_request_wait_seconds"):
        assert figures[f"{name}_count", "image"] == figures[f"{name}_bucket", "image", "+Inf"] == 2
        assert 0 < figures[f"{name}_sum", "image"] < 30
    assert figures["posters_canary_checks_total",] >= 1
    assert figures["posters_canary_failures_total",] == 0
    at = figures["posters_canary_last_check_timestamp_seconds",], figures["posters_last_progress_timestamp_seconds",]
    assert at[0] <= at[1] <= at[0] + 60
    (about,) = [labels for name, *labels in figures if name == "posters_worker_info"]
    assert about == [worker.announcement().get(name) for name in ("device", "model", "precision", "space")] + [
        "w@tests"
    ]
    assert figures["process_resident_memory_bytes",] > 1e7


def test_a_worker_exports_what_is_documented(worker):
    """Every metric of the catalogue but those of a card, and no other."""
    found, known = scrape(worker.port).declared(WORKER)
    assert known - found == {
        "posters_device_lease_held",
        *(f"posters_device_memory_{part}_bytes" for part in ("used", "peak", "free")),
    }
    assert found <= known


@NEEDS_PROMTOOL
def test_promtool_finds_nothing_to_mend(worker):
    """Names, types, units and texts follow Prometheus' conventions."""
    promtool("check", "metrics", text=scrape(worker.port).text)


def test_a_replaced_child_counts_itself_and_serves_again(tmp_path):
    """The other counts begin again, as Prometheus expects of a process that was restarted."""
    port = free_port()

    def scraped(restarts):
        with suppress(OSError, urllib.error.URLError):
            return (figures := scrape(port))["posters_child_restarts_total",] == restarts and figures

    with RedisServer() as server, closing(Installation(tmp_path, server, metrics_port=str(port))) as installation:
        worker = installation.worker("w").wait_until_ready()
        installation.draw(1)
        assert installation.index()["embedded"] == 1
        done = ("posters_processed_total", "embedded")
        wait_for(lambda: (figures := scraped(0)) and figures[done] == 1, "the poster to be counted", 60)
        os.kill(worker.child(), signal.SIGKILL)
        figures = wait_for(lambda: scraped(1), "the port of the next child", 60)
        assert figures[done] == 0
        assert worker.announcement().get("restarts") == "1"
