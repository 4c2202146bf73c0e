"""Enqueue posters and follow them: the one way to the queue, for the command line and for a backend."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from producer.catalogue import Catalogue, read_catalogue
from producer.folders import inside_root, poster_id
from worker.announcement import READY, Announcement, Announcements
from worker.celery import create_app, send
from worker.errors import EmbedTimeout, NoWorker, RedisUnreachable, UnreadablePoster
from worker.ledger import REPLY_S, Ledger
from worker.messages import BULK, INTERACTIVE, EmbedBatch, Poster
from worker.progress import Failure, Progress
from worker.repair import Repair
from worker.settings import Settings, load_settings, without_password
from worker.space import Space
from worker.vectors import Vectors, open_store

if TYPE_CHECKING:
    from worker.vectors import VectorStore

FIRST_LOOK_S: Final = 0.002  # an interactive answer comes within milliseconds
LATER_LOOK_S: Final = 0.2
REPAIR_S: Final = 5.0  # how often a waiting producer looks for lost batches
RETRY_S: Final = 1.0  # between two tries to reach a Redis that is away

Item = TypeVar("Item")


class Job:
    """One run of the producer, as the ledger knows it. Cheap: holds an id, asks the ledger each time."""

    def __init__(self, producer: Producer, job_id: str) -> None:
        """Jobs come from Producer.enqueue and Producer.job."""
        self.id = job_id
        self._producer = producer

    def progress(self) -> Progress:
        """The counts of this moment.

        Raises:
            JobUnknown: the ledger has no such job (any more).
        """
        return self._producer.ledger.progress(self.id)

    def wait(self, timeout: float | None = None, on_progress: Callable[[Progress], None] | None = None) -> Progress:
        """Wait until nothing of the job is open; send again what was lost meanwhile.

        Args:
            timeout: seconds; None waits for as long as it takes.
            on_progress: called at every look, several times a second.

        Returns:
            The last progress seen; ``at_rest`` is False when the time ran out.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_LOOK_S
        while True:
            progress = self.progress()
            if on_progress:
                on_progress(progress)
            left = pause if ends is None else min(pause, ends - time.monotonic())
            if progress.at_rest or left <= 0:
                return progress
            self._producer.repair_if_due()
            time.sleep(left)
            pause = min(1.5 * pause, LATER_LOOK_S)

    def failures(self) -> list[Failure]:
        """Every failure with its word and sentence, ordered by poster id."""
        return sorted(self._producer.ledger.failures(self.id))

    def cancel(self) -> int:
        """Withdraw what no worker has begun; how many posters. A batch in work is finished and counted."""
        return self._producer.ledger.cancel(self.id)


