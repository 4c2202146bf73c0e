"""Heartbeat: its watchdog needs no Python thread."""

import subprocess
import sys
import time

import pytest

from tests.support.project import PROJECT

PROGRAM = """
import ctypes, sys, time
from producer.queue.jobs import JobStore
from producer.settings import load_settings
from worker.runtime import heartbeat
heartbeat.STALL_S = 1.5
settings = load_settings(redis_url="redis://127.0.0.1:1/0")
beat = heartbeat.Heartbeat(settings, "w@tests", JobStore(settings.redis_url))
beat.start()
with beat.watch("a batch"):
    {work}
{after}
print("still there")
"""
HOLD_LOCK = "ctypes.PyDLL(None).sleep({})"  # PyDLL, unlike CDLL, keeps the interpreter's lock during the call


def run(work: str, after: str = "pass") -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(work=work, after=after)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="libc has no `sleep`")
@pytest.mark.parametrize("work", [HOLD_LOCK.format(30), "time.sleep(2.5); " + HOLD_LOCK.format(30)])
def test_a_process_in_which_no_thread_can_run_ends(work):
    """Whether it stalls at once or later; what it was doing is on stderr."""
    began = time.monotonic()
    done = run(work)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert "still there" not in done.stdout
    assert "Timeout" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="libc has no `sleep`")
def test_work_that_only_takes_long_goes_on():
    """Other threads run meanwhile; and after the work, holding the lock (as loading does) ends nothing."""
    done = run("time.sleep(3)", after=f"time.sleep(0.6); {HOLD_LOCK.format(3)}; beat.stop()")
    assert (done.returncode, done.stdout) == (0, "still there\n"), done.stderr
