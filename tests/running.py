"""``index`` in the background, while things happen to it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from patience import LONG_S, wait_for
from world import adds_up

from producer.client import Job

if TYPE_CHECKING:
    from chaos_world import ChaosWorld


class Running:
    """``index --json`` in the background, and its job."""

    def __init__(self, world: ChaosWorld, *arguments: str, **environment: str) -> None:
        known = set(world.patiently(world.producer.ledger.jobs)) if world.redis.is_up else set()
        self.world = world
        self.process = world.start("index", "--json", *arguments, **environment)
        self._known, self._job = known, ""
        world.running.append(self)

    @property
    def job(self) -> Job:
        """The job, as soon as the ledger has it."""
        if not self._job:
            ledger = self.world.producer.ledger
            found = wait_for(lambda: set(ledger.jobs()) - self._known, "a job in the ledger")
            self._job = found.pop()
        return self.world.producer.job(self._job)

    def finish(self, *, status: int = 0, within_s: float = LONG_S) -> dict[str, Any]:
        """Wait for its end; the ledger that it printed, which adds up."""
        try:
            out, self.err = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = self.process.communicate()[1]
            logs = "\n".join(worker.said()[-4000:] for worker in self.world.workers)
            raise AssertionError(f"index did not end within {within_s} s; it said {said}\n{logs}") from None
        finally:
            self.world.running.remove(self)
        assert self.process.returncode == status, (self.process.returncode, self.err)
        ledger: dict[str, Any] = json.loads(out)
        assert adds_up(ledger), ledger
        return ledger

    def close(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.communicate()
        self.world.running.remove(self)
