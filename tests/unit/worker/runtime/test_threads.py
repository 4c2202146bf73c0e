"""A worker whose heartbeat or supervisor has failed ends with a reason; a crash is told from a kill."""

import os
import signal
from types import SimpleNamespace

import pytest
from billiard.common import human_status
from billiard.exceptions import WorkerLostError

from producer.queue.jobs import JobStore
from producer.settings import load_settings
from worker.runtime import heartbeat, supervisor

NOWHERE = "redis://127.0.0.1:1/0"


def test_a_heartbeat_that_fails_ends_its_process(monkeypatch, caplog):
    """Without renewals the batch would be taken away, and the worker would go on as if it still had it."""
    statuses = []
    monkeypatch.setattr(heartbeat, "exit_now", statuses.append)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.01)
    job_store = JobStore(NOWHERE)
    thread = heartbeat.Heartbeat(load_settings(redis_url=NOWHERE), "w@h/1/aa", job_store)
    monkeypatch.setattr(thread, "_renew_gpu_lease", lambda claim: 1 / 0)
    thread.start()
    thread.join(5)
    assert statuses == [70]
    assert "the heartbeat failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    thread.stop()
    job_store.close()


def test_a_supervisor_that_fails_ends_the_worker(monkeypatch, caplog):
    """It would neither redeliver, nor notice a failed start, nor enforce a shutdown."""
    statuses, signals = [], []
    monkeypatch.setattr(supervisor, "exit_now", statuses.append)
    monkeypatch.setattr(supervisor, "create_sender", lambda settings: 1 / 0)
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    pool = SimpleNamespace(_pool=SimpleNamespace(_state=0, _pool=[SimpleNamespace(pid=7)]))
    thread = supervisor.Supervisor(
        load_settings(redis_url=NOWHERE), SimpleNamespace(pool=pool), "w@h/1/aa", give_up=lambda: None, runner=None
    )
    thread.start()
    thread.join(5)
    assert (statuses, signals) == ([70], [(7, signal.SIGTERM)])
    assert "the supervisor failed" in caplog.text


@pytest.mark.parametrize(
    ("status", "crashed"),
    [
        (-signal.SIGSEGV, True),
        (-signal.SIGABRT, True),
        (-signal.SIGBUS, True),
        (1, True),  # an unhandled error, or faulthandler's time-out
        (-signal.SIGKILL, False),
        (-signal.SIGTERM, False),
        (15, False),  # SIGTERM, as billiard's handler ends a process
        (70, False),  # the device is lost
        (75, False),
        (0, False),
    ],
)
def test_a_crash_is_told_from_a_kill(status, crashed):
    """By the text of billiard's error, which is all that Celery passes on."""
    error = WorkerLostError(f"Worker exited prematurely: {human_status(status)} Job: 11.")
    assert supervisor.is_crash(error) is crashed
    assert not supervisor.is_crash(None)
