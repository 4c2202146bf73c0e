"""A job, followed without a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from producer.job import CHECK_EVERY_S, Job, balanced
from producer.queue.jobs import decode_progress, progress_keys
from producer.queue.progress import Failure, Progress

if TYPE_CHECKING:
    from producer.aio.requests import AsyncRequests

POLL_S: Final = 0.25  # the ledger notifies nobody
InThread = Callable[..., Awaitable[Any]]
logger = logging.getLogger(__name__)


class AsyncJob:
    """A job in the ledger. It holds an id, and reads the ledger at every call."""

    def __init__(self, job: Job, requests: AsyncRequests, in_thread: InThread) -> None:
        """Jobs come from AsyncProducer.enqueue and AsyncProducer.job."""
        self.id = job.id
        self._job, self._requests, self._in_thread = job, requests, in_thread

    async def progress(self) -> Progress:
        """The current counts.

        Raises:
            JobUnknown, LedgerSetBack: as Job.progress.
        """
        answer = await self._requests.script("job_progress", progress_keys(self.id))
        return self._job.read(lambda: decode_progress(self.id, answer))

    async def wait(self, timeout: float | None = None) -> Progress:
        """Wait until nothing of the job is open, or `timeout` seconds are over; ``at_rest`` says which.

        Raises:
            JobUnknown, LedgerSetBack: as Job.wait.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        check_at = time.monotonic() + CHECK_EVERY_S
        while not (progress := await self.progress()).at_rest:
            left = POLL_S if ends is None else min(POLL_S, ends - time.monotonic())
            if left <= 0:
                return progress
            if time.monotonic() >= check_at:  # it sends, with Celery, what was lost
                await self._in_thread(self._job.redeliver, logger.warning)
                check_at = time.monotonic() + CHECK_EVERY_S
            await asyncio.sleep(left)
        return balanced(progress)

    async def watch(self) -> AsyncIterator[Progress]:
        """The counts whenever they have changed, until nothing of the job is open; those at rest come last.

        Raises:
            JobUnknown, LedgerSetBack: as Job.wait.
        """
        last: Progress | None = None
        while last is None or not last.at_rest:
            progress = await self.wait(0 if last is None else POLL_S)
            if progress != last:
                yield progress
            last = progress

    async def failures(self) -> list[Failure]:
        """Every failure with its word and sentence, ordered by poster id."""
        found: list[Failure] = await self._in_thread(self._job.failures)
        return found

    async def cancel(self) -> int:
        """Withdraw what no worker has begun; a claimed batch is finished and counted. Returns how many posters."""
        withdrawn: int = await self._in_thread(self._job.cancel)
        return withdrawn
