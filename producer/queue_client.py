"""The queue as producers use it: create jobs, send their batches, list workers, open the store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, starmap
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from producer.collection.scan import unsent
from producer.embedding import Space
from producer.errors import (
    BadMessage,
    ConfigurationError,
    JobUnknown,
    NoWorker,
    RedisUnreachable,
    SpaceMismatch,
    UnreadablePoster,
)
from producer.host import worker_command
from producer.queue.claims import Claims
from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.messages import BULK, AnyBatch, EmbedBatch, Poster, check_options, check_poster, fitting, shown
from producer.queue.progress import Failure
from producer.queue.redelivery import Redelivery
from producer.queue.sender import create_sender, send
from producer.queue.workers import Announcement, WorkerRegistry, common_space
from producer.redis_client import retry_until_available
from producer.settings import Settings, load_settings, without_password
from producer.vectors import open_store

if TYPE_CHECKING:
    from producer.vectors.base import VectorStore

SPACE_CHECK_S: Final = 2.0  # between two checks, while a long job is sent, that the workers' model is still the same
OnWait = Callable[[RedisUnreachable], object]


class SentSteps(Protocol):
    """A job whose steps are being recorded: its id, and how many there are so far."""

    id: str
    steps: int


class QueueClient:
    """Queue, ledger and workers of one installation, for sending and following jobs.

    Every method that talks to Redis raises RedisUnreachable within 5 s when it does not answer.
    Threads may share an instance.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: from config.json and the environment. Connects on first use."""
        self.settings = settings or load_settings()
        keep_s = self.settings.keep_jobs_days * 86400
        self.job_store = JobStore(self.settings.redis_url, claim_s=self.settings.claim_s, keep_s=keep_s)
        self.registry = WorkerRegistry(self.settings.redis_url)
        self.claims, self.dead_letters = Claims(self.job_store), DeadLetters(self.job_store)
        self._app = create_sender(self.settings)
        self._redelivery = Redelivery(self.claims, self.job_store, self.send)
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_job(self, keep_s: int | None = None) -> str:
        """Create a job; its id begins with the time in UTC."""
        job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        self.job_store.create(job_id, keep_s=keep_s, root=str(self.settings.root.resolve()))
        return job_id

    def feed(
        self,
        job: SentSteps,
        posters: Iterable[Poster | Failure],
        *,
        lane: str = BULK,
        force: bool = False,
        space: str | None = None,
        verify: bool = False,
        is_current: Callable[[Sequence[Poster]], set[str]] = lambda posters: set(),
        on_wait: OnWait | None = None,
    ) -> Iterator[int]:
        """Record and send batch after batch; yields the number of posters read so far.

        A batch is sent for each number that the caller takes: that is how it keeps its window.

        Args:
            posters: read lazily; a Failure among them is counted as it is, and so is a poster that no worker could read
                (`check_poster`).
            space: id of the only space that the vectors may land in; None: the one that the workers
                make when the first batch is sent with a worker ready. A worker of another fails them.
            verify: let the worker compare contents, and trust no modification time.
            is_current: of some posters, the ids whose vectors are up to date; they are not sent.
            on_wait: called while Redis is unreachable, which is then waited for; None: RedisUnreachable is raised.

        Raises:
            ConfigurationError: an argument that no worker would understand (`check_options`); nothing was recorded.
            LedgerSetBack: Redis came back without the job, or without some of its steps.
            SpaceMismatch: the workers have different models, or were given another one; nothing more is sent.
        """
        self.check_options(lane=lane, force=force, space=space, verify=verify)
        source, checked_at = starmap(_checked, enumerate(posters, 1)), time.monotonic()
        wait = partial(retry_until_available, on_wait=on_wait)
        seen, is_wanted = 0, True
        while is_wanted and (block := list(islice(source, self.settings.posters_per_batch))):
            seen += len(block)
            failures = [item for item in block if isinstance(item, Failure)]
            candidates = list({item.id: item for item in block if isinstance(item, Poster)}.values())
            current = is_current(candidates) if candidates and not force else set()
            todo = [poster for poster in candidates if poster.id not in current]
            if space is None or time.monotonic() - checked_at > SPACE_CHECK_S:
                space, checked_at = wait(partial(self._confirmed_space, space)), time.monotonic()
            settled: dict[str, Any] = {"unchanged": len(current), "failures": failures}
            for part in list(fitting(todo)) or [()]:
                name = f"{job.id}.{job.steps + 1}"
                batch = EmbedBatch(job.id, name, part, lane, space, force, verify) if part else None
                record = partial(self.job_store.record_step, job.id, job.steps + 1, batch=batch, **settled)
                if not (is_wanted := wait(record)):
                    break  # the job was cancelled
                job.steps, settled = job.steps + 1, {}
                if batch is not None:
                    wait(partial(self.send, batch))
            yield seen
        wait(partial(self.job_store.mark_sent, job.id, job.steps))

    def feed_all(self, job: SentSteps, posters: Iterable[Poster | Failure], **options: Any) -> None:
        """`feed` to its end. An error withdraws what was queued, so that no job stays open.

        An outage of Redis alone leaves it: the workers do what was recorded.
        """
        try:
            for _ in self.feed(job, posters, **options):
                pass
        except RedisUnreachable:
            raise
        except BaseException:
            with suppress(RedisUnreachable, JobUnknown):
                self.claims.cancel(job.id)
                self.job_store.mark_sent(job.id)
            raise

    @staticmethod
    def check_options(*, lane: str, force: bool = False, space: str | None = None, verify: bool = False) -> None:
        """Refuse what a worker would refuse in a batch, before it is recorded; ConfigurationError names it."""
        try:
            check_options({"lane": lane, "space": space, "force": force, "verify": verify})
        except BadMessage as error:
            raise ConfigurationError(str(error)) from None

    def workers(self, *, at_least_one: bool = False) -> list[Announcement]:
        """The workers that are alive; NoWorker if there is none and `at_least_one` is set."""
        alive = self.registry.alive()
        return some_worker(alive, self.settings) if at_least_one else alive

    def space(self) -> Space | None:
        """See common_space."""
        return common_space(self.workers())

    def lane_state(self, lane: str) -> tuple[int, float | None]:
        """How many messages wait on a lane, and the age in seconds of the job of the next one; None: of none."""
        count, job = self.claims.waiting(lane)
        created = self.job_store.created(job) if job else None
        return count, None if created is None else max(0.0, round(time.time() - created, 1))

    def store(self) -> VectorStore:
        """Open the store; the caller closes it."""
        return open_store(self.settings.store, self.settings.store_mode)

    def send(self, batch: AnyBatch) -> None:
        """Put a batch on its lane; it must be recorded already."""
        send(self._app, batch)

    def redeliver_if_due(self) -> int:
        """Send returned and lost batches again, if a scan is due. Returns how many."""
        return self._redelivery.run()

    def close(self) -> None:
        """Close the connections. What another thread still sends, or waits for, ends with an error."""
        self.is_closed = True
        self._redelivery.close()
        self.registry.close()
        self.job_store.close()
        self._app.close()

    def _confirmed_space(self, space: str | None) -> str | None:
        """The space that the workers make vectors of; SpaceMismatch when it is not `space` any more."""
        known = self.space()
        if known is None or space in (None, known.id):
            return known.id if known else space
        raise SpaceMismatch(
            f"the workers' model was changed while posters were being sent: they make vectors of {known.id} now, and "
            f"the job was begun for {space}. Run the same command again"
        )


def some_worker(alive: list[Announcement], settings: Settings) -> list[Announcement]:
    """The workers that are alive; NoWorker if there is none."""
    if not alive:
        url = without_password(settings.redis_url)
        raise NoWorker(f"no worker is alive at {url}: start one with `{worker_command()}`")
    return alive


def _checked(number: int, item: Poster | Failure) -> Poster | Failure:
    """The item, or the Failure of a poster that no worker could read: its neighbors must not fail with it."""
    if isinstance(item, Failure):
        return item
    try:
        return check_poster(item)
    except BadMessage as error:
        return unsent(UnreadablePoster(shown(item.path), "unsupported", f"it cannot be sent: {error}"), number)
