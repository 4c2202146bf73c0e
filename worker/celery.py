"""The worker's Celery application, which ``celery -A worker worker`` finds here as ``app``.

Every setting that differs from Celery's default has a reason that was tested: docs/delivery.md. The
undocumented parts that are used are listed in worker/broker/__init__.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click
from celery import concurrency
from celery.concurrency.solo import TaskPool
from kombu.transport import TRANSPORT_ALIASES

from producer.errors import ConfigurationError
from producer.host import let_warnings_warn
from producer.queue.sender import Application, message_settings, transport_options
from producer.redis_client import broker
from producer.settings import Settings, load_settings
from worker.broker.consumer import Gate

EX_CONFIG: Final = 78  # sysexits.h: configuration error
LOAD_LIMIT_S: Final = 3600  # a first start may download a large model over a slow line
CONSUMER_TIMEOUT_S: Final = 10  # above kombu's blocking read of one second
SOLO: Final = "worker.celery:SoloPool"
NODE: Final = "posters@%h"  # Celery's own default is celery@%h, as of every other program that uses it
TRANSPORT_NAME: Final = "posters-redis"  # worker/broker/transport.py as kombu knows it; senders use kombu's own


class SoloPool(TaskPool):
    """Celery's solo pool, except that a second Ctrl-C does not acknowledge the running batch as failed."""

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Do nothing: the batch stays unacknowledged and is delivered again."""


def create_app(settings: Settings) -> Application:
    """The worker's application; unlike a sender's, it may wait for Redis."""
    url, ssl = broker(settings.redis_url, TRANSPORT_NAME)
    app = Application("worker", broker=url, include=["worker.tasks"])
    TRANSPORT_ALIASES[TRANSPORT_NAME] = "worker.broker.transport:Transport"
    concurrency.ALIASES["solo"] = SOLO  # so that `--pool solo` selects it
    app.steps["consumer"].add(Gate)
    app.events.dispatcher_cls = "worker.broker.events:Dispatcher"
    app.conf.update(
        **message_settings(),
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # it has no limit: a batch that crashes its child would run forever
        task_retry_on_worker_lost=True,
        worker_concurrency=1,  # one card, one model
        worker_prefetch_multiplier=1,
        worker_pool="solo" if sys.platform == "win32" else "prefork",
        worker_consumer="worker.broker.consumer:Consumer",
        worker_proc_alive_timeout=LOAD_LIMIT_S,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the ledger resolves what runs twice
        worker_enable_remote_control=settings.remote_control,
        control_exchange="posters",  # other programs on this Redis have "celery"
        event_exchange="posters.events",
        event_queue_prefix="posters.events",
        worker_send_task_events=settings.events,
        broker_use_ssl=ssl,
        broker_transport_options=transport_options(settings, CONSUMER_TIMEOUT_S),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a full Redis refuses commands; the worker must survive that
    )
    if sys.platform != "win32":
        app.conf.worker_pool_start_method = "spawn"  # a forked child cannot use CUDA
    return app


def _name_node() -> None:
    """Make NODE the default of `celery worker --hostname`, where Celery's command line is what loads this module."""
    context = click.get_current_context(silent=True)
    if context is not None and context.find_root().command.name == "celery":
        context.default_map = {**(context.default_map or {}), "worker": {"hostname": NODE}}


def _ignore_host_options() -> None:
    """Remove CELERY_WORKER_…, which `celery worker` would read as its own options once it has loaded this module.

    They belong to another Celery program; its CELERY_WORKER_QUEUES or CELERY_WORKER_CONCURRENCY would stop this worker.
    """
    for name in [name for name in os.environ if name.startswith("CELERY_WORKER_")]:
        del os.environ[name]


def _stay_importable() -> None:
    """Keep the folder of both packages on sys.path, which the child inherits.

    The `celery` script lies in another folder than the project; Celery adds the current folder only while it imports
    this module.
    """
    folder = str(Path(__file__).resolve().parent.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def __getattr__(name: str) -> Any:
    """Build `app` on first access, so that importing this module reads no settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        app = create_app(load_settings())
    except ConfigurationError as error:
        print(f"configuration: {error}", file=sys.stderr)
        raise SystemExit(EX_CONFIG) from None
    _stay_importable()
    let_warnings_warn()
    _name_node()
    _ignore_host_options()
    os.environ["PYTHONUTF8"] = "1"  # for the child: under another encoding of the locale, no file has its name
    globals()["app"] = app
    return app
