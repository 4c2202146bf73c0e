"""Redis locks that expire unless their holder renews them, and the lease of a GPU.

redis-py has a lock of its own, but a full Redis refuses its commands.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

from producer.errors import RedisUnreachable
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.scripts import load_script
from producer.queue.workers import RENEWAL_S


class Lease:
    """A lock that its holder must renew. Every method may be repeated when RedisUnreachable was raised."""

    def __init__(self, job_store: JobStore, key: str, holder: str, lasts_s: float) -> None:
        """On the job store's connections; renew it well before `lasts_s` are over."""
        self._key, self.holder, self._lasts_ms = key, holder, round(lasts_s * 1000)
        self._ends = -math.inf  # monotonic
        self._redis = job_store.redis
        self._acquire = load_script(self._redis, "acquire_lock")
        self._release = load_script(self._redis, "release_lock")

    def acquire(self, lasts_s: float | None = None) -> str | None:
        """Acquire or renew it, for `lasts_s` from now; None when it is ours now, else its holder."""
        lasts_ms, asked_at = self._lasts_ms if lasts_s is None else round(lasts_s * 1000), time.monotonic()
        holder = str(self._acquire([self._key], [self.holder, lasts_ms]))
        self._ends = asked_at + lasts_ms / 1000 if holder == self.holder else -math.inf
        return None if holder == self.holder else holder

    @property
    def is_held(self) -> bool:
        """Whether it is ours as far as is known here, without asking Redis."""
        return time.monotonic() < self._ends

    def current_holder(self) -> str | None:
        """Who holds it now; None when nobody does."""
        holder = self._redis.get(self._key)
        return None if holder is None else str(holder)

    def release(self) -> None:
        """Release it, if it is ours."""
        self._ends = -math.inf
        self._release([self._key], [self.holder])


LEASE_S: Final = 15.0  # as long as a registry entry: a worker that renews neither counts as dead
POLL_S: Final = 1.0
# A holder that is alive renews its lease in less. So a lease that expired because Redis' clock was set forward, or
# because Redis was unreachable, is its holder's again before a waiting worker takes it.
SETTLE_S: Final = RENEWAL_S + 1.0
logger = logging.getLogger(__name__)


def wait_for_card(
    job_store: JobStore,
    card: str,
    owner: str,
    on_wait: Callable[[str], object],
    pause: Callable[[float], object] = time.sleep,
) -> Lease:
    """Wait until no other worker holds the GPU lease, and acquire it.

    Args:
        owner: of the lease; the child that replaces a dead one has the same owner, and need not wait.
        on_wait: called at every try with the reason for waiting.
        pause: sleeps for the given seconds.
    """
    lease = Lease(job_store, card_key(card), owner, LEASE_S)
    reported = ""
    while True:
        try:
            holder = lease.current_holder()
            if holder in (None, owner):
                if reported:
                    pause(SETTLE_S)
                holder = lease.acquire()
            if holder in (None, owner):
                return lease
            reason = f"GPU {card} is in use by {holder}; this worker will take over when that one exits"
        except RedisUnreachable as error:
            reason = f"cannot tell which worker holds GPU {card}: {error}"
        if reason != reported:
            logger.warning("%s", reason)
        reported = reason
        on_wait(reason)
        pause(POLL_S)
