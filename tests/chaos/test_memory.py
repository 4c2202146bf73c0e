"""The memory of both processes of a worker stays flat over many small messages; CHAOS_MESSAGES=100000 sends more."""

import os
import sys
import time
from pathlib import Path

import pytest

from producer.queue.messages import QUEUES, EmbedBatch, Poster
from producer.queue.sender import create_sender, send
from tests.support.wait import wait_for

MESSAGES = int(os.environ.get("CHAOS_MESSAGES", "10000"))
GROWTH_BYTES = 2_000_000  # the noise of the allocator; 0.4 kB for each message, as of a timer, would be twice as much

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def resident(pid):
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.chaos
def test_memory_is_flat_over_many_small_batches(new_installation):
    """Also of Celery's parent, which would keep the timer of a task's time limit until that time is over.

    The batches are those of no job: they take a message's whole way, and nothing is embedded.
    """
    installation = new_installation()
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
            wait_for(lambda: client.llen(QUEUES["bulk"]) == 0, "an empty lane", 120)
            wait_for(lambda: client.hlen("unacked") == 0, "every message acknowledged", 60)

    run(MESSAGES // 4, "warm-up")
    before = {name: resident(pid) for name, pid in pids.items()}
    began = time.monotonic()
    run(MESSAGES, "measured")
    rate = MESSAGES / (time.monotonic() - began)
    grown = {name: resident(pid) - before[name] for name, pid in pids.items()}
    print(f"{MESSAGES:,} messages at {rate:.0f}/s; bytes grown: {grown}")
    app.close()
    assert worker.process.poll() is None
    assert max(grown.values()) < GROWTH_BYTES, grown
