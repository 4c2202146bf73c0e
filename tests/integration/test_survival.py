"""A real worker whose device dies or hangs under it, and what it says of how fast it is."""

import time

import pytest

from tests.support.installation import Installation


@pytest.fixture
def installation(redis_url, redis_server, tmp_path):
    """An installation with nobody at work yet; batches may take ten seconds."""
    installation = Installation(tmp_path, redis_server, batch_time_limit_s="10")
    yield installation
    installation.close()


@pytest.mark.parametrize("fate", ["lose-device", "hang"])
def test_a_worker_whose_device_is_lost_or_hangs_goes_on_in_a_fresh_process(installation, tmp_path, fate):
    """An illegal access in the middle of a job: the child leaves, another loads and takes the batch again.

    A forward pass that never comes back is ended by the time limit, with the same result.
    """
    names = installation.draw(60)
    worker = installation.worker(
        "w", "--include", "tests.support.fault_injection", FAULTS=str(tmp_path)
    ).wait_until_ready()
    before = worker.child()
    (tmp_path / fate).touch()
    ledger = installation.index("--batch", "20")
    assert (ledger["submitted"], ledger["embedded"], ledger["failed"]) == (60, 60, 0)
    assert installation.stored() == set(names)
    assert not (tmp_path / fate).exists()
    said = worker.log_text()
    if fate == "lose-device":
        assert "the GPU's context is broken: CUDA error: an illegal memory access" in said
        assert "a fresh one takes over" in said
    ends = time.monotonic() + 30
    while worker.child() == before and time.monotonic() < ends:
        time.sleep(0.2)
    assert worker.child() != before
    assert worker.process.poll() is None, "the parent lives on"


def test_what_held_a_batch_up_is_said_where_people_look(installation):
    """In the worker's log, in `status`, and as the last words of `index`."""
    installation.draw(100)
    worker = installation.worker("w").wait_until_ready()
    done = installation.run("index")
    assert done.returncode == 0
    heard = installation.producer.registry.find("w@tests")
    sentence = heard.get("bottleneck")
    assert "bound" in sentence
    assert "% of the time" in sentence
    assert sentence in done.stderr
    assert sentence in installation.run("status").stderr
    assert "s on the device, waited" in worker.log_text()
    assert "-bound" in worker.log_text() or "bound by no one thing" in worker.log_text()
