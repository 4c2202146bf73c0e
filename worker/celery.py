"""The Celery application. ``celery -A worker worker`` finds it here as ``app``.

Every setting that differs from Celery's default does so for a reason that was tried: docs/delivery.md.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from celery import Celery, concurrency
from celery.concurrency.solo import TaskPool
from kombu import Exchange, Queue
from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES

from worker.errors import ConfigurationError
from worker.messages import BULK, EMBED_TASK, INTERACTIVE, LANES, QUERY_TASK, QUEUES, EmbedBatch
from worker.queries import encode_query
from worker.redis_client import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, answers, broker
from worker.settings import Settings, load_settings

EX_CONFIG: Final = 78  # sysexits.h: something was found in an unconfigured or misconfigured state
LOAD_LIMIT_S: Final = 3600  # a first start downloads the weights; a large model over a slow line takes its time
CONSUMER_TIMEOUT_S: Final = 10  # above kombu's blocking read of one second, below a human's patience
SOLO: Final = "worker.celery:SoloPool"
DOOR: Final = "posters-redis"  # kombu's name for the transport of broker.py, for workers alone


class SoloPool(TaskPool):
    """Celery's solo pool, except that a second Ctrl-C does not acknowledge the running batch as failed."""

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Leave the batch alone: unacknowledged, it is delivered again."""


def create_app(settings: Settings, *, consumer: bool = False) -> Celery:
    """Build the application from settings.

    Args:
        settings: where Redis is, and the limits of a batch.
        consumer: True in a worker, which may wait for Redis; a caller must hear within 5 s.
    """
    url, ssl = broker(settings.redis_url, DOOR if consumer else "redis")
    app = Celery("worker", broker=url, include=["worker.tasks"], set_as_current=consumer)
    transport = {
        "visibility_timeout": settings.visibility_timeout_s,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "queue_order_strategy": "priority",  # lanes in the order of LANES, not round robin
        "priority_steps": [0],
        "socket_timeout": CONSUMER_TIMEOUT_S if consumer else ANSWER_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
    }
    if consumer:
        TRANSPORT_ALIASES[DOOR] = "worker.broker:Transport"
        concurrency.ALIASES["solo"] = SOLO  # `--pool solo` means ours
        from worker.consumer import Gate

        app.steps["consumer"].add(Gate)
    else:
        transport |= {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,  # results live in the ledger; a backend would block publishing for 19 s
        # each with a key of its own: sharing one, every message would land on both
        task_queues=[Queue(QUEUES[lane], Exchange("posters"), routing_key=QUEUES[lane]) for lane in LANES],
        task_default_queue=QUEUES[BULK],
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # has no cap: a poisonous batch would run for ever
        task_retry_on_worker_lost=True,
        task_time_limit=settings.batch_time_limit_s,
        worker_concurrency=1,  # one card, one model
        worker_prefetch_multiplier=1,
        worker_pool="solo" if sys.platform == "win32" else "prefork",
        worker_consumer="worker.consumer:Consumer",
        worker_proc_alive_timeout=LOAD_LIMIT_S,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the ledger sorts out what runs twice
        worker_send_task_events=False,
        broker_use_ssl=ssl,
        broker_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a Redis that is full refuses commands; the worker must outlive that
    )
    if sys.platform != "win32":
        app.conf.worker_pool_start_method = "spawn"  # a forked child cannot use CUDA
    return app


def send(app: Celery, batch: EmbedBatch) -> None:
    """Put a batch on its lane; its id is the task's id.

    Raises:
        RedisUnreachable: within 5 s, when Redis is away, hangs, or is full.
    """
    shown = f"<{len(batch.posters)} posters>"  # paths do not belong into Celery's log
    _send(app, EMBED_TASK, batch.encode(), batch.batch, batch.lane, shown)


def send_query(app: Celery, token: str) -> None:
    """Put a query on the interactive lane; raises as `send`."""
    _send(app, QUERY_TASK, encode_query(token), token, INTERACTIVE, "<an image>")


def _send(app: Celery, task: str, message: dict[str, Any], task_id: str, lane: str, shown: str) -> None:
    with answers(app.conf.broker_url):
        try:
            app.send_task(
                task,
                args=[message],
                task_id=task_id,
                queue=QUEUES[lane],
                retry=False,
                ignore_result=True,
                argsrepr=shown,
            )
        except KombuError as error:  # it wraps what redis-py raised while it connected
            raise (error.__cause__ or ConnectionError(str(error))) from None


def __getattr__(name: str) -> Any:
    """Build `app` when Celery asks for it, and not when somebody merely imports this module."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        app = create_app(load_settings(), consumer=True)
    except ConfigurationError as error:
        print(f"configuration: {error}", file=sys.stderr)
        raise SystemExit(EX_CONFIG) from None
    globals()["app"] = app
    return app
