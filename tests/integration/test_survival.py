"""A real worker survives a lost or hanging device, and reports what limits its speed."""

import re
import time

import pytest

from tests.support.installation import Installation


@pytest.fixture
def installation(redis_url, redis_server, tmp_path):
    """An installation without a worker; a batch may take ten seconds."""
    installation = Installation(tmp_path, redis_server, batch_time_limit_s="10")
    yield installation
    installation.close()


@pytest.mark.parametrize("fault", ["lose-device", pytest.param("hang", marks=pytest.mark.chaos)])
def test_a_fresh_process_replaces_one_whose_device_is_lost_or_hangs(installation, tmp_path, fault):
    """After an illegal access in the middle of a job the child exits, and another takes the batch.

    A forward pass that never returns is ended by the time limit, with the same result.
    """
    names = installation.draw(60)
    worker = installation.worker(
        "w", "--include", "tests.support.fault_injection", FAULTS=str(tmp_path)
    ).wait_until_ready()
    before = worker.child()
    (tmp_path / fault).touch()
    counts = installation.index("--batch", "20")
    assert (counts["submitted"], counts["embedded"], counts["failed"]) == (60, 60, 0)
    assert installation.stored() == set(names)
    assert not (tmp_path / fault).exists()
    log = worker.log_text()
    if fault == "lose-device":
        assert "the GPU's context is broken: CUDA error: an illegal memory access" in log
        assert "a fresh process takes over" in log
    ends = time.monotonic() + 30
    while worker.child() == before and time.monotonic() < ends:
        time.sleep(0.2)
    assert worker.child() != before
    assert worker.process.poll() is None, "the parent keeps running"


def test_the_bottleneck_is_reported(installation):
    """In the worker's log, in `status`, and at the end of `index`."""
    installation.draw(100)
    worker = installation.worker("w").wait_until_ready()
    result = installation.run("index")
    assert result.returncode == 0
    sentence = installation.producer.registry.find("w@tests").get("bottleneck")
    form = r"((device|store|decode)-bound|no single bottleneck): .*% of the time"  # a busy machine decides which
    assert re.match(form, sentence)
    assert sentence in result.stderr
    assert sentence in installation.run("status").stdout
    assert "s on the device, waited" in worker.log_text()
    assert re.search(form, worker.log_text())
