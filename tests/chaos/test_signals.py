"""Asked to leave, politely and less so, in both pools: nothing is lost, and the end comes in bounded time."""

import os
import signal
import time

import pytest

from tests.support.scenario_table import scenario

SOLO = {"CELERY_CUSTOM_WORKER_POOL": "worker.celery:SoloPool"}  # what Windows gets, on Linux
POOLS = {"prefork": ((), {}), "solo": (("--pool", "custom"), SOLO)}
SIGNALS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT] * 2,
    "SIGINT four times": [signal.SIGINT] * 4,
    "SIGQUIT": [signal.SIGQUIT],
    "SIGTERM, then SIGKILL 1 s later": [signal.SIGTERM, signal.SIGKILL],
}
BETWEEN_S = 1.0
BOUND_S = 30.0


@pytest.mark.chaos
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("what", SIGNALS)
@scenario(
    "{what} in the middle of a batch, {pool} pool",
    "the batch is finished or given back; the worker leaves in bounded time; the next one does the rest",
)
def test_asked_to_leave(new_installation, measured, pool, what):
    """Signals go to the whole group, as a terminal's Ctrl-C and a container's stop do."""
    installation = new_installation(pause_s=0.3)
    names = installation.draw(100)
    arguments, environment = POOLS[pool]
    worker = installation.worker("w", *arguments, **environment).wait_until_ready()
    running = installation.index_in_background(batch=25)
    installation.wait_for_some(running.job, 8)
    asked = time.monotonic()
    for number, one in enumerate(SIGNALS[what]):
        if number:
            time.sleep(BETWEEN_S)
        if worker.process.poll() is None:
            _send(worker, one, whole_group=one in (signal.SIGINT, signal.SIGKILL))
    status = worker.process.wait(BOUND_S)
    left = time.monotonic() - asked
    assert not running.job.progress().at_rest, "everything was done before the worker left"
    worker.kill()
    installation.worker("w", *arguments, **environment).wait_until_ready()
    ready = time.monotonic()
    recovered = installation.wait_for_pass(after=ready)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 100, f"left after {left:.1f} s with status {status}")


def _send(worker, one, *, whole_group):
    (os.killpg if whole_group else os.kill)(worker.process.pid, one)
