"""Dispatch of a job: send its batches within a window and wait until none is open; on an error, end the sending."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Final

from tqdm import tqdm

from producer.client import Producer
from producer.errors import JobUnknown, PosterError, RedisUnreachable
from producer.indexing.waiting import WaitStatus
from producer.job import Job, balanced
from producer.logs.setup import is_json
from producer.output import notify
from producer.queue.progress import Progress
from producer.queue_client import OnWait
from producer.redis_client import retry_until_available

POLL_S: Final = 0.2
SAME_COMMAND: Final = "run the same command again"


def progress_bar(*, quiet: bool, total: int | None = None) -> tqdm[Any]:
    """A progress bar of posters on stderr; hidden where that is a log, or no terminal, or with `quiet`."""
    hidden = True if quiet or is_json() else None
    return tqdm(desc="posters", unit="poster", total=total, file=sys.stderr, disable=hidden, smoothing=0.1)


def follow(
    producer: Producer,
    job: Job,
    feed: Callable[[OnWait], Iterator[int]],
    bar: tqdm[Any],
    *,
    again: str = SAME_COMMAND,
) -> Progress:
    """Send batch after batch within the window, and wait until no batch of the job is open.

    Args:
        producer: client of the queue.
        job: the job of the batches.
        feed: starts the sending; gets the function to call while Redis is unreachable, and sends a batch per `next`.
        bar: shows the progress.
        again: instruction for sending the rest, printed after Ctrl-C.

    Raises:
        KeyboardInterrupt: with the job's id; nothing more is sent, what was sent is done.
        LedgerSetBack: Redis has lost some of the job.
        PosterError: raised by `feed` or the ledger; nothing more is sent.
    """
    wait_status, sent = WaitStatus(producer), False
    wait = partial(retry_until_available, on_wait=wait_status.report)
    batches = feed(wait_status.report)
    with _mark_sent_on_error(producer, job, again, lambda: not sent):
        while True:
            wait_status.refresh()
            progress = wait(job.progress)
            show_progress(bar, progress)
            if sent and progress.at_rest:
                return balanced(progress)
            wait(partial(job.redeliver, notify))
            free = producer.settings.window - progress.open_batches
            if not sent and free > 0:
                sent = sum(1 for _ in islice(batches, free)) < free
            else:
                if not sent:
                    _renew_sending(producer, job, wait_status)
                time.sleep(POLL_S)


def send_detached(producer: Producer, job: Job, feed: Callable[[OnWait], Iterator[int]]) -> Progress:
    """Send everything without waiting for the workers; arguments and errors as those of `follow`."""
    report = WaitStatus(producer).report
    with _mark_sent_on_error(producer, job, SAME_COMMAND, lambda: True):
        for _ in feed(report):
            pass
        return retry_until_available(job.progress, report)


@contextmanager
def _mark_sent_on_error(producer: Producer, job: Job, again: str, is_incomplete: Callable[[], bool]) -> Iterator[None]:
    """When the block fails, record in the ledger that nothing more of the job is sent."""
    try:
        yield
    except KeyboardInterrupt:
        if is_incomplete():
            notify(f"not everything was sent: {again} for what is left")
            _mark_sent(producer, job)
        raise KeyboardInterrupt(job.id) from None
    except PosterError:
        _mark_sent(producer, job)
        raise


def _mark_sent(producer: Producer, job: Job) -> None:
    """Record that nothing more is sent; without Redis, the ledger notices that the sender's lease expires."""
    with suppress(RedisUnreachable, JobUnknown):
        producer.job_store.mark_sent(job.id)


def _renew_sending(producer: Producer, job: Job, wait_status: WaitStatus) -> None:
    """Renew the sender's lease once: a full Redis refuses it until the workers have freed memory."""
    try:
        producer.job_store.renew_sending(job.id)
    except RedisUnreachable as error:
        wait_status.report(error)


def show_progress(bar: tqdm[Any], progress: Progress) -> None:
    """Set a progress bar to what is done, and to the number of failures."""
    bar.n = progress.done
    if bar.total is not None:
        bar.total = max(bar.total, bar.n)  # entries without a file were not counted
    if progress.failed:
        bar.set_postfix(failed=progress.failed, refresh=False)
    bar.refresh()
