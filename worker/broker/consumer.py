"""Celery's consumer, changed: nobody controls it through Redis, it takes messages only while a process can run them,
and it pauses between reconnects.

The undocumented parts of Celery that are used are listed in __init__.py.
"""

from __future__ import annotations

import time
import warnings
from typing import Any, Final

from celery import bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import consumer as celery_consumer
from celery.worker import pidbox
from celery.worker.consumer.tasks import Tasks

INSPECTIONS: Final = frozenset(("ping", "active", "reserved", "scheduled", "stats"))  # they change nothing
STEPS: Final = {"celery.worker.consumer.control:Control": "worker.broker.consumer:Control"}  # Celery's → ours
PAUSE_S: Final = 2.0  # a full Redis refuses at once; Celery alone would retry, and log, six times a second


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer without gossip and mingle, and with a pause after each failed connection.

    Both read what any client of this Redis publishes: mingle takes over revoked task ids, and one malformed event
    ends a worker that gossips. Heartbeat events are published with the others alone; workers.py is our registry.
    """

    class Blueprint(celery_consumer.Consumer.Blueprint):  # type: ignore[misc]
        """Celery's steps, with our Control in place of its own."""

        default_steps: Final = [STEPS.get(step, step) for step in celery_consumer.Consumer.Blueprint.default_steps]

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """`worker_options`: those of the command line."""
        off = {"without_gossip": True, "without_mingle": True, "without_heartbeat": not kwargs.get("task_events")}
        super().__init__(*args, worker_options={**(worker_options or {}), **off}, **kwargs)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Pause where Redis is reachable but refuses commands; Celery pauses only where it is unreachable."""
        super().on_connection_error_before_connected(exc)
        time.sleep(PAUSE_S)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Suppress Celery's advice to cancel the running batch: the ledger resolves what runs twice."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)


class Control(celery_consumer.Control):  # type: ignore[misc]
    """Celery's remote control, where `settings.remote_control` switches it on; it answers INSPECTIONS only."""

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.box = Mailbox(consumer)
        self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown


class Mailbox(pidbox.Pidbox):  # type: ignore[misc]
    """Celery's mailbox, which passes on an inspection without its arguments, and drops every other message."""

    def on_message(self, body: Any, message: Any) -> None:
        """Build the request anew from what was checked; a pattern for node names may take hours to match."""
        request = _inspection(body)
        if request is not None:
            message.headers = {}  # Celery sets its clock by them
            super().on_message(request, message)


def _inspection(body: Any) -> dict[str, Any] | None:
    """The part of a remote control message that is answered; None: nothing of it."""
    if not isinstance(body, dict) or body.get("pattern"):
        return None
    method, nodes, reply_to = body.get("method"), body.get("destination"), body.get("reply_to")
    if not isinstance(method, str) or method not in INSPECTIONS or not isinstance(nodes, list | None):
        return None
    address = [reply_to.get(name) for name in ("exchange", "routing_key")] if isinstance(reply_to, dict) else []
    if not address or not all(isinstance(text, str) for text in [*address, body.get("ticket")]):
        return None
    back = dict(zip(("exchange", "routing_key"), address, strict=True))
    return {"method": method, "destination": nodes, "reply_to": back, "ticket": body["ticket"]}


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
