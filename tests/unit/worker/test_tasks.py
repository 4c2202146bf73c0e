"""What worker/tasks.py does without a worker: logging, and the exit of a process whose device is lost."""

import logging
import os
from types import SimpleNamespace

import pytest
from celery import signals
from celery.exceptions import Reject

from producer.errors import DeviceLost, WrongVectors
from worker import tasks


@pytest.fixture
def at_warning():
    """Logging as Celery sets it up at --loglevel WARNING, its default."""
    loggers = [logging.getLogger(name) for name in (None, "worker", "producer")]
    before = [logger.level for logger in loggers]
    for logger, level in zip(loggers, (logging.WARNING, logging.NOTSET, logging.NOTSET), strict=True):
        logger.setLevel(level)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("module", ["worker.runtime.startup", "producer.queue.redelivery"])
def test_info_messages_of_both_packages_are_shown(at_warning, module):
    """`worker` stands on modules of `producer`, whose INFO messages belong to the worker's log as well."""
    assert not logging.getLogger(module).isEnabledFor(logging.INFO)
    signals.after_setup_logger.send(sender=None, logger=logging.Logger("root"), loglevel=logging.WARNING)
    assert logging.getLogger(module).isEnabledFor(logging.INFO)


@pytest.fixture
def run(monkeypatch):
    """Run the task of a batch with a runner that does `action`."""

    def run(action):
        monkeypatch.setattr(tasks, "_runners", SimpleNamespace(batches=SimpleNamespace(run=action)))
        tasks.embed.run({"version": 2, "job": "j", "batch": "j.1", "lane": "bulk"})

    return run


@pytest.mark.parametrize(("error", "status"), [(DeviceLost("its context is broken"), 70), (WrongVectors("wrong"), 79)])
def test_a_lost_device_ends_the_process(run, monkeypatch, error, status):
    """At once: a normal exit would wait for a device that no longer answers. The parent counts those with status 79."""
    statuses = []

    def exit_process(status):
        statuses.append(status)
        raise SystemExit(status)

    def lose_device(token):
        raise error

    monkeypatch.setattr(os, "_exit", exit_process)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    with pytest.raises(SystemExit):
        run(lose_device)
    assert statuses == [status]


def test_a_message_is_requeued_when_the_worker_stops(run):
    """False from a runner means that the batch was not done."""
    with pytest.raises(Reject) as rejection:
        run(lambda token: False)
    assert rejection.value.requeue
    run(lambda token: True)
    run(lambda token: None)
