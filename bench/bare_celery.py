"""A Celery worker with our settings but without validation, ledger and pipeline: the cost of an empty task.

bench/delivery.py starts it as ``celery -A bench.bare_celery worker``.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from producer.queue.messages import EMBED_TASK
from producer.settings import load_settings
from worker.celery import create_app


def bare_app() -> Celery:
    """A worker application with one task that receives a batch and does nothing."""
    app = create_app(load_settings())
    app.conf.update(include=[], worker_consumer="celery.worker.consumer:Consumer")

    @app.task(name=EMBED_TASK)  # type: ignore[untyped-decorator]
    def nothing(message: dict[str, Any]) -> None:
        """Do nothing."""

    return app


app = bare_app()
