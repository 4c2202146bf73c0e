"""Find batches that the ledger calls open and that nobody will ever deliver, and send them again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Final, cast

from worker.announcement import LOADING, Announcements
from worker.ledger import Ledger
from worker.messages import LANES, QUEUES, EmbedBatch
from worker.redis_client import answers, connect

GRACE_S: Final = 8.0  # between "written down" and "sent", and between "taken" and "claimed", lie milliseconds
UNACKED: Final = "unacked"  # where kombu notes what a consumer has taken
PAGE: Final = 64  # messages read at once; one of 4096 posters is about half a megabyte


class Repair:
    """Looks for lost batches; whoever is alive calls `run` every few seconds, duplicates do no harm."""

    def __init__(
        self,
        url: str,
        ledger: Ledger,
        send: Callable[[EmbedBatch], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is the broker's; `send` puts a batch on its lane; `clock` in seconds."""
        self.url, self._ledger, self._send, self._clock = url, ledger, send, clock
        self._redis = connect(url)
        self._announcements = Announcements(url)
        self._missing_since: dict[str, float] = {}

    def run(self) -> int:
        """One look; how many batches were sent again.

        A batch counts as lost when it is open, no live worker claims it, and it was neither queued
        nor reserved in two looks that lie GRACE_S or more apart.
        """
        unclaimed = {
            batch_id: (job, tries)
            for job in self._ledger.active()
            for batch_id, tries in self._ledger.unclaimed(job).items()
        }
        missing = self._not_delivered(unclaimed) if unclaimed else {}
        now = self._clock()
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}
        sent = 0
        for name, job in missing.items():
            if now - self._missing_since[name] >= GRACE_S:
                batch = self._ledger.load(job, name)
                if batch is not None:
                    self._send(batch)
                    sent += 1
                del self._missing_since[name]
        return sent

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()
        self._announcements.close()

    def _not_delivered(self, unclaimed: dict[str, tuple[str, int]]) -> dict[str, str]:
        """Of the unclaimed batches, those that no queue holds and no consumer has just taken."""
        missing = dict(unclaimed)
        with answers(self.url):
            for lane in LANES:
                start = 0
                while missing and (page := cast(list[str], self._redis.lrange(QUEUES[lane], start, start + PAGE - 1))):
                    for text in page:
                        missing.pop(_task_id(text), None)
                    start += PAGE
        if not missing:
            return {}
        loading = any(worker.state == LOADING for worker in self._announcements.everybody())
        with answers(self.url):
            reserved = cast(list[str], self._redis.hvals(UNACKED))
        for text in reserved:
            name = _task_id(text)
            # A ready worker claims what it takes at once, so a reserved batch that is not claimed
            # belongs to a dead worker, unless one is still loading its model.
            if loading and name in missing and missing[name][1] == 0:
                del missing[name]
        return {name: job for name, (job, _) in missing.items()}


def _task_id(text: str) -> str:
    """The task id of a message as kombu writes it, bare or as [message, exchange, routing key]."""
    try:
        message = json.loads(text)
        if isinstance(message, list):
            message = message[0]
        return str(message["headers"]["id"])
    except (ValueError, LookupError, TypeError):
        return ""  # not a message of ours; the worker puts it aside
