"""Signals that stop a worker, in both pools: nothing is lost, and the worker exits in bounded time."""

import os
import signal
import time

import pytest

from tests.support.scenario_table import scenario

POOLS = ("prefork", "solo")  # the second is the one that Windows uses
SIGNALS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT] * 2,
    "SIGINT four times": [signal.SIGINT] * 4,
    "SIGQUIT": [signal.SIGQUIT],
    "SIGTERM, then SIGKILL 1 s later": [signal.SIGTERM, signal.SIGKILL],
}
BETWEEN_SIGNALS_S = 1.0
EXIT_S = 30.0


@pytest.mark.chaos
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("what", SIGNALS)
@scenario(
    "{what} in the middle of a batch, {pool} pool",
    "the batch is finished or released; the worker exits in bounded time; the next one does the rest",
)
def test_a_worker_that_is_stopped_by_signals(new_installation, measured, pool, what):
    """Ctrl-C and SIGKILL go to the whole process group, as from a terminal or a container runtime."""
    installation = new_installation(pause_s=0.3)
    names = installation.draw(100)
    worker = installation.worker("w", "--pool", pool).wait_until_ready()
    running = installation.index_in_background(batch=25)
    installation.wait_for_some(running.job, 8)
    signaled = time.monotonic()
    for index, number in enumerate(SIGNALS[what]):
        if index:
            time.sleep(BETWEEN_SIGNALS_S)
        if worker.process.poll() is None:
            _send(worker, number, whole_group=number in (signal.SIGINT, signal.SIGKILL))
    status = worker.process.wait(EXIT_S)
    left = time.monotonic() - signaled
    assert not running.job.progress().at_rest, "everything was done before the worker exited"
    worker.kill()
    installation.worker("w", "--pool", pool).wait_until_ready()
    ready = time.monotonic()
    recovered = installation.wait_for_pass(after=ready)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 100, f"left after {left:.1f} s with status {status}")


def _send(worker, number, *, whole_group):
    (os.killpg if whole_group else os.kill)(worker.process.pid, number)
