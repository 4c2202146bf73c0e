"""The Celery tasks, and the signal handlers that load the model, supervise the worker and shut it down.

Celery's parent process imports this module too and must stay without torch: only the process that runs the tasks
imports what needs it, in `start_runners`.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from celery import Task, shared_task, signals
from celery.exceptions import Reject
from celery.worker import state as celery_state

from producer.errors import BadMessage, DeviceLost, WrongVectors
from producer.host import let_warnings_warn
from producer.output import notify
from producer.queue.messages import EMBED_TASK, QUERY_TASK, BatchMessage, decode_query
from producer.requests.codec import IMAGE
from producer.settings import load_settings, without_password
from worker.broker import log
from worker.broker.validation import MAX_RETRIES
from worker.celery import EX_CONFIG
from worker.runtime.heartbeat import EX_SOFTWARE, EX_WRONG_VECTORS, exit_now
from worker.runtime.startup import Runners, start_runners
from worker.runtime.supervisor import Supervisor

OWNER_VARIABLE: Final = "_POSTERS_OWNER"  # passes the owner id from the parent process to its children
EXIT_S: Final = 1.0  # the supervisor stops a worker without a model in about that time
logger = logging.getLogger(__name__)
Content = TypeVar("Content")
_runners: Runners | None = None
_supervisor: Supervisor | None = None


# No retry delay: Celery would set an `eta`, which depends on the wall clock; a new child takes seconds anyway.
@shared_task(name=EMBED_TASK, bind=True, max_retries=MAX_RETRIES, default_retry_delay=0, ignore_result=True)
def embed(task: Task, message: Any) -> None:
    """Embed one batch."""
    _run(task, message, BatchMessage.decode, lambda runners, batch: runners.batches.run(batch))


@shared_task(name=QUERY_TASK, bind=True, max_retries=1, default_retry_delay=0, ignore_result=True)
def answer(task: Task, message: Any) -> None:
    """Pass on an image request of an older producer: it waits with the others, and is answered like them."""
    _run(task, message, decode_query, lambda runners, token: runners.requests[IMAGE].adopt(token))


def _run(
    task: Task, message: Any, decode: Callable[[Any], Content], run: Callable[[Runners, Content], bool | None]
) -> None:
    """Decode and run a message; a malformed one is dead-lettered, one that `run` answers with False is requeued."""
    if _runners is None:
        time.sleep(EXIT_S)
        raise Reject("this worker has no model and is about to exit", requeue=True)
    try:
        content = decode(message)
    except BadMessage as error:
        _runners.batches.reject(message, error, str(task.request.id))
        return
    try:
        done = run(_runners, content)
    except DeviceLost as error:
        logger.critical("message %s: %s; exiting so that a fresh process takes over", task.request.id, error)
        exit_now(EX_WRONG_VECTORS if isinstance(error, WrongVectors) else EX_SOFTWARE)
    if done is False:
        raise Reject("this worker stops before the batch is done, or its quiet hours have begun", requeue=True)


@signals.celeryd_init.connect
def _begin_logging(instance: Any = None, **_: Any) -> None:
    log.begin(load_settings(), instance)


@signals.after_setup_logger.connect
def _set_up_logging(logger: logging.Logger, loglevel: int = logging.WARNING, **_: Any) -> None:
    log.set_up(load_settings(), logger, loglevel)


@signals.after_setup_task_logger.connect
def _set_up_task_logging(logger: logging.Logger, **_: Any) -> None:
    log.set_format(load_settings(), logger)


@signals.celeryd_after_setup.connect
def _leave_logging_of_children(**_: Any) -> None:
    log.leave_children_alone()


@signals.worker_init.connect
def _reject_unsupported_options(sender: Any, **_: Any) -> None:
    """Refuse options of Celery's command line that this worker does not support."""
    pool = getattr(sender.pool_cls, "__module__", str(sender.pool_cls))
    problem = ""
    if pool not in ("prefork", "solo", "celery.concurrency.prefork", "worker.celery"):
        problem = f"this worker supports the pools prefork and solo, not {pool}"
    elif sender.concurrency != 1 or sender.options.get("autoscale"):
        problem = (
            "a worker runs one model on one GPU: omit --concurrency and --autoscale, "
            "and start one worker per GPU (POSTERS_GPU)"
        )
    elif pool in ("solo", "worker.celery") and load_settings().idle_unload_s is not None:
        problem = (
            "POSTERS_IDLE_UNLOAD_S needs the pool prefork, whose child holds the model and can end; in the pool solo, "
            "the only one on Windows, the process that waits for work holds it: unset it, or omit --pool"
        )
    if problem:
        notify(f"configuration: {problem}", logging.ERROR)
        sys.exit(EX_CONFIG)
    if "CELERY_BROKER_URL" in os.environ:  # also set by --broker
        url = without_password(load_settings().redis_url)
        notify(f"note: --broker and CELERY_BROKER_URL are ignored: POSTERS_REDIS_URL is {url}")


@signals.worker_init.connect
def _set_owner_id(sender: Any, **_: Any) -> None:
    """Set the id that registers the worker, claims batches and holds the GPU lock.

    A child that replaces a dead one has the same id and so takes over at once. Node name and process id alone are
    not unique: two workers may share a node name, and in two containers with one host name both are process 1.
    """
    os.environ[OWNER_VARIABLE] = f"{sender.hostname}/{os.getpid()}/{secrets.token_hex(4)}"


@signals.worker_process_init.connect
def _load_model(**_: Any) -> None:
    """Load the model in the process that runs the tasks: the prefork child, or the solo process."""
    global _runners
    let_warnings_warn()
    _runners = start_runners(os.environ[OWNER_VARIABLE], solo=_is_main())
    if _is_main():
        if _runners is None:
            sys.exit(EX_CONFIG)
        atexit.register(_shut_down)  # a cold shutdown sends no signal


@signals.worker_ready.connect
def _start_supervisor(sender: Any, **_: Any) -> None:
    """Start the thread that redelivers lost batches and supervises this worker's start and shutdown."""
    global _supervisor
    runner = _runners.batches if _runners else None
    _supervisor = Supervisor(load_settings(), sender, os.environ[OWNER_VARIABLE], give_up=_give_up, runner=runner)
    _supervisor.start()
    atexit.register(_supervisor.leave)  # the same


@signals.task_retry.connect
@signals.task_failure.connect
def _release_batch_of_dead_child(
    sender: Any = None, request: Any = None, args: Any = None, reason: Any = None, exception: Any = None, **_: Any
) -> None:
    """In the parent process: its child died with a batch, which Celery retries, or has retried too often."""
    arguments, cause = (args, exception) if request is None else (request.args, reason.exc)
    if _supervisor is not None and getattr(sender, "name", "") == EMBED_TASK and arguments:
        _supervisor.release_dead(arguments[0], cause)


@signals.worker_shutting_down.connect
def _begin_shutdown(how: str = "", **_: Any) -> None:
    """Let the batch in progress finish within the grace period; a cold shutdown has none."""
    if _supervisor is not None:
        _supervisor.close(at_once=how == "Cold")


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _shut_down(**_: Any) -> None:
    global _runners
    runners, _runners = _runners, None
    if runners is not None:
        runners.close()
    if _supervisor is not None:
        _supervisor.leave()


def _give_up() -> None:
    """End the whole worker with a status that tells a service manager not to restart it."""
    celery_state.should_stop = EX_CONFIG


def _is_main() -> bool:
    """True in the process that consumes; in the solo pool, this process also holds the model."""
    from billiard.process import current_process

    return bool(current_process().name == "MainProcess")
