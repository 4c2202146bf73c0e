"""The Celery tasks: unwrap, call, report. And the signals that give a worker process its station.

This module is imported by the parent process too, which must stay without torch: what needs torch is
imported by the handler that runs in the process that does the work.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import sys
import time
from typing import Any, Final

from celery import Task, shared_task, signals
from celery.exceptions import Reject
from celery.worker import state as celery_state

from producer.errors import BadMessage
from producer.queue.image_requests import decode_query
from producer.queue.messages import EMBED_TASK, QUERY_TASK, EmbedBatch
from producer.settings import load_settings
from worker.celery import EX_CONFIG
from worker.runtime.batch_runner import BatchRunner
from worker.runtime.startup import start_runner
from worker.runtime.supervisor import Supervisor

RETRIES_AFTER_A_LOST_CHILD: Final = 100  # the ledger cuts and buries a poisonous batch long before
OWNER: Final = "_POSTERS_OWNER"  # the variable in which a child hears whose child it is
LEAVING_S: Final = 1.0  # a worker without a model is ended by its attendant in about that time
logger = logging.getLogger(__name__)
_runner: BatchRunner | None = None
_supervisor: Supervisor | None = None


# A delay would make Celery set an `eta`, which is a time on the wall clock; the new child takes seconds anyway.
@shared_task(
    name=EMBED_TASK, bind=True, max_retries=RETRIES_AFTER_A_LOST_CHILD, default_retry_delay=0, ignore_result=True
)
def embed(task: Task, message: Any) -> None:
    """Embed one batch."""
    if _runner is None:
        time.sleep(LEAVING_S)
        raise Reject("this worker has no model and is about to leave", requeue=True)
    try:
        batch = EmbedBatch.decode(message)
    except BadMessage as error:
        _runner.dead_letters(message, error, str(task.request.id))
        return
    if not _runner.work(batch):
        raise Reject("this worker stops before the batch is done", requeue=True)


@shared_task(name=QUERY_TASK, bind=True, max_retries=1, default_retry_delay=0, ignore_result=True)
def answer(task: Task, message: Any) -> None:
    """Answer one query."""
    if _runner is None:
        time.sleep(LEAVING_S)
        raise Reject("this worker has no model and is about to leave", requeue=True)
    try:
        token = decode_query(message)
    except BadMessage as error:
        _runner.dead_letters(message, error, str(task.request.id))
        return
    _runner.answer(token)


@signals.after_setup_logger.connect
def _enable_info_logging(**_: Any) -> None:
    """Show what this project says at INFO even where Celery's own INFO is off."""
    logging.getLogger("worker").setLevel(logging.INFO)


@signals.worker_init.connect
def _reject_unsupported_options(sender: Any, **_: Any) -> None:
    """Refuse what the command line can ask of Celery and this worker cannot give."""
    pool = getattr(sender.pool_cls, "__module__", str(sender.pool_cls))
    problem = ""
    if pool not in ("prefork", "solo", "celery.concurrency.prefork", "worker.celery"):
        problem = f"this worker runs in the pool prefork or solo, not in {pool}"
    elif sender.concurrency != 1 or sender.options.get("autoscale"):
        problem = (
            "a worker is one model on one card: leave --concurrency and --autoscale out, "
            "and start a worker for each card (POSTERS_GPU)"
        )
    if problem:
        print(f"configuration: {problem}", file=sys.stderr)
        sys.exit(EX_CONFIG)


@signals.worker_init.connect
def _set_owner_id(sender: Any, **_: Any) -> None:
    """Decide who announces, claims and holds a card: equal for a child and the child that replaces it.

    So that it takes over at once. Name and process id are no proof of that: two workers may have been started
    with one name, and in two containers of one host name both are process 1.
    """
    os.environ[OWNER] = f"{sender.hostname}/{os.getpid()}/{secrets.token_hex(4)}"


@signals.worker_process_init.connect
def _load_model(**_: Any) -> None:
    """Load the model in the process that will use it: the prefork child, or the solo process."""
    global _runner
    _runner = start_runner(os.environ[OWNER], solo=_is_main())
    if _is_main():
        if _runner is None:
            sys.exit(EX_CONFIG)
        atexit.register(_shut_down)  # a cold shutdown tells nobody


@signals.worker_ready.connect
def _start_supervisor(sender: Any, **_: Any) -> None:
    """Start the thread that looks after lost batches, and after this worker's start and end."""
    global _supervisor
    _supervisor = Supervisor(load_settings(), sender, os.environ[OWNER], give_up=_give_up, runner=_runner)
    _supervisor.start()


@signals.task_retry.connect
@signals.task_failure.connect
def _release_batch_of_dead_child(sender: Any = None, request: Any = None, args: Any = None, **_: Any) -> None:
    """In the parent process: its child died with a batch (Celery sends it again), or was ended after its time limit."""
    arguments = args if request is None else request.args
    if _supervisor is not None and getattr(sender, "name", "") == EMBED_TASK and arguments:
        _supervisor.release_dead(arguments[0])


@signals.worker_shutting_down.connect
def _begin_shutdown(how: str = "", **_: Any) -> None:
    """Give the batch in work its time; none when it was said twice."""
    if _supervisor is not None:
        _supervisor.close(at_once=how == "Cold")


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _shut_down(**_: Any) -> None:
    global _runner
    runner, _runner = _runner, None
    if runner is not None:
        runner.close()


def _give_up() -> None:
    """End the whole worker with a status that tells a supervisor that a restart will not help."""
    celery_state.should_stop = EX_CONFIG


def _is_main() -> bool:
    """True in the process that consumes; where a model is loaded in it, this is the solo pool."""
    from billiard.process import current_process

    return bool(current_process().name == "MainProcess")
