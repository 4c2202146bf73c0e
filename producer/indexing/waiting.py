"""What stands in the way of a job: Redis away, no worker, a model that loads. Said once, and waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from producer.client import Producer
from producer.errors import RedisUnreachable
from producer.output import notify
from producer.queue.workers import FAILED, READY, STORE, WAITING

ASK_FOR_WORKERS_S: Final = 2.0


@dataclass
class WaitStatus:
    """Says, once per change, what stands in the way: Redis away, no worker, a model that loads."""

    producer: Producer
    asked: float = -1e9
    said: str = ""

    def look(self) -> None:
        if time.monotonic() - self.asked < ASK_FOR_WORKERS_S:
            return
        self.asked = time.monotonic()
        try:
            workers = self.producer.workers()
        except RedisUnreachable as error:
            self.tell(error)
            return
        failed = [worker for worker in workers if worker.state == FAILED]
        if any(worker.state == READY for worker in workers):
            self._notify("" if not self.said else "a worker is ready")
        elif failed:
            self._notify(f"worker {failed[0].name} cannot start: {failed[0].get('reason')}")
        elif workers and (workers[0].state == WAITING or workers[0].get("stage") == STORE):
            self._notify(f"worker {workers[0].name} waits: {workers[0].get('reason')}")
        elif workers:
            self._notify(f"worker {workers[0].name} is loading {workers[0].get('model') or 'its model'} …")
        else:
            self._notify(
                "no worker is alive: start one with `celery -A worker worker`. "
                "Waiting for it; Ctrl-C leaves, the job stays."
            )

    def tell(self, error: RedisUnreachable) -> None:
        """Redis is away, or refuses what is to be sent; said once, however its words differ."""
        self.asked = time.monotonic()  # a worker that is ready all the same is no news now
        self._notify(f"{error} Waiting for it; Ctrl-C leaves.", about="Redis")

    def _notify(self, text: str, about: str = "") -> None:
        """Say something else than the last time; with `about`, something about something else."""
        if text and (about or text) != self.said:
            notify(text)
        self.said = about or text
