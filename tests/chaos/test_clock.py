"""The wall clock jumps for all processes; afterwards the invariant of chaos_installation.py holds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.project import PROJECT
from tests.support.scenario_table import scenario

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
HOUR_S = 3600

# libfaketime 0.9.10 distorts the absolute deadline that Python's sleep passes to the kernel, even for the monotonic
# clock that it must not fake. Waiting on a lock with a timeout is not affected: each process sleeps that way instead.
SLEEP = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""

# What a jump of the clock does to Redis, which stores each expiry as wall clock time. (libfaketime cannot be
# loaded into redis-server itself: jemalloc reads the time before libfaketime is initialized, and both abort.)
JUMP = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, math.max(0, left - tonumber(ARGV[1]))) end
end
"""


@pytest.fixture
def clock(tmp_path):
    """Environment variables that put a process under a fake clock, and a function that sets that clock."""
    if not LIBRARIES:
        pytest.skip("libfaketime is not installed: make chaos installs it (Debian package faketime)")
    file = tmp_path / "faketime"

    def jump(seconds):
        temporary = file.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}\n")
        temporary.replace(file)

    jump(HOUR_S)
    (tmp_path / "sitecustomize.py").write_text(SLEEP)
    variables = {
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{tmp_path}",
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-c", "import time; time.sleep(0.1); print(time.time(), time.monotonic())"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | variables).stdout
    wall, monotonic = map(float, shown.split())
    assert abs(wall - time.time() - HOUR_S) < 60
    assert abs(monotonic - time.monotonic()) < 60
    jump(0)
    return variables, jump


@pytest.mark.chaos
@pytest.mark.parametrize(("hours", "where"), [(2, "forward"), (-2, "back")])
@scenario(
    "the clock of all processes is set two hours {where}, and later corrected",
    "no deadline depends on the wall clock: the job is done, and the worker keeps running",
)
def test_the_clock_jumps(new_installation, clock, measured, hours, where):
    """Redis, worker and producer all see the jump in the middle of a job, and the correction."""
    variables, jump = clock
    installation = new_installation()
    names = installation.draw(200)
    worker = installation.worker("w", **variables).wait_until_ready()
    running = installation.index_in_background(batch=10, **variables)
    installation.wait_for_some(running.job, 30)
    with installation.redis.client as client:
        jump(hours * HOUR_S)
        client.eval(JUMP, 0, hours * HOUR_S * 1000)
        jumped = time.monotonic()
        recovered = installation.wait_for_a_finish(running.job, jumped)
        installation.wait_for_some(running.job, 100)
        assert not running.job.progress().at_rest
        jump(0)
        client.eval(JUMP, 0, -hours * HOUR_S * 1000)
    installation.check(running.finish()["job"], names)
    assert worker.process.poll() is None
    measured(recovered, installation.embedded() - 200)
