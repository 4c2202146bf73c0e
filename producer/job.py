"""A job: its progress, its failures, and waiting for its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from producer.errors import JobUnknown, LedgerSetBack
from producer.queue.progress import Failure, Progress

if TYPE_CHECKING:
    from producer.queue_client import QueueClient


FIRST_POLL_S: Final = 0.002  # an interactive answer comes within milliseconds
MAX_POLL_S: Final = 0.2


class Job:
    """A job in the ledger. It holds an id, and reads the ledger at every call."""

    def __init__(self, queue: QueueClient, job_id: str) -> None:
        """Jobs come from Producer.enqueue and Producer.job."""
        self.id = job_id
        self.steps = 0  # that this object has recorded; 0 if another process does the sending
        self._queue = queue

    def progress(self) -> Progress:
        """The current counts.

        Raises:
            JobUnknown: the ledger has no such job (any more).
            LedgerSetBack: Redis came back without some of what this object has sent: send it again.
        """
        try:
            progress = self._queue.job_store.progress(self.id)
            kept = progress.steps
        except JobUnknown:
            if not self.steps:
                raise
            kept = 0
        if kept < self.steps:
            raise LedgerSetBack(
                f"Redis came back without {self.steps - kept} of the {self.steps} steps of job {self.id}, as from an "
                "old copy of its data: send the same posters again; those already stored are skipped"
            )
        return progress

    def wait(self, timeout: float | None = None, on_progress: Callable[[Progress], None] | None = None) -> Progress:
        """Wait until nothing of the job is open; send again what was lost meanwhile.

        Args:
            timeout: seconds; when they are over, the result's ``at_rest`` is False.
            on_progress: called at every poll, several times a second.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_S
        while True:
            progress = self.progress()
            if on_progress:
                on_progress(progress)
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if progress.at_rest or left <= 0:
                return progress
            self._queue.redeliver_if_due()
            time.sleep(left)
            pause = min(1.5 * pause, MAX_POLL_S)

    def failures(self) -> list[Failure]:
        """Every failure with its word and sentence, ordered by poster id."""
        return sorted(self._queue.job_store.failures(self.id))

    def cancel(self) -> int:
        """Withdraw what no worker has begun; a claimed batch is finished and counted. Returns how many posters."""
        return self._queue.claims.cancel(self.id)
