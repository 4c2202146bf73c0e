"""Feed a job to the queue within a window, and wait until nothing of it is open; or leave it in good order."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any, Final

from tqdm import tqdm

from producer.client import Producer
from producer.errors import JobUnknown, PosterError, RedisUnreachable
from producer.indexing.interrupts import Interruption
from producer.indexing.waiting import Obstacles, patiently
from producer.job import Job
from producer.output import say
from producer.queue.progress import Progress

LOOK_S: Final = 0.2
SAME_COMMAND: Final = "run the same command again"
REST_BATCHES: Final = 256  # that an interrupted `index` may leave in Redis: 20 MB, 65,536 posters


def progress_bar(*, quiet: bool, total: int | None = None) -> tqdm[Any]:
    """A bar of posters on stderr; hidden where that is no terminal, or `quiet`."""
    hidden = True if quiet else None
    return tqdm(desc="posters", unit="poster", total=total, file=sys.stderr, disable=hidden, smoothing=0.1)


def follow(
    producer: Producer,
    job: Job,
    feed: Iterator[int],
    bar: tqdm[Any],
    *,
    rest: bool = True,
    again: str = SAME_COMMAND,
) -> Progress:
    """Send batch after batch within the window, and wait until nothing of the job is open.

    Args:
        producer: whose queue.
        job: what the batches belong to.
        feed: sends a batch whenever it is asked for the next number.
        bar: shows how far it is.
        rest: what to do at Ctrl-C: send the rest without waiting, or leave the job at what was sent.
        again: how what was not sent is sent later, for the person who ended this.

    Raises:
        KeyboardInterrupt: with the job's id; no more of the job will come.
        PosterError: what `feed` and the ledger raise; no more of the job will come then, either.
    """
    obstacles, interruption, sent = Obstacles(producer), Interruption(), False

    def wait(error: RedisUnreachable) -> None:
        obstacles.tell(error)
        interruption.check()

    producer.on_wait = wait
    try:
        with interruption:
            while True:
                obstacles.look()
                progress = patiently(job.progress, obstacles)
                _show(bar, progress)
                if sent and progress.at_rest:
                    return progress
                patiently(producer.repair_if_due, obstacles)
                if not sent and progress.open_batches < producer.settings.window:
                    # where the rest will not be sent, there is nothing in `feed` that Ctrl-C could tear
                    held = interruption if rest else None
                    sent = _send(feed, producer.settings.window - progress.open_batches, held)
                else:
                    if not sent:
                        _say_that_it_lives(producer, job, obstacles)
                    time.sleep(LOOK_S)
    except KeyboardInterrupt:
        if not sent and not (rest and not interruption.torn and _send_rest(producer, feed)):
            if rest:
                say(f"not everything was sent: {again} for what is left")
            leave_at_what_was_sent(producer, job)
        raise KeyboardInterrupt(job.id) from None
    except PosterError:
        leave_at_what_was_sent(producer, job)
        raise


def _say_that_it_lives(producer: Producer, job: Job, obstacles: Obstacles) -> None:
    """One try: a full Redis refuses this, and is emptied by the workers that are waited for here."""
    try:
        producer.ledger.still_sending(job.id)
    except RedisUnreachable as error:
        obstacles.tell(error)


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
        say(f"not everything was sent: {SAME_COMMAND} for what is left")
        leave_at_what_was_sent(producer, job)
        raise KeyboardInterrupt(job.id) from None
    except PosterError:
        leave_at_what_was_sent(producer, job)
        raise


def leave_at_what_was_sent(producer: Producer, job: Job) -> None:
    """Tell the ledger that nobody sends any more of a job; without Redis it finds out by itself."""
    with suppress(RedisUnreachable, JobUnknown):
        producer.ledger.sent(job.id)


def _send_rest(producer: Producer, feed: Iterator[int]) -> bool:
    """Send what is left of an interrupted job, without waiting for anything; True when that is all."""

    def leave(error: RedisUnreachable) -> None:
        raise error

    producer.on_wait = leave
    say("sending the rest, so that the job goes on by itself (Ctrl-C again to leave it at what was sent) …")
    try:
        return _send(feed, REST_BATCHES)
    except KeyboardInterrupt:
        return False
    except PosterError as error:
        say(str(error))
        return False


def _send(feed: Iterator[int], room: int, interruption: Interruption | None = None) -> bool:
    """Send up to `room` batches; True when there are no more. `interruption`: Ctrl-C waits until one is sent."""
    for _ in range(room):
        with interruption.held() if interruption else nullcontext():
            seen = next(feed, None)
        if seen is None:
            return True
    return False


def _show(bar: tqdm[Any], progress: Progress) -> None:
    bar.n = progress.settled + progress.doing
    if bar.total is not None:
        bar.total = max(bar.total, bar.n)  # entries without a file were not counted
    if progress.failed:
        bar.set_postfix(failed=progress.failed, refresh=False)
    bar.refresh()
