"""Celery's consumer in a worker of ours: it takes messages only for a process that can work, and waits calmly."""

from __future__ import annotations

import time
import warnings
from types import MethodType
from typing import Any, Final

from celery import bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import consumer as celery_consumer
from celery.worker.consumer.tasks import Tasks

PAUSE_S: Final = 2.0  # a Redis that is full refuses at once; Celery alone would ask, and log, six times a second


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]
    """Celery's, with a pause after a connection that could not be made."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Redis was reached and refuses; Celery's own pauses are for a Redis that cannot be reached."""
        super().on_connection_error_before_connected(exc)
        time.sleep(PAUSE_S)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Without Celery's recommendation to end the running batch: the ledger sorts out what runs twice."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)


class Gate(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets kombu ask for messages only while a process is up that can work on them; anew with each connection.

    Celery's parent process would take its first message while its child still loads the model, or downloads
    it: for so long that message would be in nobody's hands, although another worker may stand idle.
    """

    requires: Final = (Tasks,)

    def start(self, consumer: Any) -> None:
        """Ask first, as Celery's own worker_disable_prefetch does."""
        qos = consumer.task_consumer.channel.qos
        may_consume = qos.can_consume

        def can_consume(_: Any) -> bool:
            return is_open(consumer.pool) and may_consume()

        qos.can_consume = MethodType(can_consume, qos)


def is_open(pool: Any) -> bool:
    """True when a task that was handed to the pool now would be worked on now.

    Celery notes a child's inbox when the child says that it is up, which it does when its initializer, and
    with it the loading of the model, is through. A solo pool has no children: it loads before it consumes.
    """
    inboxes = getattr(getattr(pool, "_pool", None), "_fileno_to_inq", None)
    return inboxes is None or bool(inboxes)
