"""Which messages are logged, and in which form; uvicorn's line for a request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from producer.logs.formats import JsonFormatter
from producer.settings import Settings

PACKAGES: Final = ("producer", "worker")
JSON: Final = "json"
TEXT_FORMAT: Final = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"  # as Celery's
ACCESS_LOGGER: Final = "uvicorn.access"
PROBES: Final = ("/healthz", "/readyz")  # asked every few seconds


def set_levels(settings: Settings) -> None:
    """Let the messages of this project through from POSTERS_LOG_LEVEL on, whatever the level of other libraries."""
    for package in PACKAGES:
        logging.getLogger(package).setLevel(settings.log_level)


def is_json() -> bool:
    """Whether this process writes its log as JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


@contextmanager
def log_to_stderr(settings: Settings) -> Iterator[None]:
    """Log to stderr while the block runs: this project's messages, and warnings and errors of libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log == JSON else logging.Formatter(TEXT_FORMAT))
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in PACKAGES}
    root.addHandler(handler)
    set_levels(settings)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class AccessFields(logging.Filter):
    """Gives uvicorn's line for a request its fields; without the query of its path, which may hold what people type."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a supervisor's question that was answered with yes."""
        if not isinstance(record.args, tuple) or len(record.args) != 5:
            return True
        client, method, target, version, status = record.args
        path = str(target).partition("?")[0]
        record.args = (client, method, path, version, status)
        record.client, record.method, record.path, record.status = client, method, path, status
        return path not in PROBES or status != 200
