"""An installation that is made to suffer: faults, a journal of the work done, and the invariant after them.

The invariant (`ChaosWorld.check`): every accepted poster ended as exactly one of {a vector, a failure
with a reason}; the counts add up; nothing is open or queued; and every vector in the store, not only
the job's, is the one that the reference gives for the very bytes whose digest stands beside it, which
are the bytes of its own file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis as redis_py
from redis_server import RedisServer
from world import Worker, World, adds_up

from bench.image_samples import encoded, picture
from producer.client import Job, Producer
from worker.clip_embedder import CLIPEmbedder
from worker.errors import PosterError, RedisUnreachable
from worker.messages import QUEUES
from worker.progress import Progress

AOF = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")  # as docker-compose.yml starts it
SAME = 1e-5  # between the reference and a stored vector: float32 in batches of other sizes differ by 5e-8
OTHER = 1e-3  # between any two different posters there is more than that
LOOK_S = 0.02
LONG_S = 120.0  # a noisy machine with two cores starts a worker in 20 s


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


class ChaosWorld(World):
    """A world with a Redis of its own that keeps an AOF, and workers that carry `mischief`."""

    def __init__(self, folder: Path, *, pause_s: float = 0.05, **settings: str) -> None:
        """`pause_s` is slept before each forward pass, so that there is a middle to hit."""
        (folder / "redis").mkdir(parents=True)
        (folder / "mischief").mkdir()
        server = RedisServer(AOF, folder=folder / "redis")
        if settings.get("store") == "redis":  # the same server, another database, as docker-compose.yml has it
            settings["store"] = server.url.removesuffix("/0") + "/1"
        super().__init__(folder, server, **settings)
        self.running: list[Running] = []
        self._producers: list[Producer] = []
        self._mischief = folder / "mischief"
        self.environment |= {"MISCHIEF": str(self._mischief), "MISCHIEF_SLEEP_S": str(pause_s)}
        self._references: dict[tuple[str, str], np.ndarray] = {}  # (space, digest) → vector
        self._embedders: dict[str, CLIPEmbedder] = {}
        self.learn(self.model)
        self._drawn = 0

    # people and posters

    def worker(self, name: str, *arguments: str, **environment: str) -> Worker:
        return super().worker(name, "--include", "mischief", *arguments, **environment)

    def index_in_background(self, below: str = "", *, batch: int, **environment: str) -> Running:
        """Start ``index`` for a folder below the root, and go on."""
        return Running(self, str(self.root / below), "--batch", str(batch), **environment)

    def producer_with(self, **settings: Any) -> Producer:
        """Another producer of this installation, closed with it."""
        self._producers.append(Producer(self.settings.model_copy(update=settings)))
        return self._producers[-1]

    def draw(self, count: int, prefix: str = "p", ending: bytes = b"") -> list[str]:
        """Posters that differ as pictures, not only as bytes: a vector under a wrong id shows."""
        names = []
        for number in range(count):
            name = f"{prefix}{number:04}.jpg"
            self.paint(name, ending)
            names.append(name)
        return names

    def paint(self, name: str, ending: bytes = b"") -> None:
        """Draw one poster, another picture each time; put in place at once, as an editor saves."""
        self._drawn += 1
        path, beside = self.root / name, self.root / f"{name}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(encoded(picture(160, 240, seed=1000 + self._drawn), "JPEG", quality=80) + ending)
        beside.replace(path)

    def learn(self, model: str) -> None:
        """Make a model known as a reference, for the space that it makes."""
        embedder = CLIPEmbedder(model, "cpu", precision="fp32")
        self._embedders[embedder.space.id] = embedder

    # faults

    def arm(self, fault: str, text: str = "") -> None:
        """Let one of mischief's faults happen at the next chance."""
        (self._mischief / fault).write_text(text)

    def disarm(self, fault: str) -> None:
        (self._mischief / fault).unlink(missing_ok=True)

    def armed(self, fault: str) -> bool:
        return (self._mischief / fault).exists()

    def kill_child(self, worker: Worker) -> int:
        """kill -9 of the process with the model; its id."""
        pid = worker.child()
        os.kill(pid, signal.SIGKILL)
        return pid

    def new_child(self, worker: Worker, old: int) -> None:
        """Wait until another child is ready."""
        wait_for(lambda: self.patiently(worker.child) != old, "a new child")
        worker.wait_until_ready()

    @contextmanager
    def redis_from_the_past(self) -> Iterator[None]:
        """Redis as it was when the block began: its AOF is put back, as from a stale disk or copy."""
        now, past = self.redis.folder / "appendonlydir", self.folder / "past"
        with self.redis.client as client:
            client.config_set("appendfsync", "always")  # so that the copy is whole
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

    # what was done

    def passes(self) -> list[tuple[float, int, int]]:
        """The journal of forward passes: monotonic seconds, process id, images."""
        try:
            lines = (self._mischief / "passes").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(float(at), int(pid), int(images)) for at, pid, images in map(str.split, lines)]

    def embedded(self) -> int:
        """Images that went through the model so far, whatever became of them."""
        return sum(images for _, _, images in self.passes())

    def wait_for_pass(self, after: float, within_s: float = LONG_S) -> float:
        """Seconds from `after` (monotonic) to the first forward pass after it."""
        return wait_for(lambda: [at for at, _, _ in self.passes() if at > after], "a forward pass", within_s)[0] - after

    def wait_for_some(self, job: Job, at_least: int, within_s: float = LONG_S) -> Progress:
        """Until so many posters of the job are stored."""

        def enough() -> Progress | None:
            progress = job.progress()
            return progress if progress.settled + progress.doing >= at_least else None

        return wait_for(lambda: self.patiently(enough), f"{at_least} posters done", within_s)

    def wait_for_a_finish(self, job: Job, since: float, within_s: float = LONG_S) -> float:
        """Seconds from `since` (monotonic) until the ledger counts the next batch."""
        before = self.patiently(job.progress)

        def more() -> bool:
            progress = job.progress()
            return progress.settled > before.settled or progress.at_rest

        wait_for(lambda: self.patiently(more), "a batch counted", within_s)
        return time.monotonic() - since

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Ask again while Redis is away."""
        ends = time.monotonic() + LONG_S
        while True:
            try:
                return call()
            except RedisUnreachable:
                if time.monotonic() > ends:
                    raise
                time.sleep(LOOK_S)

    # the invariant

    def check(
        self,
        job: Job | str,
        accepted: Collection[str],
        failing: Mapping[str, str] | None = None,
        *,
        replaced: Collection[str] = (),
    ) -> Progress:
        """The invariant, for a job that is at rest, and for the whole store.

        Args:
            accepted: ids that the job took.
            failing: of those, the ones that must have failed → the word.
            replaced: ids whose file changed meanwhile: their row may still speak of older bytes, but
                then so do its size and time, so that the next `index` embeds them anew.
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
        """No batch is open, and the queues run empty: what is left in them was a duplicate."""
        for name in self.producer.ledger.active():
            assert self.producer.job(name).progress().open_batches == 0, name
        if any(worker.process.poll() is None for worker in self.workers):
            with self.redis.client as client:
                wait_for(lambda: not any(client.llen(queue) for queue in QUEUES.values()), "empty queues", 30)

    def check_store(self, replaced: Collection[str] = ()) -> set[str]:
        """Every vector of every space against the reference; ids of the space that the workers make now."""
        store = self.producer.store()
        try:
            for info in store.spaces():
                self._check_space(store, info.space.id, replaced)
            space = self.producer.space()
            current = space.id if space else store.current()
            return {name for names, _ in store.scan(current) for name in names} if current else set()
        finally:
            store.close()

    def _check_space(self, store: Any, space: str, replaced: Collection[str]) -> None:
        for names, vectors in store.scan(space):
            rows = store.rows(space, names)
            self._learn_files(space, [name for name in names if (self.root / name).exists()])
            for name, vector in zip(names, vectors, strict=True):
                row, path = rows[name], self.root / name
                if name not in replaced and path.exists():
                    assert row.digest == _digest(path), f"{name}: its row speaks of other bytes"
                    assert row.size == path.stat().st_size
                elif path.exists() and row.digest != _digest(path):
                    assert (row.size, row.mtime_ns) != (path.stat().st_size, path.stat().st_mtime_ns), name
                reference = self._references.get((space, row.digest))
                assert reference is not None, f"{name}: a vector of bytes that no file ever had"
                distance = float(np.abs(reference - vector).max())
                if distance > SAME:
                    nearest = min(self._references, key=lambda key: float(np.abs(self._references[key] - vector).max()))
                    raise AssertionError(f"{name} in {space} is {distance:g} from its reference; nearest is {nearest}")

    def _learn_files(self, space: str, names: Sequence[str]) -> None:
        new = {(space, _digest(self.root / name)): self.root / name for name in names}
        new = {key: path for key, path in new.items() if key not in self._references}
        if new:
            result = self._embedders[space].embed_paths(list(new.values()), batch_size=64)
            for key, vector in zip((list(new)[index] for index in result.indices), result.vectors, strict=True):
                self._references[key] = vector

    def remember(self, names: Sequence[str]) -> None:
        """Keep the references of files that are about to be replaced or deleted."""
        for space in self._embedders:
            self._learn_files(space, names)

    def recover(self) -> None:
        """Take back what a scenario that failed has left behind."""
        if self.redis.is_up:
            self.redis.resume()
        else:
            self.redis.start()
        for running in list(self.running):
            running.close()
        for fault in self._mischief.iterdir():
            if fault.name != "passes":
                fault.unlink()

    def close(self) -> None:
        if self.redis.is_up:
            self.redis.resume()
        for running in list(self.running):
            running.close()
        for producer in self._producers:
            producer.close()
        super().close()
        self.redis.close()


def wait_for(look: Callable[[], Any], what: str, within_s: float = LONG_S) -> Any:
    """Until `look` returns something true; Redis may be away meanwhile. Returns it."""
    ends = time.monotonic() + within_s
    while True:
        try:
            found = look()
        except (PosterError, redis_py.RedisError, AssertionError):
            found = None
        if found:
            return found
        if time.monotonic() > ends:
            raise AssertionError(f"waited {within_s:.0f} s in vain for {what}")
        time.sleep(LOOK_S)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
