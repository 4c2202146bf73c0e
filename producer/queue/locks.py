"""A lease: at most one holder at a time, for as long as it keeps saying so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from producer.errors import RedisUnreachable
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.scripts import load_script
from producer.queue.workers import RENEWAL_S


class Lease:
    """A key in Redis that one holder renews; another takes over when it is let go or falls silent.

    Every method raises RedisUnreachable as the ledger's do, and may be asked again.
    """

    def __init__(self, job_store: JobStore, key: str, holder: str, lasts_s: float) -> None:
        """`ledger` lends its connection; `lasts_s`: renew it well before."""
        self._key, self.holder, self._lasts_ms = key, holder, round(lasts_s * 1000)
        self._redis = job_store.redis
        self._take = load_script(self._redis, "acquire_lock")
        self._let_go = load_script(self._redis, "release_lock")

    def take(self, lasts_s: float | None = None) -> str | None:
        """Take or renew it, for `lasts_s` from now; None when it is ours now, else who holds it."""
        lasts_ms = self._lasts_ms if lasts_s is None else round(lasts_s * 1000)
        holder = str(self._take([self._key], [self.holder, lasts_ms]))
        return None if holder == self.holder else holder

    def held_by(self) -> str | None:
        """Who holds it now; None when nobody does."""
        holder = self._redis.get(self._key)
        return None if holder is None else str(holder)

    def let_go(self) -> None:
        """Free it at once, if it is ours."""
        self._let_go([self._key], [self.holder])


LEASE_S: Final = 15.0  # as long as an announcement: a worker that is silent for so long counts as dead
LOOK_S: Final = 1.0
# A holder that lives renews its lease in less. So a lease that expired because Redis' clock was put forward, or
# because Redis was away, is its holder's again before one that waits takes it.
SETTLE_S: Final = RENEWAL_S + 1.0
logger = logging.getLogger(__name__)


def wait_for_card(
    job_store: JobStore,
    card: str,
    owner: str,
    tell: Callable[[str], object],
    pause: Callable[[float], object] = time.sleep,
) -> Lease:
    """The lease of a card, as soon as nobody else has it.

    Args:
        owner: who asks; the child that follows a dead one has its parent's name, and need not wait.
        tell: called with a sentence at every look, so that the worker can announce why it waits.
        pause: waits so many seconds.
    """
    lease = Lease(job_store, card_key(card), owner, LEASE_S)
    said = ""
    while True:
        try:
            holder = lease.held_by()
            if holder in (None, owner):
                if said:
                    pause(SETTLE_S)
                holder = lease.take()
            if holder in (None, owner):
                return lease
            reason = f"{holder} works on the card {card}; this worker waits, and takes over when that one ends"
        except RedisUnreachable as error:
            reason = f"nobody can tell who works on the card {card}: {error}"
        if reason != said:
            logger.warning("%s", reason)
        said = reason
        tell(reason)
        pause(LOOK_S)
