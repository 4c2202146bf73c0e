"""The producer is killed or stopped: what it accepted is done, and the same command continues from there."""

import os
import signal
import subprocess
import time

import pytest

from producer.queue.messages import QUEUES
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for


@scenario(
    "`index` killed (`kill -9`) while it sends",
    "what the ledger holds is done and counted; the same command again sends the rest: no gap, no duplicate work",
)
def test_a_killed_producer(shared_installation, measured):
    """The same command is started again while the first one's batches are still open."""
    installation = shared_installation
    names, before = installation.draw(100, "producer/"), installation.embedded()
    running = installation.index_in_background("producer", batch=5, POSTERS_WINDOW="4")
    job = running.job
    installation.wait_for_some(job, 20)
    running.close()
    killed = time.monotonic()
    ledger = installation.index(str(installation.root / "producer"), "--batch", "5")
    took = time.monotonic() - killed
    installation.check(ledger["job"], names)
    wait_for(lambda: job.progress().open_batches == 0, "the first job's batches")
    first = job.progress()
    assert first.submitted == first.settled < 100
    twice = installation.embedded() - before - 100
    assert twice <= 4 * 5, "more than the window of the first was embedded twice"
    measured(took, twice, "until the second command had ended")


@pytest.mark.chaos
@scenario(
    "`index` killed after it recorded a batch and before it sent it",
    "the batch is in the ledger and in no queue: a running worker sends it",
)
def test_a_batch_that_was_never_sent(shared_installation, measured):
    """As if the producer had died between its two steps; no process waits for the job."""
    installation = shared_installation
    names = installation.draw(12, "unsent/")
    producer = installation.producer_with(posters_per_batch=4)
    producer.send = lambda batch: None
    job = producer.enqueue([installation.root / name for name in names])
    written = time.monotonic()
    assert job.progress().open_batches == 3
    wait_for(lambda: job.progress().at_rest, "the worker's redelivery", 60)
    installation.check(job, names)
    measured(time.monotonic() - written, None, "nobody waited for the job")


@pytest.mark.chaos
@scenario(
    "`cancel` of a running `index` while a batch is in progress",
    "the batch in progress is finished and counted, the others leave `submitted`",
)
def test_a_cancelled_job(shared_installation, measured):
    """The counts stay correct, whichever of the two finishes first."""
    installation = shared_installation
    installation.draw(120, "cancelled/")
    running = installation.index_in_background("cancelled", batch=10)
    installation.wait_for_some(running.job, 15)
    began = time.monotonic()
    result = installation.run("cancel", running.job.id)
    assert result.returncode == 0
    ledger = running.finish()
    took = time.monotonic() - began
    progress = running.job.progress()
    assert progress.state == "cancelled"
    assert progress.cancelled > 0
    assert progress.cancelled + progress.submitted == 120
    wait_for(lambda: running.job.progress().doing == 0, "the batch in progress")
    settled = running.job.progress()
    assert settled.settled == settled.submitted == ledger["submitted"]
    installation.check_nothing_open()
    measured(took, None, f"{progress.cancelled} of 120 withdrawn; until `index` had ended")


@pytest.mark.chaos
@scenario(
    "`index` stopped (SIGSTOP) for 40 s while it sends",
    "shown as abandoned meanwhile, continues when it wakes: every poster counted once",
)
def test_a_suspended_producer(shared_installation, measured):
    """As on a closed laptop; for longer than the sender's lease lasts."""
    installation = shared_installation
    names, before = installation.draw(120, "asleep/"), installation.embedded()
    running = installation.index_in_background("asleep", batch=5, POSTERS_WINDOW="2")
    installation.wait_for_some(running.job, 10)
    os.kill(running.process.pid, signal.SIGSTOP)
    time.sleep(40)
    assert running.job.progress().state == "abandoned"
    os.kill(running.process.pid, signal.SIGCONT)
    woken = time.monotonic()
    ledger = running.finish()
    took = time.monotonic() - woken
    installation.check(ledger["job"], names)
    measured(took, installation.embedded() - before - 120, "until the job's end")


@scenario("the same batch delivered twice at once, to two workers", "one embeds it, the other skips it; counted once")
@pytest.mark.chaos
def test_a_message_that_is_delivered_twice_at_once(new_installation, measured):
    """The copies lie next to each other in the queue before a worker starts."""
    installation = new_installation()
    names = installation.draw(60)
    job = installation.producer_with(posters_per_batch=10).enqueue([installation.root / name for name in names])
    with installation.redis.client as client:
        for message in client.lrange(QUEUES["bulk"], 0, -1):
            client.lpush(QUEUES["bulk"], message, message)
        assert client.llen(QUEUES["bulk"]) == 18
    installation.worker("a")
    installation.worker("b")
    assert job.wait(120).at_rest
    progress = installation.check(job, names)
    assert progress.embedded == 60
    twice = installation.embedded() - 60
    assert twice == 0
    measured(None, twice)


@pytest.mark.chaos
@scenario(
    "`index` interrupted with Ctrl-C (SIGINT)",
    "what was sent is done, the job's id is printed (status 130); the same command sends the rest",
)
def test_an_interrupted_index(shared_installation, measured):
    """The command leaves at once, and its job is done without it."""
    installation = shared_installation
    names, before = installation.draw(120, "interrupted/"), installation.embedded()
    running = installation.index_in_background("interrupted", batch=5, POSTERS_WINDOW="2")
    job = running.job
    installation.wait_for_some(job, 10)
    running.process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    try:
        _, err = running.process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail("index did not leave")
    left = time.monotonic() - interrupted
    assert running.process.returncode == 130
    assert job.id in err
    running.close()
    progress = wait_for(lambda: (now := job.progress()).at_rest and now, "the job's end")
    assert progress.submitted < 120
    rest = installation.index_in_background("interrupted", batch=5)
    job = rest.job
    assert rest.finish()["submitted"] == 120
    installation.check(job, names)
    measured(left, installation.embedded() - before - 120, "until `index` had left")