class Producer:
    """The queue's entrance. Needs Redis, the settings, and nothing of the model.

    Every method that talks to Redis raises RedisUnreachable within 5 s when it does not answer.
    One instance may be kept for the life of a backend and shared between its threads.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: from config.json and the environment. Connects on first use."""
        self.settings = settings or load_settings()
        keep_s = self.settings.keep_jobs_days * 86400
        self.ledger = Ledger(self.settings.redis_url, claim_s=self.settings.claim_s, keep_s=keep_s)
        self.announcements = Announcements(self.settings.redis_url)
        self._app = create_app(self.settings)
        self._repair = Repair(self.settings.redis_url, self.ledger, self.send)
        self._repaired = time.monotonic()
        self._catalogue: Catalogue | None = None
        self._reading = threading.Lock()

    def enqueue(self, paths: Iterable[str | Path], *, lane: str = BULK, force: bool = False) -> Job:
        """Queue posters and return at once.

        Args:
            paths: relative to the current folder or to the posters root, or absolute below it.
            lane: BULK, or INTERACTIVE for what somebody waits for.
            force: embed even what the store already holds.

        Raises:
            ConfigurationError: a path lies outside the posters root, or the catalogue, which gives
                posters their ids, cannot be read; nothing was queued.
            RedisUnreachable: Redis is away; what was queued before that goes on under the job.
        """
        posters = list({poster.id: poster for poster in map(self._poster, paths)}.values())
        job = self.begin()
        for _ in self.feed(job, posters, lane=lane, force=force):
            pass
        return job

    def embed(self, path: str | Path, timeout: float = 5.0) -> Vectors:
        """Embed one poster ahead of all bulk work and wait for its vector, float32 (dimension,), unit length.

        A poster that the store holds and that has not changed is answered from there.

        Raises:
            NoWorker: nobody works on the queue.
            UnreadablePoster: the poster failed; says why.
            EmbedTimeout: no vector within `timeout` seconds; the request is withdrawn.
        """
        poster = self._poster(path)
        self.workers(at_least_one=True)
        job = self.begin(keep_s=REPLY_S)
        for _ in self.feed(job, [poster], lane=INTERACTIVE, reply=True):
            pass
        progress = job.wait(timeout)
        raw = self.ledger.vectors(job.id, [poster.id]).get(poster.id)
        if raw is not None:
            return np.frombuffer(raw, "<f4").astype(np.float32)
        for failure in job.failures():
            raise UnreadablePoster(failure.path, failure.word, failure.reason)
        job.cancel()
        raise EmbedTimeout(
            f"no vector for {poster.path} within {timeout:g} s (job {job.id} is {progress.state}): "
            "the worker is busy with a batch or still loads its model; `python -m producer doctor` tells"
        )

    def job(self, job_id: str) -> Job:
        """A job by its id, or the newest one by ``last``; JobUnknown shows on first use."""
        if job_id == "last":
            job_id = next(iter(self.ledger.jobs(most=1)), job_id)
        return Job(self, job_id)

    def workers(self, *, at_least_one: bool = False) -> list[Announcement]:
        """Who is alive; NoWorker if that is nobody and `at_least_one` is asked for."""
        alive = self.announcements.everybody()
        if at_least_one and not alive:
            raise NoWorker(
                f"no worker is alive at {without_password(self.settings.redis_url)}: "
                "start one with `celery -A worker worker`"
            )
        return alive

    def space(self) -> Space | None:
        """The space that the workers make vectors of; None while none is ready."""
        for worker in self.workers():
            if worker.state == READY and worker.get("space_json"):
                return Space.from_json(worker.get("space_json"))
        return None

    def store(self) -> VectorStore:
        """Open the store for reading; the caller closes it."""
        return open_store(self.settings.store)

    # the steps that `enqueue` and the command line share

    def begin(self, keep_s: int | None = None) -> Job:
        """Begin a job in the ledger. Its id tells when, in UTC."""
        job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        self.ledger.create(job_id, keep_s=keep_s, root=str(self.settings.root.resolve()))
        return Job(self, job_id)

    def feed(
        self,
        job: Job,
        posters: Iterable[Poster | Failure],
        *,
        lane: str = BULK,
        force: bool = False,
        reply: bool = False,
        verify: bool = False,
        is_current: Callable[[Sequence[Poster]], set[str]] = lambda posters: set(),
        patient: bool = False,
    ) -> Iterator[int]:
        """Write down and send batch after batch; yields the number of posters seen so far.

        Nothing is sent until the caller asks for the next number: that is how a window is kept.

        Args:
            posters: read lazily; a Failure among them is counted as it is.
            verify: let the worker compare contents, and trust no modification time.
            is_current: of some posters, the ids whose vectors are up to date; they are not sent.
            patient: wait for a Redis that is away, instead of raising.
        """
        source = iter(posters)
        seen = step = 0
        while block := list(islice(source, self.settings.posters_per_batch)):
            seen, step = seen + len(block), step + 1
            failures = [item for item in block if isinstance(item, Failure)]
            candidates = [item for item in block if isinstance(item, Poster)]
            current = is_current(candidates) if candidates and not force else set()
            todo = tuple(poster for poster in candidates if poster.id not in current)
            name = f"{job.id}.{step}"
            batch = EmbedBatch(job.id, name, todo, lane, None, force, reply, verify) if todo else None
            write = partial(self.ledger.step, job.id, step, unchanged=len(current), failures=failures)
            if not self._persist(partial(write, batch=batch), patient):
                break  # the job was cancelled
            if batch is not None:
                self._persist(partial(self.send, batch), patient)
            yield seen
        self._persist(partial(self.ledger.sent, job.id), patient)

    def send(self, batch: EmbedBatch) -> None:
        """Put a batch on its lane; it must stand in the ledger already."""
        send(self._app, batch)

    def repair_if_due(self) -> int:
        """Every REPAIR_S, look for lost batches and send them again; how many."""
        if time.monotonic() - self._repaired < REPAIR_S:
            return 0
        self._repaired = time.monotonic()
        return self._repair.run()

    def close(self) -> None:
        """Let go of the connections."""
        self._repair.close()
        self.announcements.close()
        self.ledger.close()
        self._app.close()

    def _persist(self, call: Callable[[], Item], patient: bool) -> Item:
        while True:
            try:
                return call()
            except RedisUnreachable:
                if not patient:
                    raise
                time.sleep(RETRY_S)

    def _poster(self, path: str | Path) -> Poster:
        root = Path(os.path.realpath(self.settings.root))
        relative = inside_root(root, path)
        key = poster_id(relative)
        place = self._known_catalogue().at([key]).get(key)
        identity = place.id if place is not None else key
        try:
            stat = os.stat(root / relative)
        except OSError:  # not visible from here; the worker decides
            return Poster(identity, relative)
        return Poster(identity, relative, stat.st_size, stat.st_mtime_ns)

    def _known_catalogue(self) -> Catalogue:
        """The catalogue as it is now: read on first use, and again when its file has changed."""
        with self._reading:
            if self._catalogue is None or self._catalogue.is_outdated():
                self._catalogue = read_catalogue(self.settings.catalogue)
            return self._catalogue
