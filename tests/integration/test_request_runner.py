"""RequestRunner on a real Redis: every image request gets one answer, and none ends the worker."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

import worker.runtime.heartbeat
from producer.errors import DeviceLost, RedisUnreachable, UnreadablePoster
from producer.queue.image_requests import Answer, ImageRequests
from producer.queue.jobs import JobStore
from producer.settings import load_settings
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.request_runner import RequestRunner


class FakePipeline:
    """Embeds every image as the same vector, or raises `error`."""

    error = None
    embedder = SimpleNamespace(space=SimpleNamespace(id="space-1"))

    def embed_one(self, data):
        if self.error:
            raise self.error
        return np.full(4, 0.5, np.float32)


@pytest.fixture
def requests(redis_server, redis_url):
    """The client's side."""
    requests = ImageRequests(redis_server.as_backend(redis_url))
    yield requests
    requests.close()


@pytest.fixture
def pipeline():
    return FakePipeline()


@pytest.fixture
def runner(redis_url, pipeline):
    """A RequestRunner without a model."""
    job_store = JobStore(redis_url)
    heartbeat = Heartbeat(load_settings(redis_url=redis_url), "w@tests", job_store, solo=False)
    runner = RequestRunner(ImageRequests(redis_url), pipeline, heartbeat)
    yield runner
    runner.close()
    heartbeat.stop()
    job_store.close()


def test_a_request_is_answered_with_vector_and_space(runner, requests):
    """As little-endian float32, in the space of the worker's model."""
    token = requests.put(b"image", 5)
    runner.run(token)
    assert requests.wait(token, 5) == Answer("space-1", np.full(4, 0.5, "<f4").tobytes())


def test_a_request_that_ended_its_worker_is_answered_at_once(runner, requests, redis_url):
    """Its image was taken before: the client gets an error instead of a time-out."""
    token = requests.put(b"image", 5)
    ended = ImageRequests(redis_url)
    ended.take(token)
    ended.close()
    runner.run(token)
    with pytest.raises(UnreadablePoster, match="the image: crashed-worker"):
        requests.wait(token, 5)


def test_an_image_that_cannot_be_embedded_is_answered_with_the_reason(runner, requests, pipeline):
    """The same word and reason as for a poster."""
    pipeline.error = UnreadablePoster("the image", "too-large", "it has 9 pixels")
    token = requests.put(b"image", 5)
    runner.run(token)
    with pytest.raises(UnreadablePoster, match="too-large: it has 9 pixels"):
        requests.wait(token, 5)


def test_a_defect_is_answered_and_logged(runner, requests, pipeline, caplog):
    """As `internal`: it is not the image's fault."""
    pipeline.error = ZeroDivisionError("oops")
    token = requests.put(b"image", 5)
    runner.run(token)
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(UnreadablePoster, match="internal: ZeroDivisionError: oops"):
        requests.wait(token, 5)


def test_a_lost_device_is_not_answered(runner, requests, pipeline):
    """The process must exit; a fresh one takes over, and answers the request."""
    pipeline.error = DeviceLost("the context is broken")
    token = requests.put(b"image", 5)
    with pytest.raises(DeviceLost):
        runner.run(token)
    assert requests.wait(token, 0.1) is None


def test_an_unreachable_redis_does_not_end_the_worker(runner, requests, monkeypatch):
    """The client times out, and may repeat its request."""

    def fail(token):
        raise RedisUnreachable("Redis does not answer")

    monkeypatch.setattr(requests, "take", fail)
    runner.run("0" * 32)


def test_a_request_that_hangs_ends_a_solo_worker(redis_url, monkeypatch):
    """There is no parent process with a time limit that would end it."""
    ended = threading.Event()
    monkeypatch.setattr(worker.runtime.heartbeat, "exit_now", lambda status: ended.set())
    settings = SimpleNamespace(redis_url=redis_url, batch_time_limit_s=0.2, claim_s=3)
    heartbeat = Heartbeat(settings, "solo@tests", JobStore(redis_url, claim_s=3), solo=True)
    heartbeat.start()
    with heartbeat.watch("an image request"):
        assert ended.wait(5)
    heartbeat.stop()
