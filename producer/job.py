"""A job: its progress, its failures, and waiting for its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from producer.errors import JobUnknown, LedgerSetBack
from producer.queue.progress import Failure, Progress

if TYPE_CHECKING:
    from producer.queue_client import QueueClient


FIRST_POLL_S: Final = 0.002  # a poster on the interactive lane takes milliseconds
MAX_POLL_S: Final = 0.2
CHECK_EVERY_S: Final = 5.0  # as redelivery looks for lost batches
SEND_AGAIN: Final = "send the same posters again; those already stored are skipped"
logger = logging.getLogger(__name__)


class Job:
    """A job in the ledger. It holds an id, and reads the ledger at every call."""

    def __init__(self, queue: QueueClient, job_id: str, *, is_own: bool = False) -> None:
        """Jobs come from Producer.enqueue and Producer.job; `is_own`: this object does the sending."""
        self.id, self._is_own = job_id, is_own
        self.steps = 0  # that this object has recorded
        self._queue = queue
        self._check_at = time.monotonic() + CHECK_EVERY_S

    def progress(self) -> Progress:
        """The current counts.

        Raises:
            JobUnknown: the ledger has no such job (any more).
            LedgerSetBack: Redis came back without some of what this object has sent: send it again.
        """
        return self.read(partial(self._queue.job_store.progress, self.id))

    def read(self, progress: Callable[[], Progress]) -> Progress:
        """What `progress` returns, or the error where it shows that Redis lost some of what this object has sent."""
        try:
            found = progress()
        except JobUnknown:
            if not self._is_own:
                raise
            kept = -1  # not even its entry
        else:
            if found.steps >= self.steps:
                return found
            kept = found.steps
        lost = f"{self.steps - max(kept, 0)} of the {self.steps} steps" if self.steps else "the entry"
        raise LedgerSetBack(
            f"Redis came back without {lost} of job {self.id}, as from an old copy of its data: {SEND_AGAIN}"
        )

    def wait(self, timeout: float | None = None, on_progress: Callable[[Progress], None] | None = None) -> Progress:
        """Wait until nothing of the job is open; send again what was lost meanwhile.

        Args:
            timeout: seconds; when they are over, the result's ``at_rest`` is False.
            on_progress: called at every poll, several times a second.

        Raises:
            JobUnknown, LedgerSetBack: as `progress`; also when posters of the job are neither open nor counted.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_S
        while True:
            progress = self.progress()
            if on_progress:
                on_progress(progress)
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if progress.at_rest:
                return balanced(progress)
            if left <= 0:
                return progress
            self.redeliver(logger.warning)
            time.sleep(left)
            pause = min(1.5 * pause, MAX_POLL_S)

    def redeliver(self, warn: Callable[[str], object]) -> None:
        """Send again what is due, of any job, and see to it that lost batches of this one are looked for."""
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_EVERY_S
            if self._queue.job_store.keep_active(self.id):
                warn(f"Redis had lost job {self.id} from its list of active jobs (posters:active); it is back there")
        self._queue.redeliver_if_due()

    def failures(self) -> list[Failure]:
        """Every failure with its word and sentence, ordered by poster id."""
        return sorted(self._queue.job_store.failures(self.id))

    def cancel(self) -> int:
        """Withdraw what no worker has begun; a claimed batch is finished and counted. Returns how many posters."""
        return self._queue.claims.cancel(self.id)


def balanced(progress: Progress) -> Progress:
    """The progress of a job at rest, whose counts add up; of a cancelled one, whatever it is.

    Raises:
        LedgerSetBack: posters are neither open nor counted.
    """
    if progress.is_balanced or progress.state == "cancelled":
        return progress
    raise LedgerSetBack(
        f"Redis has lost batches of job {progress.job}: {progress.submitted} posters were submitted, "
        f"{progress.settled} are counted, and none is open (as if posters:job:{progress.job}:open was deleted): "
        f"{SEND_AGAIN}"
    )
