"""A lease: at most one holder at a time, for as long as it keeps saying so."""

from __future__ import annotations

from worker import ledger_scripts
from worker.ledger import Ledger
from worker.redis_client import answers


class Lease:
    """A key in Redis that one holder renews; another takes over when it is let go or falls silent.

    Every method raises RedisUnreachable as the ledger's do, and may be asked again.
    """

    def __init__(self, ledger: Ledger, key: str, holder: str, lasts_s: float) -> None:
        """`ledger` lends its connection; `lasts_s`: renew it well before."""
        self._url, self._key, self.holder, self._lasts_ms = ledger.url, key, holder, round(lasts_s * 1000)
        self._redis = ledger.redis
        self._take = ledger.redis.register_script(ledger_scripts.TAKE)
        self._let_go = ledger.redis.register_script(ledger_scripts.LET_GO)

    def take(self, lasts_s: float | None = None) -> str | None:
        """Take or renew it, for `lasts_s` from now; None when it is ours now, else who holds it."""
        lasts_ms = self._lasts_ms if lasts_s is None else round(lasts_s * 1000)
        with answers(self._url):
            holder = str(self._take([self._key], [self.holder, lasts_ms]))
        return None if holder == self.holder else holder

    def held_by(self) -> str | None:
        """Who holds it now; None when nobody does."""
        with answers(self._url):
            holder = self._redis.get(self._key)
        return None if holder is None else str(holder)

    def let_go(self) -> None:
        """Free it at once, if it is ours."""
        with answers(self._url):
            self._let_go([self._key], [self.holder])
