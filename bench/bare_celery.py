"""Celery by itself, with our settings and without our door, ledger and pipeline: what it costs to do nothing.

bench/delivery.py starts it as ``celery -A bench.bare_celery worker``.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from producer.queue.messages import EMBED_TASK
from producer.settings import load_settings
from worker.celery import create_app


def bare_app() -> Celery:
    """A worker's application with one task that takes a batch and does nothing."""
    app = create_app(load_settings())
    app.conf.update(include=[], worker_consumer="celery.worker.consumer:Consumer")

    @app.task(name=EMBED_TASK)  # type: ignore[untyped-decorator]
    def nothing(message: dict[str, Any]) -> None:
        """Be called."""

    return app


app = bare_app()
