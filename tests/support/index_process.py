"""``index`` in the background, while things happen to it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from producer.client import Job
from tests.support.installation import adds_up
from tests.support.wait import LONG_S, wait_for

if TYPE_CHECKING:
    from tests.support.chaos_installation import ChaosInstallation


class IndexProcess:
    """``index --json`` in the background, and its job."""

    def __init__(self, installation: ChaosInstallation, *arguments: str, **environment: str) -> None:
        known = (
            set(installation.wait_for_redis(installation.producer.job_store.list_jobs))
            if installation.redis.is_up
            else set()
        )
        self.installation = installation
        self.process = installation.start("index", "--json", *arguments, **environment)
        self._known, self._job = known, ""
        installation.running.append(self)

    @property
    def job(self) -> Job:
        """The job, as soon as the ledger has it."""
        if not self._job:
            ledger = self.installation.producer.job_store
            found = wait_for(lambda: set(ledger.list_jobs()) - self._known, "a job in the ledger")
            self._job = found.pop()
        return self.installation.producer.job(self._job)

    def finish(self, *, status: int = 0, within_s: float = LONG_S) -> dict[str, Any]:
        """Wait for its end; the ledger that it printed, which adds up."""
        try:
            out, self.err = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = self.process.communicate()[1]
            logs = "\n".join(worker.said()[-4000:] for worker in self.installation.workers)
            raise AssertionError(f"index did not end within {within_s} s; it said {said}\n{logs}") from None
        finally:
            self.installation.running.remove(self)
        assert self.process.returncode == status, (self.process.returncode, self.err)
        ledger: dict[str, Any] = json.loads(out)
        assert adds_up(ledger), ledger
        return ledger

    def close(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.communicate()
        self.installation.running.remove(self)
