"""Enqueue posters and follow them: the one way to the queue, for the command line and for a backend."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from producer.collection.resolve import Naming
from producer.embedding import Space
from producer.errors import ConfigurationError, NoWorker, RedisUnreachable, SpaceMismatch
from producer.job import Job
from producer.on_demand import Interactive
from producer.queue.claims import Custody
from producer.queue.dead_letters import Quarantine
from producer.queue.jobs import Ledger
from producer.queue.messages import BULK, EmbedBatch, Poster, fitting
from producer.queue.progress import Failure
from producer.queue.redelivery import Repair
from producer.queue.sender import create_sender, send, send_query
from producer.queue.workers import Announcement, Announcements, common_space
from producer.settings import Settings, load_settings, without_password
from producer.vectors import open_store
from producer.vectors.tagged import SpacedVectors

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore


RETRY_S: Final = 1.0  # between two tries to reach a Redis that is away
SPACE_LOOK_S: Final = 2.0  # how soon a producer that sends a long job notices that the model was changed
Item = TypeVar("Item")


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
        self.custody, self.quarantine = Custody(self.ledger), Quarantine(self.ledger)
        self.on_wait: Callable[[RedisUnreachable], object] = lambda error: None  # called while `feed` waits
        self._app = create_sender(self.settings)
        self._interactive = Interactive(self, partial(send_query, self._app))
        self._repair = Repair(self.custody, self.ledger, self.send)
        self._naming = Naming(self.settings)

    def enqueue(self, paths: Iterable[str | Path], *, lane: str = BULK, force: bool = False) -> Job:
        """Queue posters and return at once.

        Args:
            paths: relative to the current folder or to the posters root, or absolute below it.
            lane: BULK, or INTERACTIVE for what somebody waits for.
            force: embed even what the store already holds.

        Paths are read lazily, a batch at a time. Redis has to hold all that is queued, about 80 kB for a batch
        of 256: for a collection of millions use ``python -m producer index``, which keeps a window.

        Raises:
            ConfigurationError: a path lies outside the posters root, its id belongs to another file, or the
                catalogue, which gives ids, cannot be read; what was queued before is withdrawn.
            RedisUnreachable: Redis is away, or full; what was queued before that goes on under the job.
        """
        if isinstance(paths, str | Path):
            raise ConfigurationError(f"enqueue takes a list of paths, not one path: enqueue([{str(paths)!r}])")
        posters = map(self.poster, paths)
        first = list(islice(posters, self.settings.posters_per_batch))  # a wrong path here leaves no job behind
        job = self.begin()
        try:
            for _ in self.feed(job, chain(first, posters), lane=lane, force=force):
                pass
        except ConfigurationError:
            job.cancel()
            self.ledger.sent(job.id)
            raise
        return job

    def embed(self, path: str | Path, timeout: float = 5.0) -> SpacedVectors:
        """Embed one poster ahead of all bulk work and wait for its vector, float32 (dimension,), unit length.

        A poster that the store holds and that has not changed is answered from there, without a worker, where
        the store can be seen from here. Else it waits for the batch that is in work, as all that is ahead of
        bulk work does, and its vector is stored. The vector knows its space (``vector.space``), so that
        Index.search can refuse one of another model.

        Raises:
            NoWorker: nobody works on the queue.
            UnreadablePoster: the poster failed; says why. ConfigurationError: as `enqueue`.
            EmbedTimeout: no vector within `timeout` seconds; the request is withdrawn.
            SpaceMismatch: the workers' models are not one, or were changed while this call waited.
        """
        return self._interactive.embed(self.poster(path), timeout)

    def embed_image(self, image: bytes, timeout: float = 5.0, name: str = "the image") -> SpacedVectors:
        """Embed an image that is no poster, an upload for example: as `embed`, and nothing of it is stored.

        Args:
            image: the bytes of an image file, at most queries.MOST_BYTES.
            timeout: seconds.
            name: what the error calls it.

        Raises:
            NoWorker, UnreadablePoster, EmbedTimeout: as `embed`.
        """
        return self._interactive.embed_image(image, timeout, name)

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
        """The space that the workers make vectors of; None while none is ready.

        Raises:
            SpaceMismatch: they make vectors of more than one.
        """
        return common_space(self.workers())

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
        space: str | None = None,
        verify: bool = False,
        is_current: Callable[[Sequence[Poster]], set[str]] = lambda posters: set(),
        patient: bool = False,
    ) -> Iterator[int]:
        """Write down and send batch after batch; yields the number of posters seen so far.

        Nothing is sent until the caller asks for the next number: that is how a window is kept.

        Args:
            posters: read lazily; a Failure among them is counted as it is.
            space: id of the only space that the vectors may land in; None: the one that the workers
                make when the first batch is sent with a worker ready. A worker of another fails them.
            verify: let the worker compare contents, and trust no modification time.
            is_current: of some posters, the ids whose vectors are up to date; they are not sent.
            patient: wait for a Redis that is away, instead of raising; `on_wait` hears of it.

        Raises:
            LedgerSetBack: Redis came back without the job, or without some of its steps.
            SpaceMismatch: the workers' models are not one, or were changed meanwhile; nothing more is sent.
        """
        source, looked = iter(posters), time.monotonic()
        seen, is_wanted = 0, True
        while is_wanted and (block := list(islice(source, self.settings.posters_per_batch))):
            seen += len(block)
            failures = [item for item in block if isinstance(item, Failure)]
            candidates = list({item.id: item for item in block if isinstance(item, Poster)}.values())
            current = is_current(candidates) if candidates and not force else set()
            todo = [poster for poster in candidates if poster.id not in current]
            if space is None or time.monotonic() - looked > SPACE_LOOK_S:
                space, looked = self._persist(partial(self._agreed, space), patient), time.monotonic()
            settled: dict[str, Any] = {"unchanged": len(current), "failures": failures}
            for part in list(fitting(todo)) or [()]:
                name = f"{job.id}.{job.steps + 1}"
                batch = EmbedBatch(job.id, name, part, lane, space, force, reply, verify) if part else None
                write = partial(self.ledger.step, job.id, job.steps + 1, batch=batch, **settled)
                is_wanted = self._persist(write, patient)
                if not is_wanted:
                    break  # the job was cancelled
                job.steps, settled = job.steps + 1, {}
                if batch is not None:
                    self._persist(partial(self.send, batch), patient)
            yield seen
        self._persist(partial(self.ledger.sent, job.id, job.steps), patient)

    def poster(self, path: str | Path) -> Poster:
        """A file as the queue names it; as Naming.poster."""
        return self._naming.poster(path)

    def send(self, batch: EmbedBatch) -> None:
        """Put a batch on its lane; it must stand in the ledger already."""
        send(self._app, batch)

    def repair_if_due(self) -> int:
        """Look for lost batches, if it is time again, and send them again; how many."""
        return self._repair.run()

    def close(self) -> None:
        """Let go of the connections."""
        self._repair.close()
        self.announcements.close()
        self._interactive.close()
        self.ledger.close()
        self._app.close()

    def _agreed(self, space: str | None) -> str | None:
        """The space that the workers make; SpaceMismatch when it is not `space` any more."""
        known = self.space()
        if known is None or space in (None, known.id):
            return known.id if known else space
        raise SpaceMismatch(
            f"the workers' model was changed while posters were being sent: they make vectors of {known.id} now, and "
            f"the job was begun for {space}. Run the same command again"
        )

    def _persist(self, call: Callable[[], Item], patient: bool) -> Item:
        while True:
            try:
                return call()
            except RedisUnreachable as error:
                if not patient:
                    raise
                self.on_wait(error)
                time.sleep(RETRY_S)
