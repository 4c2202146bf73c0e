"""The producer dies, or is stopped: what it took is done, and the same command goes on from there."""

import os
import signal
import subprocess
import time

import pytest
from chaos_table import scenario
from patience import wait_for

from worker.messages import QUEUES


@scenario(
    "`index` killed (`kill -9`) while it sends",
    "what was written down is done and counted; the same command again sends the rest: no gap, no work twice",
)
def test_a_killed_producer(enduring, measured):
    """Then the same command, started while the first one's batches are still open."""
    world = enduring
    names, before = world.draw(100, "producer/"), world.embedded()
    running = world.index_in_background("producer", batch=5, POSTERS_WINDOW="4")
    job = running.job
    world.wait_for_some(job, 20)
    running.close()
    killed = time.monotonic()
    ledger = world.index(str(world.root / "producer"), "--batch", "5")
    took = time.monotonic() - killed
    world.check(ledger["job"], names)
    wait_for(lambda: job.progress().open_batches == 0, "the first job's batches")
    first = job.progress()
    assert first.submitted == first.settled < 100
    twice = world.embedded() - before - 100
    assert twice <= 4 * 5, "more than the window of the first was embedded twice"
    measured(took, twice, "until the second command had ended")


@pytest.mark.chaos
@scenario(
    "`index` killed between writing a batch down and sending it",
    "the batch is in the ledger and on no queue: a live worker sends it",
)
def test_a_batch_that_was_never_sent(enduring, measured):
    """As if the producer had died between its two steps, with nobody waiting for the job."""
    world = enduring
    names = world.draw(12, "unsent/")
    producer = world.producer_with(posters_per_batch=4)
    producer.send = lambda batch: None
    job = producer.enqueue([world.root / name for name in names])
    written = time.monotonic()
    assert job.progress().open_batches == 3
    wait_for(lambda: job.progress().at_rest, "the worker's own repair", 60)
    world.check(job, names)
    measured(time.monotonic() - written, None, "nobody waited for the job")


@pytest.mark.chaos
@scenario(
    "`index` stopped with Ctrl-C, and `cancel` while a batch is in work",
    "the batch in work is finished and counted, the others leave `submitted`",
)
def test_a_cancelled_job(enduring, measured):
    """The counts stay true, whoever finishes first."""
    world = enduring
    world.draw(120, "cancelled/")
    running = world.index_in_background("cancelled", batch=10)
    world.wait_for_some(running.job, 15)
    asked = time.monotonic()
    done = world.run("cancel", running.job.id)
    assert done.returncode == 0
    ledger = running.finish()
    took = time.monotonic() - asked
    progress = running.job.progress()
    assert progress.state == "cancelled"
    assert progress.cancelled > 0
    assert progress.cancelled + progress.submitted == 120
    wait_for(lambda: running.job.progress().doing == 0, "the batch in work")
    settled = running.job.progress()
    assert settled.settled == settled.submitted == ledger["submitted"]
    world.check_nothing_open()
    measured(took, None, f"{progress.cancelled} of 120 withdrawn; until `index` had ended")


@pytest.mark.chaos
@scenario(
    "`index` stopped (SIGSTOP) for 40 s while it sends",
    "called abandoned meanwhile, goes on when it wakes: every poster counted once",
)
def test_a_producer_that_sleeps(enduring, measured):
    """A laptop that was closed; longer than the sender's sign of life holds."""
    world = enduring
    names, before = world.draw(120, "asleep/"), world.embedded()
    running = world.index_in_background("asleep", batch=5, POSTERS_WINDOW="2")
    world.wait_for_some(running.job, 10)
    os.kill(running.process.pid, signal.SIGSTOP)
    time.sleep(40)
    assert running.job.progress().state == "abandoned"
    os.kill(running.process.pid, signal.SIGCONT)
    woken = time.monotonic()
    ledger = running.finish()
    took = time.monotonic() - woken
    world.check(ledger["job"], names)
    measured(took, world.embedded() - before - 120, "until the job's end")


@scenario("the same batch delivered twice at once, to two workers", "one works, the other steps back; counted once")
@pytest.mark.chaos
def test_the_same_message_twice_at_once(fresh, measured):
    """The copies wait on the queue before anybody works, next to each other."""
    world = fresh()
    names = world.draw(60)
    job = world.producer_with(posters_per_batch=10).enqueue([world.root / name for name in names])
    with world.redis.client as client:
        for message in client.lrange(QUEUES["bulk"], 0, -1):
            client.lpush(QUEUES["bulk"], message, message)
        assert client.llen(QUEUES["bulk"]) == 18
    world.worker("a")
    world.worker("b")
    assert job.wait(120).at_rest
    progress = world.check(job, names)
    assert progress.embedded == 60
    twice = world.embedded() - 60
    assert twice == 0
    measured(None, twice)


@pytest.mark.chaos
@scenario("`index` and a Ctrl-C (SIGINT)", "the rest is sent, its id printed (status 130); the job is done without it")
def test_an_interrupted_index(enduring, measured):
    """The person has other things to do."""
    world = enduring
    names, before = world.draw(120, "interrupted/"), world.embedded()
    running = world.index_in_background("interrupted", batch=5, POSTERS_WINDOW="2")
    job = running.job
    world.wait_for_some(job, 10)
    running.process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    try:
        _, err = running.process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail("index did not leave")
    left = time.monotonic() - asked
    assert running.process.returncode == 130
    assert job.id in err
    running.close()
    wait_for(lambda: job.progress().at_rest, "the job's end")
    world.check(job, names)
    measured(left, world.embedded() - before - 120, "until `index` had left")
