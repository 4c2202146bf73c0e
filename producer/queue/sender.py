"""The Celery application that sends: lanes, serializer, short timeouts, and `send`.

The worker's application (worker/celery.py) is built on the same `message_settings`.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.loaders.base import BaseLoader
from kombu import Exchange, Queue
from kombu.exceptions import KombuError

from producer.queue.messages import BULK, EMBED_TASK, LANES, QUEUES, AnyBatch, BatchMessage
from producer.redis_client import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    KEEPALIVE,
    PING_AFTER_S,
    REDIS_ERRORS,
    broker,
    unreachable,
)
from producer.settings import Settings


class _Loader(BaseLoader):  # type: ignore[misc]
    """Celery's loader without CELERY_CONFIG_MODULE."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        """No settings beside those of the application."""
        return {}


class Application(Celery):  # type: ignore[misc]
    """A Celery application with the settings that it is given, whatever Celery the host program configures.

    Celery would prefer CELERY_BROKER_URL, CELERY_BROKER_READ_URL, CELERY_BROKER_WRITE_URL and CELERY_RESULT_BACKEND to
    the application's own settings, and CELERY_CONFIG_MODULE, CELERY_LOADER and Django's settings for all else.
    """

    backend_cls = "disabled"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes Celery's arguments."""
        super().__init__(*arguments, **{"loader": _Loader, "fixups": ()} | options)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """A connection to the application's own broker."""
        return super().connection_for_read(self.conf["broker_url"], **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """A connection to the application's own broker."""
        return super().connection_for_write(self.conf["broker_url"], **options)


def message_settings() -> dict[str, Any]:
    """Celery's settings that sender and worker must share: how a message is written, and on which list."""
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,  # results live in the ledger; a backend would block publishing for 19 s
        # each with a key of its own: sharing one, every message would land on both
        "task_queues": [Queue(QUEUES[lane], Exchange("posters"), routing_key=QUEUES[lane]) for lane in LANES],
        "task_default_queue": QUEUES[BULK],
        "task_create_missing_queues": False,
    }


def transport_options(settings: Settings, socket_timeout_s: float) -> dict[str, Any]:
    """kombu's options for Redis; `socket_timeout_s` is how long a command may go unanswered."""
    return {
        "visibility_timeout": settings.visibility_timeout_s,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "queue_order_strategy": "priority",  # lanes in the order of LANES, not round robin
        "priority_steps": [0],
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": PING_AFTER_S,
        **KEEPALIVE,
    }


def create_sender(settings: Settings) -> Celery:
    """The application to send with. It is not Celery's current one, and fails within seconds without Redis."""
    url, ssl = broker(settings.redis_url, "redis")
    app = Application("posters", broker=url, set_as_current=False)
    fail_soon = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    app.conf.update(
        **message_settings(),
        broker_use_ssl=ssl,
        broker_transport_options=transport_options(settings, ANSWER_TIMEOUT_S) | fail_soon,
    )
    return app


def send(app: Celery, batch: AnyBatch) -> None:
    """Put a batch on its lane; its id is the task's id.

    Raises:
        RedisUnreachable: within 5 s, when Redis is unreachable, hangs, or is full.
    """
    message = BatchMessage(batch.job, batch.batch, batch.lane).encode()
    about = {"argsrepr": "", "kwargsrepr": ""}  # for Celery's log, twice in each message; the id says enough
    options = {"task_id": batch.batch, "queue": QUEUES[batch.lane], "retry": False, "ignore_result": True, **about}
    try:
        app.send_task(EMBED_TASK, args=[message], **options)
    except (KombuError, *REDIS_ERRORS) as error:
        cause = error.__cause__ if isinstance(error, KombuError) else None  # what redis-py raised while it connected
        raise unreachable(app.conf["broker_url"], cause or error) from error
