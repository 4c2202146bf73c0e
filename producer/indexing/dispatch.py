"""Feed a job to the queue within a window, and wait until nothing of it is open; or leave it in good order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from tqdm import tqdm

from producer.client import Producer
from producer.errors import JobUnknown, PosterError, RedisUnreachable
from producer.indexing.waiting import WaitStatus
from producer.job import Job
from producer.output import notify
from producer.queue.progress import Progress
from producer.queue_client import OnWait
from producer.redis_client import retry_until_available

LOOK_S: Final = 0.2
SAME_COMMAND: Final = "run the same command again"


def progress_bar(*, quiet: bool, total: int | None = None) -> tqdm[Any]:
    """A bar of posters on stderr; hidden where that is no terminal, or `quiet`."""
    hidden = True if quiet else None
    return tqdm(desc="posters", unit="poster", total=total, file=sys.stderr, disable=hidden, smoothing=0.1)


def follow(
    producer: Producer,
    job: Job,
    feed: Callable[[OnWait], Iterator[int]],
    bar: tqdm[Any],
    *,
    again: str = SAME_COMMAND,
) -> Progress:
    """Send batch after batch within the window, and wait until nothing of the job is open.

    Args:
        producer: whose queue.
        job: what the batches belong to.
        feed: begins the sending, given what to call while Redis is away; each number asked for sends a batch.
        bar: shows how far it is.
        again: how what was not sent is sent later, for the person who pressed Ctrl-C.

    Raises:
        KeyboardInterrupt: with the job's id; no more of the job will come, what was sent goes on.
        PosterError: what `feed` and the ledger raise; no more of the job will come then, either.
    """
    wait_status, sent = WaitStatus(producer), False
    batches = feed(wait_status.report)
    try:
        while True:
            wait_status.refresh()
            progress = retry_until_available(job.progress, wait_status.report)
            _show(bar, progress)
            if sent and progress.at_rest:
                return progress
            retry_until_available(producer.redeliver_if_due, wait_status.report)
            room = producer.settings.window - progress.open_batches
            if not sent and room > 0:
                sent = sum(1 for _ in islice(batches, room)) < room
            else:
                if not sent:
                    _renew_sending(producer, job, wait_status)
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        if not sent:
            notify(f"not everything was sent: {again} for what is left")
            leave_at_what_was_sent(producer, job)
        raise KeyboardInterrupt(job.id) from None
    except PosterError:
        leave_at_what_was_sent(producer, job)
        raise


def _renew_sending(producer: Producer, job: Job, wait_status: WaitStatus) -> None:
    """One try: a full Redis refuses this, and is emptied by the workers that are waited for here."""
    try:
        producer.job_store.renew_sending(job.id)
    except RedisUnreachable as error:
        wait_status.report(error)


def send_detached(producer: Producer, job: Job, feed: Iterator[int]) -> Progress:
    """Send everything, and wait for nothing.

    Raises:
        KeyboardInterrupt, PosterError: as `follow`.
    """
    try:
        for _ in feed:
            pass
        return job.progress()
    except KeyboardInterrupt:
        notify(f"not everything was sent: {SAME_COMMAND} for what is left")
        leave_at_what_was_sent(producer, job)
        raise KeyboardInterrupt(job.id) from None
    except PosterError:
        leave_at_what_was_sent(producer, job)
        raise


def leave_at_what_was_sent(producer: Producer, job: Job) -> None:
    """Tell the ledger that nobody sends any more of a job; without Redis it finds out by itself."""
    with suppress(RedisUnreachable, JobUnknown):
        producer.job_store.mark_sent(job.id)


def _show(bar: tqdm[Any], progress: Progress) -> None:
    bar.n = progress.settled + progress.doing
    if bar.total is not None:
        bar.total = max(bar.total, bar.n)  # entries without a file were not counted
    if progress.failed:
        bar.set_postfix(failed=progress.failed, refresh=False)
    bar.refresh()
