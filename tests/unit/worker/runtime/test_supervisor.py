"""Supervisor: how children end, and when a worker gives up."""

from types import SimpleNamespace

import pytest
from celery.exceptions import WorkerLostError

from producer.queue.workers import LOADING, READY, Announcement
from producer.settings import Settings
from worker.runtime.supervisor import Supervisor, is_crash

MESSAGE = {"version": 2, "job": "job", "batch": "job.1"}


@pytest.fixture
def supervisor(monkeypatch):
    """Of a worker with a child, without Redis."""
    given_up = []
    made = Supervisor(Settings(), SimpleNamespace(pool=None), "owner", give_up=lambda: given_up.append(1), runner=None)
    made.given_up = given_up
    monkeypatch.setattr(made, "_claims", SimpleNamespace(release_dead=lambda *arguments, **more: True))
    return made


def ended(text: str) -> WorkerLostError:
    """As billiard reports it."""
    return WorkerLostError(f"Worker exited prematurely: {text} Job: 3.")


def test_a_worker_ends_after_the_second_child_with_wrong_vectors(supervisor, caplog):
    """The first is replaced; other deaths do not count."""
    supervisor.release_dead(MESSAGE, ended("exitcode 79"))
    for other in ("exitcode 70", "exitcode 1", "signal 9 (SIGKILL)"):
        supervisor.release_dead(MESSAGE, ended(other))
    assert supervisor.given_up == []
    supervisor.release_dead(MESSAGE, ended("exitcode 79"))
    assert supervisor.given_up == [1]
    assert "wrong vectors 2 times: this worker ends" in caplog.text


@pytest.mark.parametrize(
    ("state", "fields", "is_dead"),
    [
        (READY, {"pid": "7"}, True),
        (READY, {"pid": "8"}, False),
        (LOADING, {"pid": "7"}, False),  # it says so itself, or its successor will
        (READY, {"pid": "7", "unloaded_since": "1e9"}, False),  # there is no child, on purpose
    ],
)
def test_an_entry_of_a_dead_child_is_known_by_its_process(supervisor, state, fields, is_dead):
    """It would say READY for another 15 s."""
    supervisor._child = SimpleNamespace(pids=lambda: [8])
    assert supervisor._is_of_dead_child(Announcement("w@h/1/a", state, fields)) is is_dead


@pytest.mark.parametrize(
    ("reason", "crashed"),
    [
        (ended("signal 11 (SIGSEGV)"), True),
        (ended("exitcode 1"), True),
        (ended("signal 9 (SIGKILL)"), False),
        (ended("exitcode 79"), False),
        (None, False),
    ],
)
def test_a_crash_is_an_end_by_the_childs_own_work(reason, crashed):
    """Not a kill from outside, and not a device that computes wrong vectors."""
    assert is_crash(reason) is crashed
