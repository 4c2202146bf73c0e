"""What a job waits for: Redis, a worker, or a model that loads."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from producer.client import Producer
from producer.errors import CommandForbidden, PosterError, RedisUnreachable
from producer.host import program, worker_command
from producer.output import notify
from producer.queue.workers import FAILED, READY, STORE, WAITING, why_bulk_rests, why_not_ready

REFRESH_S: Final = 2.0


@dataclass
class WaitStatus:
    """Reports, once per change, what a job waits for: Redis, a worker, or a model that loads.

    Once the producer is closed, its methods raise a PosterError: nobody waits any more.
    """

    producer: Producer
    refreshed_at: float = -1e9
    reported: str = ""

    def refresh(self) -> None:
        """Report the state of the workers, at most every REFRESH_S."""
        self._check_open()
        if time.monotonic() - self.refreshed_at < REFRESH_S:
            return
        self.refreshed_at = time.monotonic()
        try:
            workers, paused = self.producer.workers(), self.producer.claims.paused_since()
        except RedisUnreachable as error:
            self.report(error)
            return
        failed = [worker for worker in workers if worker.state == FAILED]
        ready = [worker for worker in workers if worker.state == READY]
        if rests := why_bulk_rests(paused, workers):
            way_out = "" if paused is None else f"; `{program()} resume` ends it"
            self._notify(f"the bulk lane rests: {rests}{way_out}. Waiting for it; Ctrl-C leaves, the job stays.")
        elif ready and all(map(why_not_ready, ready)):
            about = f"the fault of {ready[0].name}"
            self._notify(f"worker {ready[0].name} {why_not_ready(ready[0])}. Waiting; Ctrl-C leaves.", about)
        elif ready:
            self._notify("" if not self.reported else "a worker is ready")
        elif failed:
            self._notify(f"worker {failed[0].name} cannot start: {failed[0].get('reason')}")
        elif workers and (workers[0].state == WAITING or workers[0].get("stage") == STORE):
            self._notify(f"worker {workers[0].name} is waiting: {workers[0].get('reason')}")
        elif workers:
            self._notify(f"worker {workers[0].name} is loading {workers[0].get('model') or 'its model'} …")
        else:
            self._notify(
                f"no worker is alive: start one with `{worker_command()}`. "
                "Waiting for it; Ctrl-C leaves, the job stays."
            )

    def report(self, error: RedisUnreachable) -> None:
        """Report that Redis is unreachable: once, however its messages differ.

        Raises:
            CommandForbidden: `error` is one: nobody grants a right because a command waits for it.
        """
        self._check_open()
        if isinstance(error, CommandForbidden):
            raise error
        self.refreshed_at = time.monotonic()  # do not report a worker as ready in between
        self._notify(f"{error} Waiting for it; Ctrl-C leaves.", about="Redis")

    def _check_open(self) -> None:
        if self.producer.is_closed:
            raise PosterError("the producer was closed; what was sent is done, send the rest again")

    def _notify(self, text: str, about: str = "") -> None:
        """Report a text unless it was the last one; `about` stands for the text where it may vary."""
        if text and (about or text) != self.reported:
            notify(text)
        self.reported = about or text
