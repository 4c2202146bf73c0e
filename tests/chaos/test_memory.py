"""The memory of both processes of a worker stays flat over many small messages."""

import os
import sys
import time
from pathlib import Path

import pytest

from producer.queue.messages import QUEUES, EmbedBatch, Poster
from producer.queue.sender import create_sender, send
from tests.support.wait import wait_for

MESSAGES = int(os.environ.get("CHAOS_MESSAGES", "10000"))
TIME_LIMIT_S = 10
GROWTH_BYTES = 2_000_000  # the noise of the allocator; 0.4 kB for each message would be twice as much

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def resident(pid):
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.chaos
def test_memory_is_flat_over_many_small_batches(new_installation):
    """Celery's parent keeps the timer of each task's time limit until that time is over, done or not.

    So the limit is short here: what is left is bounded by the messages of TIME_LIMIT_S. The batches are those of no
    job: they take a message's whole way, and nothing is embedded.
    """
    installation = new_installation(batch_time_limit_s=str(TIME_LIMIT_S))
    worker = installation.worker("w", "--loglevel", "ERROR").wait_until_ready()
    pids = {"parent": worker.process.pid, "child": worker.child()}
    app = create_sender(installation.settings)
    posters = (Poster("a.jpg", "a.jpg"),)

    def run(count, name):
        with installation.redis.client as client:
            for number in range(count):
                send(app, EmbedBatch("no-job", f"{name}.{number}", posters))
                while number % 200 == 0 and client.llen(QUEUES["bulk"]) > 400:
                    time.sleep(0.05)
            wait_for(lambda: client.llen(QUEUES["bulk"]) == 0, "an empty lane", 60)
            wait_for(lambda: client.hlen("unacked") == 0, "every message acknowledged", 60)

    run(MESSAGES // 4, "warm-up")
    before = {name: resident(pid) for name, pid in pids.items()}
    began = time.monotonic()
    run(MESSAGES, "measured")
    rate = MESSAGES / (time.monotonic() - began)
    time.sleep(TIME_LIMIT_S + 2)
    grown = {name: resident(pid) - before[name] for name, pid in pids.items()}
    print(f"{MESSAGES:,} messages at {rate:.0f}/s; bytes grown: {grown}")
    app.close()
    assert worker.process.poll() is None
    assert max(grown.values()) < GROWTH_BYTES, grown
