"""Celery's consumer, extended: it takes messages only while a process can run them, and pauses between reconnects.

Read in celery 5.7.0. Private parts that are used: `_fileno_to_inq` of celery.concurrency.asynpool.AsynPool, behind the
pool's `_pool`; and `can_consume` of the channel's QoS is replaced, as celery/worker/consumer/tasks.py does.
"""

from __future__ import annotations

import time
import warnings
from typing import Any, Final

from celery import bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import consumer as celery_consumer
from celery.worker.consumer.tasks import Tasks

PAUSE_S: Final = 2.0  # a full Redis refuses at once; Celery alone would retry, and log, six times a second


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer with a pause after each failed connection."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Pause where Redis is reachable but refuses commands; Celery pauses only where it is unreachable."""
        super().on_connection_error_before_connected(exc)
        time.sleep(PAUSE_S)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Suppress Celery's advice to cancel the running batch: the ledger resolves what runs twice."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)


class Gate(bootsteps.StartStopStep):  # type: ignore[misc]
    """Boot step that lets kombu fetch messages only while a process can run them; applied on each connection.

    Celery's parent process would fetch its first message while its child still downloads or loads the model.
    Until then that message would be unavailable to other workers, even idle ones.
    """

    requires: Final = (Tasks,)

    def start(self, consumer: Any) -> None:
        """Make the channel's QoS check `is_open` first, as Celery does for worker_disable_prefetch."""
        qos = consumer.task_consumer.channel.qos
        can_consume_by_count = qos.can_consume

        qos.can_consume = lambda: is_open(consumer.pool) and can_consume_by_count()


def is_open(pool: Any) -> bool:
    """True when a task that is handed to the pool now would start now.

    Celery registers a child's inbox when the child reports that it is up, which is after its initializer has
    loaded the model. A solo pool has no children: it loads the model before it consumes.
    """
    inboxes = getattr(getattr(pool, "_pool", None), "_fileno_to_inq", None)
    return inboxes is None or bool(inboxes)
