"""The command ``index`` as a background process."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from producer.client import Job
from tests.support.installation import adds_up
from tests.support.wait import TIMEOUT_S, wait_for

if TYPE_CHECKING:
    from tests.support.chaos_installation import ChaosInstallation


class IndexProcess:
    """A running ``index --json`` and its job."""

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
        """Its job; waits until the ledger has it."""
        if not self._job:
            job_store = self.installation.producer.job_store
            new = wait_for(lambda: set(job_store.list_jobs()) - self._known, "a job in the ledger")
            self._job = new.pop()
        return self.installation.producer.job(self._job)

    def finish(self, *, status: int = 0, within_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Wait for its end; returns the counts that it printed, after checking that they add up."""
        try:
            out, self.err = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stderr = self.process.communicate()[1]
            logs = "\n".join(worker.log_text()[-4000:] for worker in self.installation.workers)
            raise AssertionError(f"index did not end within {within_s} s; its output: {stderr}\n{logs}") from None
        finally:
            self.installation.running.remove(self)
        assert self.process.returncode == status, (self.process.returncode, self.err)
        counts: dict[str, Any] = json.loads(out)
        assert adds_up(counts), counts
        return counts

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()
        self.installation.running.remove(self)
