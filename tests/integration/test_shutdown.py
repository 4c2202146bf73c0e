"""A worker stops in bounded time, nothing is lost, and no attempt is counted against the batch in progress."""

import json
import signal
import time

import pytest

from producer.queue.messages import BatchMessage
from producer.queue.progress import Claim
from tests.support.installation import Installation
from tests.support.redis_server import RedisServer
from tests.support.wait import wait_for

STOP_S = 2

INT, TERM, QUIT = signal.SIGINT, signal.SIGTERM, signal.SIGQUIT


@pytest.fixture
def installation(redis_url, redis_server, tmp_path):
    installation = Installation(tmp_path, redis_server, stop_s=str(STOP_S))
    installation.forks_workers = False
    yield installation
    installation.close()


def with_batch_in_progress(installation, pool, *, ending=b""):
    """A worker in the middle of a long batch, and the batch's job."""
    worker = installation.worker(
        "w", "--pool", pool, "--include", "tests.support.fault_injection", FAULT_SLEEP_S="0.5"
    ).wait_until_ready()
    names = [*installation.draw(8), *installation.draw(150, prefix="q", ending=ending)]
    job = installation.producer.enqueue(names)
    ends = time.monotonic() + 30
    while job.progress().doing == 0:
        assert time.monotonic() < ends, worker.log_text()
        time.sleep(0.05)
    return worker, job


def is_released(installation, job):
    """The batch is open, unclaimed, its attempt not counted, and it is queued or returned."""
    name = f"{job.id}.1"
    assert installation.claims().open_batches(job.id) == {name}
    with installation.redis.client as client:
        queued = [json.loads(text)["headers"]["id"] for text in client.lrange("posters.bulk", 0, -1)]
    assert name in queued or installation.claims().take_returned() == [(job.id, name)]
    claimed = installation.claims().claim(BatchMessage(job.id, name), "another#1")
    return (claimed.verdict, claimed.attempt, claimed.begun_before) == (Claim.WORK, 1, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "signals", "within_s"),
    [
        ("prefork", [TERM], STOP_S + 8),
        pytest.param("prefork", [INT, INT], 8, marks=pytest.mark.chaos),
        ("solo", [QUIT], 8),
    ],
    ids=lambda value: "+".join(number.name for number in value) if isinstance(value, list) else str(value),
)
def test_a_batch_that_cannot_be_finished_is_released(installation, pool, signals, within_s):
    """After stop_s on SIGTERM, at once on a second Ctrl-C or SIGQUIT; in both pools."""
    worker, job = with_batch_in_progress(installation, pool)
    began = time.monotonic()
    for number in signals:
        worker.process.send_signal(number)
        time.sleep(0.3)
    worker.process.wait(30)
    assert time.monotonic() - began < within_s
    assert is_released(installation, job), worker.log_text()
    if worker.process.returncode >= 0:  # a further Ctrl-C may end Python itself; the registry entry expires then
        assert installation.producer.workers() == []


@pytest.mark.chaos
@pytest.mark.slow
def test_a_batch_that_hangs_does_not_delay_the_shutdown(installation):
    """The process is killed, and the batch is released at once or when its claim expires."""
    worker, job = with_batch_in_progress(installation, "prefork", ending=b"#hang-for-ever")
    began = time.monotonic()
    worker.stop(within_s=STOP_S + 12)
    assert time.monotonic() - began < STOP_S + 12
    time.sleep(installation.settings.claim_s)
    assert is_released(installation, job), worker.log_text()


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_stop_while_redis_is_down_costs_no_attempt(tmp_path, pool):
    """It can be reported to nobody. The next worker finds that Redis was restarted since the batch was claimed."""
    with RedisServer(["--appendonly", "yes", "--appendfsync", "always"]) as server:
        installation = Installation(tmp_path, server, stop_s=str(STOP_S))
        installation.forks_workers = False
        worker, job = with_batch_in_progress(installation, pool)
        server.stop()
        worker.process.send_signal(TERM)
        worker.process.wait(60)
        server.start()
        claims, message = installation.claims(), BatchMessage(job.id, f"{job.id}.1")
        wait_for(lambda: not claims.claimed([message.batch]), "the end of the claim", 60)
        claimed = claims.claim(message, "another#1")
        assert (claimed.verdict, claimed.attempt, claimed.begun_before) == (Claim.WORK, 1, True), worker.log_text()
        installation.close()


@pytest.mark.slow
def test_a_batch_that_can_be_finished_is_finished(installation):
    """And counted; the worker then exits with status 0."""
    worker = installation.worker(
        "w", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="0.5"
    ).wait_until_ready()
    job = installation.producer.enqueue(installation.draw(2))
    time.sleep(0.3)
    assert worker.stop() == 0
    progress = job.progress()
    assert (progress.embedded, progress.at_rest) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--pool", "threads"], "pools prefork and solo"),
        (["--concurrency", "2"], "--concurrency"),
        (["--autoscale", "3,1"], "--autoscale"),
        (["--pool", "solo"], "POSTERS_IDLE_UNLOAD_S needs the pool prefork"),
    ],
)
def test_unsupported_options_are_refused(installation, arguments, named):
    """Several processes would share one GPU; threads run a batch twice after a lost connection; solo cannot unload."""
    worker = installation.worker("odd", *arguments, POSTERS_IDLE_UNLOAD_S="600")
    assert worker.process.wait(60) == 78
    assert "configuration: " in worker.log_text()
    assert named in worker.log_text()
    assert "Traceback" not in worker.log_text()
