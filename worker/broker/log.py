"""Celery's logging: our levels and our JSON, without the messages of libraries that nobody asked for.

worker/tasks.py calls this by signals: Celery sets up its handlers in the parent process, and again in its child.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any, Final

from celery.apps import worker as celery_worker
from celery.utils.log import get_multiprocessing_logger

from producer.logs.formats import JsonFormatter
from producer.logs.setup import JSON, set_levels
from producer.settings import Settings

NOISY: Final = ("urllib3", "httpx", "httpcore", "huggingface_hub", "filelock", "fsspec", "PIL", "timm", "matplotlib")
PER_TASK: Final = ("celery.worker.strategy", "celery.app.trace")  # two lines beside ours for each batch
STDERR: Final = 2


def begin(settings: Settings, program: Any) -> None:
    """Before Celery has its handlers: no banner but on a terminal, and whatever is logged until then is JSON as well.

    `program` is Celery's worker.
    """
    is_json = settings.log == JSON
    if is_json or not sys.stdout.isatty():
        program.quiet = True
    if is_json:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.getLogger().addHandler(handler)  # Celery replaces it
        logging.captureWarnings(True)
        celery_worker.safe_say = _say_as_json


def set_up(settings: Settings, root: logging.Logger, level: int) -> None:
    """After Celery has set up its handlers on the root logger, at the level of its `--loglevel`."""
    set_levels(settings)
    for name in NOISY if level <= logging.DEBUG else (*NOISY, *PER_TASK):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.addFilter(_is_wanted)
    # Of these, the authors of a library remind those who program with it; users can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning)
    for logger in (root, get_multiprocessing_logger()):
        set_format(settings, logger)


def set_format(settings: Settings, logger: logging.Logger) -> None:
    """Make a logger's lines JSON where the settings say so."""
    for handler in logger.handlers if settings.log == JSON else ():
        handler.setFormatter(JsonFormatter())


def leave_children_alone() -> None:
    """Have billiard log nothing at the start of a child, before Celery sets up logging there: it would be text."""
    os.environ.pop("_MP_FORK_LOGLEVEL_", None)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Not what open_clip says at INFO, for which it uses the root logger: a dozen lines for each model."""
    return record.name != "root" or record.levelno >= logging.WARNING


def _say_as_json(text: str, stream: object = None) -> None:
    """Celery's words on a signal. Its handler must not wait for a lock, so no handler of logging is used."""
    del stream
    record = logging.makeLogRecord({"name": celery_worker.__name__, "levelname": "INFO", "msg": text.strip()})
    os.write(STDERR, f"{JsonFormatter().format(record)}\n".encode())
