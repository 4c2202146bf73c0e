"""The signal handlers of worker/tasks.py that need no worker."""

import logging

import pytest
from celery import signals

import worker.tasks  # noqa: F401 (connects the handlers)


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
    signals.after_setup_logger.send(sender=None, logger=None)
    assert logging.getLogger(module).isEnabledFor(logging.INFO)
