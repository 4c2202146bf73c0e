"""The Celery tasks: unwrap, call, report. And the signals that give a worker process its station.

This module is imported by the parent process too, which must stay without torch: what needs torch is
imported by the handler that runs in the process that does the work.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

from celery import shared_task, signals
from celery.exceptions import Reject
from celery.worker import state as celery_state

from worker.attendant import Attendant
from worker.errors import BadMessage
from worker.messages import EMBED_TASK, EmbedBatch
from worker.queries import QUERY_TASK, decode_query
from worker.settings import load_settings
from worker.station import Station, start_station

EX_CONFIG: Final = 78  # sysexits.h: something was found in an unconfigured or misconfigured state
RETRIES_AFTER_A_LOST_CHILD: Final = 100  # the ledger cuts and buries a poisonous batch long before

logger = logging.getLogger(__name__)
_station: Station | None = None
_attendant: Attendant | None = None


@shared_task(name=EMBED_TASK, max_retries=RETRIES_AFTER_A_LOST_CHILD, default_retry_delay=1, ignore_result=True)
def embed(message: Any) -> None:
    """Embed one batch."""
    if _station is None:
        raise Reject("this worker has no model and is about to leave", requeue=True)
    try:
        batch = EmbedBatch.decode(message)
    except BadMessage as error:
        _station.quarantine(message, str(error))
        return
    _station.work(batch)


@shared_task(name=QUERY_TASK, max_retries=1, default_retry_delay=0, ignore_result=True)
def answer(message: Any) -> None:
    """Answer one query."""
    if _station is None:
        raise Reject("this worker has no model and is about to leave", requeue=True)
    try:
        token = decode_query(message)
    except BadMessage as error:
        _station.quarantine(message, str(error))
        return
    _station.answer(token)


@signals.after_setup_logger.connect
def _speak(**_: Any) -> None:
    """Show what this project says at INFO even where Celery's own INFO is off."""
    logging.getLogger("worker").setLevel(logging.INFO)


@signals.worker_process_init.connect
def _load(sender: str | None = None, **_: Any) -> None:
    """Load the model in the process that will use it: the prefork child, or the solo process."""
    global _station
    name = sender or "worker"
    _station = start_station(load_settings(), name, owner=_owner(name), solo=_is_solo())
    if _station is None and _is_solo():
        sys.exit(EX_CONFIG)


@signals.worker_ready.connect
def _attend(sender: Any, **_: Any) -> None:
    """Start the thread that looks after lost batches and hears whether the model could be loaded."""
    global _attendant
    _attendant = Attendant(load_settings(), sender.hostname, sender.app, give_up=_leave, solo=_is_solo())
    _attendant.start()


@signals.worker_shutting_down.connect
def _rest(**_: Any) -> None:
    if _attendant is not None:
        _attendant.stop()


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _say_goodbye(**_: Any) -> None:
    if _station is not None:
        _station.close()


def _leave() -> None:
    """End the whole worker with a status that tells a supervisor that a restart will not help."""
    celery_state.should_stop = EX_CONFIG


def _is_solo() -> bool:
    """True where tasks run in the process that consumes them."""
    from billiard.process import current_process

    return bool(current_process().name == "MainProcess")


def _owner(name: str) -> str:
    """Who claims batches: equal for a child and the child that replaces it, so that it takes over at once."""
    return f"{name}/{os.getpid() if _is_solo() else os.getppid()}"
