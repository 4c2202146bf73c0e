"""Celery's events, by which Flower shows tasks, where `settings.events` switches them on."""

from __future__ import annotations

import logging
from typing import Any

from celery.events.dispatcher import EventDispatcher

logger = logging.getLogger(__name__)


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Celery's dispatcher, which drops what cannot be published.

    Celery's own keeps it, without a limit, and tries all of it again with each new event: where the right to publish is
    missing, ever more commands would fail in the process that takes messages.
    """

    _has_failed = False

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        super()._publish(event, producer, routing_key, **options)
        failed = bool(self._outbound_buffer)
        self._outbound_buffer.clear()
        if failed and not self._has_failed:
            logger.warning(
                "events cannot be published, and are dropped: is Redis reachable, and has this user the rights that "
                "docs/delivery.md names?"
            )
        self._has_failed = failed
