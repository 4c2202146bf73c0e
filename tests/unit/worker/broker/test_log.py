"""What Celery's logging becomes: levels, JSON, and no messages that nobody asked for."""

import json
import logging
import os
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from celery.apps import worker as celery_worker
from celery.utils.log import get_multiprocessing_logger

from producer.logs.formats import JsonFormatter
from producer.logs.setup import PACKAGES
from producer.settings import load_settings
from worker.broker import log

TOUCHED = (None, *PACKAGES, *log.NOISY, *log.PER_TASK)


@contextmanager
def celery_loggers(lines=None):
    """The root logger with one handler, as Celery sets it up, which adds to `lines`; all is as before afterwards."""
    loggers = [logging.getLogger(name) for name in TOUCHED]
    pool, root = get_multiprocessing_logger(), loggers[0]
    before = [logger.level for logger in loggers], root.handlers, pool.handlers
    lines = [] if lines is None else lines
    stream = SimpleNamespace(write=lambda text: lines.append(text.strip()), flush=lambda: None)
    root.handlers, pool.handlers = [logging.StreamHandler(stream)], [logging.StreamHandler()]
    root.setLevel(logging.INFO)
    try:
        yield root
    finally:
        levels, root.handlers, pool.handlers = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        logging.captureWarnings(False)


def test_libraries_are_silent_unless_something_is_wrong():
    """At `--loglevel INFO`, open_clip uses the root logger, and Celery has two lines per task. No warning is lost."""
    lines, names = [], (*log.NOISY, *log.PER_TASK, "root")
    with celery_loggers(lines) as root:
        log.set_up(load_settings(), root, logging.INFO)
        for name in names:
            logger = root if name == "root" else logging.getLogger(name)
            logger.info("noise")
            logger.warning("of %s", name)
        logging.getLogger("celery.worker").info("Celery's own")
    assert lines == [*(f"of {name}" for name in names), "Celery's own"]


def test_what_only_authors_of_libraries_can_mend_is_left_out():
    """torch and open_clip warn of their next version. What a user may have to act on is shown."""
    with celery_loggers() as root, warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        log.set_up(load_settings(), root, logging.WARNING)
        warnings.warn("will change", FutureWarning, stacklevel=1)
        warnings.warn("QuickGELU mismatch", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["QuickGELU mismatch"]


def test_at_debug_celery_speaks_of_tasks():
    """Who asks for everything of Celery gets it."""
    lines = []
    with celery_loggers(lines) as root:
        log.set_up(load_settings(), root, logging.DEBUG)
        logging.getLogger(log.PER_TASK[0]).info("received")
    assert lines == ["received"]


def test_all_handlers_write_json():
    """That of Celery's pool as well."""
    lines = []
    with celery_loggers(lines) as root:
        log.set_up(load_settings(log="json"), root, logging.WARNING)
        logging.getLogger("worker.x").info("ready", extra={"job": "j"})
        assert all(isinstance(each.formatter, JsonFormatter) for each in get_multiprocessing_logger().handlers)
    assert [json.loads(line)["job"] for line in lines] == ["j"]


@pytest.mark.parametrize(
    ("is_terminal", "form", "quiet"), [(True, "text", False), (False, "text", True), (True, "json", True)]
)
def test_the_banner_is_for_terminals(monkeypatch, is_terminal, form, quiet):
    """Nor is it in a log that programs read."""
    monkeypatch.setattr(celery_worker, "safe_say", None)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: is_terminal))
    program = SimpleNamespace(quiet=False)
    with celery_loggers():
        log.begin(load_settings(log=form), program)
    assert program.quiet is quiet


def test_what_celery_says_on_a_signal_is_json(monkeypatch):
    """It is written past the handlers, whose locks a signal handler must not wait for."""
    monkeypatch.setattr(celery_worker, "safe_say", celery_worker.safe_say)
    written = []
    monkeypatch.setattr(os, "write", lambda number, data: written.append((number, json.loads(data))))
    with celery_loggers():
        log.begin(load_settings(log="json"), SimpleNamespace())
        celery_worker.safe_say("worker: Warm shutdown (MainProcess)", None)
    ((number, entry),) = written
    assert (number, entry["level"], entry["message"]) == (2, "INFO", "worker: Warm shutdown (MainProcess)")
