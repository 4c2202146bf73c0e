"""An installation with fault injection, a journal of forward passes, and the invariant that must hold afterwards.

The invariant (`ChaosInstallation.check`): every accepted poster ended as exactly one of {a vector, a failure
with a reason}; the counts add up; nothing is open or queued; and every vector in the store, not only
those of the job, equals its reference (reference_vectors.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.image_samples import encoded, picture
from producer.client import Job, Producer
from producer.errors import RedisUnreachable
from producer.queue.messages import QUEUES
from producer.queue.progress import Progress
from tests.support.index_process import IndexProcess
from tests.support.installation import Installation, Worker, adds_up
from tests.support.redis_server import RedisServer
from tests.support.reference_vectors import ReferenceVectors
from tests.support.tcp_proxy import TCPProxy
from tests.support.wait import POLL_S, TIMEOUT_S, wait_for

AOF = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")  # as docker-compose.yml starts it


class ChaosInstallation(Installation):
    """An installation with a Redis server of its own that keeps an AOF, and workers that load fault_injection."""

    forks_workers = False
    proxy: TCPProxy | None = None

    def __init__(
        self, folder: Path, *, pause_s: float = 0.05, server: RedisServer | None = None, **settings: str
    ) -> None:
        """Workers sleep `pause_s` before each forward pass, so that a fault can strike in the middle of a batch.

        `server`: Redis, if not one of its own; `close` closes either.
        """
        (folder / "faults").mkdir(parents=True)
        if server is None:
            (folder / "redis").mkdir()
            server = RedisServer(AOF, folder=folder / "redis")
        if settings.get("store") == "redis":  # the same server, another database, as in docker-compose.yml
            settings["store"] = server.url.removesuffix("/0") + "/1"
        super().__init__(folder, server, **settings)
        self.running: list[IndexProcess] = []
        self._producers: list[Producer] = []
        self._faults = folder / "faults"
        self.environment |= {"FAULTS": str(self._faults), "FAULT_SLEEP_S": str(pause_s)}
        self.references = ReferenceVectors(self.root)
        self.references.learn(self.model)
        self._drawn = 0

    def put_behind_proxy(self) -> TCPProxy:
        """Let workers and the command line reach Redis through a proxy; the tests' own producer does not."""
        self.proxy = TCPProxy(self.redis.port)
        self.environment["POSTERS_REDIS_URL"] = self.redis.url.replace(f":{self.redis.port}/", f":{self.proxy.port}/")
        return self.proxy

    # workers, producers and posters

    def worker(self, name: str, *arguments: str, **environment: str) -> Worker:
        return super().worker(name, "--include", "tests.support.fault_injection", *arguments, **environment)

    def index_in_background(self, below: str = "", *, batch: int, **environment: str) -> IndexProcess:
        """Start ``index`` for a folder below the root and return at once."""
        return IndexProcess(self, str(self.root / below), "--batch", str(batch), **environment)

    def producer_with(self, **settings: Any) -> Producer:
        """Another producer of this installation with other settings; `close` closes it."""
        self._producers.append(Producer(self.settings.model_copy(update=settings)))
        return self._producers[-1]

    def draw(self, count: int, prefix: str = "p", ending: bytes = b"") -> list[str]:
        """Write posters that differ as images, not only as bytes, so that a vector under a wrong id is noticed."""
        names = []
        for number in range(count):
            name = f"{prefix}{number:04}.jpg"
            self.paint(name, ending)
            names.append(name)
        return names

    def paint(self, name: str, ending: bytes = b"") -> None:
        """Write one poster with a new image each time, replaced atomically, as an editor saves."""
        self._drawn += 1
        path, temporary = self.root / name, self.root / f"{name}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(encoded(picture(160, 240, seed=1000 + self._drawn), "JPEG", quality=80) + ending)
        temporary.replace(path)

    # faults

    def interrupted(
        self, name: str, fault: Callable[[], object], *, count: int = 120, batch: int = 12, at: int = 12
    ) -> tuple[float, int]:
        """Run a job with `fault` in its middle; returns seconds to the next counted batch, and images embedded twice.

        `at`: posters that are stored before the fault.
        """
        names, before = self.draw(count, f"{name}/"), self.embedded()
        running = self.index_in_background(name, batch=batch)
        self.wait_for_some(running.job, at)
        fault()
        over = time.monotonic()
        assert not running.job.progress().at_rest, "the fault came too late to be one"
        recovered = self.wait_for_a_finish(running.job, over)
        self.check(running.finish()["job"], names)
        return recovered, self.embedded() - before - count

    def arm(self, fault: str, text: str = "") -> None:
        """Arm a fault of fault_injection.py; it strikes when its place in the code is reached."""
        (self._faults / fault).write_text(text)

    def disarm(self, fault: str) -> None:
        (self._faults / fault).unlink(missing_ok=True)

    def armed(self, fault: str) -> bool:
        return (self._faults / fault).exists()

    def kill_child(self, worker: Worker) -> int:
        """Kill the child that holds the model (SIGKILL); returns its process id."""
        pid = worker.child()
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_for_new_child(self, worker: Worker, old: int) -> None:
        """Wait until another child than `old` is ready."""
        wait_for(lambda: self.wait_for_redis(worker.child) != old, "a new child")
        worker.wait_until_ready()

    @contextmanager
    def stale_redis(self) -> Iterator[None]:
        """At the end of the block, put back the AOF of its beginning, as from a stale disk or backup."""
        now, past = self.redis.folder / "appendonlydir", self.folder / "past"
        with self.redis.client as client:
            client.config_set("appendfsync", "always")  # so that the copy is complete
        self.redis.pause()
        shutil.copytree(now, past)
        self.redis.resume()
        try:
            yield
        finally:
            self.redis.kill()
            shutil.rmtree(now)
            past.rename(now)
            self.redis.start()

    # the work that was done

    def passes(self) -> list[tuple[float, int, int]]:
        """The journal of forward passes as (monotonic seconds, process id, images)."""
        try:
            lines = (self._faults / "passes").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(float(at), int(pid), int(images)) for at, pid, images in map(str.split, lines)]

    def embedded(self) -> int:
        """Number of images that went through the model so far, including work that was lost."""
        return sum(images for _, _, images in self.passes())

    def wait_for_pass(self, after: float, within_s: float = TIMEOUT_S) -> float:
        """Wait for the first forward pass after `after` (monotonic); returns the seconds between them."""
        return wait_for(lambda: [at for at, _, _ in self.passes() if at > after], "a forward pass", within_s)[0] - after

    def wait_for_some(self, job: Job, at_least: int, within_s: float = TIMEOUT_S) -> Progress:
        """Wait until `at_least` posters of the job are stored."""

        def enough() -> Progress | None:
            progress = job.progress()
            return progress if progress.settled + progress.doing >= at_least else None

        return wait_for(lambda: self.wait_for_redis(enough), f"{at_least} posters done", within_s)

    def wait_for_a_finish(self, job: Job, since: float, within_s: float = TIMEOUT_S) -> float:
        """Wait until the ledger counts the next batch; returns the seconds from `since` (monotonic)."""
        before = self.wait_for_redis(job.progress)

        def more() -> bool:
            progress = job.progress()
            return progress.settled > before.settled or progress.at_rest

        wait_for(lambda: self.wait_for_redis(more), "a batch counted", within_s)
        return time.monotonic() - since

    def wait_for_redis(self, call: Callable[[], Any]) -> Any:
        """Repeat a call while Redis is unreachable."""
        ends = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return call()
            except RedisUnreachable:
                if time.monotonic() > ends:
                    raise
                time.sleep(POLL_S)

    # the invariant

    def check(
        self,
        job: Job | str,
        accepted: Collection[str],
        failing: Mapping[str, str] | None = None,
        *,
        replaced: Collection[str] = (),
    ) -> Progress:
        """Assert the invariant for a job that is at rest, and for the whole store.

        Args:
            accepted: ids that the job accepted.
            failing: those of them that must have failed → the failure's word.
            replaced: as for ReferenceVectors.check.
        """
        job = self.producer.job(job) if isinstance(job, str) else job
        progress, failing = job.progress(), failing or {}
        assert progress.at_rest, progress
        assert progress.doing == 0, progress
        assert adds_up(vars(progress) | {"job": job.id}), progress
        assert progress.submitted == len(accepted), progress
        failures = {failure.id: failure.word for failure in job.failures()}
        assert failures == dict(failing)
        assert all(failure.reason for failure in job.failures())
        assert progress.failed == len(failures), progress
        stored = self.check_store(replaced)
        missing = set(accepted) - stored - set(failures)
        assert not missing, f"lost: neither a vector nor a failure: {sorted(missing)[:5]}"
        both = set(failures) & stored
        assert not both, f"a vector and a failure: {sorted(both)[:5]}"
        self.check_nothing_open()
        return progress

    def check_nothing_open(self) -> None:
        """Assert that no batch is open and that the queues run empty; what is left in them are duplicates."""
        if all(worker.process.poll() is not None for worker in self.workers):
            return  # no worker is left to empty them
        ledger = self.producer.job_store

        def at_rest() -> bool:
            return not any(ledger.progress(name).open_batches for name in ledger.list_active())

        wait_for(at_rest, "other jobs' batches", 60)
        with self.redis.client as client:
            wait_for(lambda: not any(client.llen(queue) for queue in QUEUES.values()), "empty queues", 30)

    def check_store(self, replaced: Collection[str] = ()) -> set[str]:
        """Compare every vector with its reference; returns the ids in the space of the current workers."""
        store = self.producer.store()
        try:
            self.references.check(store, replaced)
            space = self.producer.space()
            current = space.id if space else store.current()
            return {name for names in store.ids(current) for name in names} if current else set()
        finally:
            store.close()

    def recover(self) -> None:
        """Undo what a failed scenario has left behind."""
        if self.redis.is_up:
            self.redis.resume()
        else:
            self.redis.start()
        for running in list(self.running):
            running.close()
        for fault in self._faults.iterdir():
            if fault.name != "passes":
                fault.unlink()

    def close(self) -> None:
        if self.redis.is_up:
            self.redis.resume()
        for running in list(self.running):
            running.close()
        if self.proxy is not None:
            self.proxy.close()
        for producer in self._producers:
            producer.close()
        super().close()
        self.redis.close()
