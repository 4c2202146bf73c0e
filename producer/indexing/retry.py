"""Send the failed posters of a job again, as a new job."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import chain
from pathlib import Path

from producer.client import Producer
from producer.collection.scan import was_sent
from producer.host import program
from producer.indexing.dispatch import follow, progress_bar
from producer.indexing.waiting import WaitStatus
from producer.job import Job
from producer.output import notify
from producer.queue.messages import Poster
from producer.queue.progress import Failure, Progress
from producer.redis_client import retry_until_available


def retry_failed(
    producer: Producer,
    job: Job,
    only: str | None = None,
    ids: Collection[str] | None = None,
    *,
    quiet: bool = False,
    on_job: Callable[[Job], object] = lambda job: None,
) -> Progress | None:
    """Send the failures of `job` again within the window, and wait for them; None where there are none.

    Args:
        only: one of errors.FAILURE_WORDS; None: all.
        ids: of these posters alone; None: of all.
        quiet: show no progress bar.
        on_job: called with the new job before anything of it is sent.

    Raises:
        JobUnknown: there is no such job.
        KeyboardInterrupt: with the new job's id; nothing more of it is sent.
    """
    failed = job.progress().failed
    call = partial(retry_until_available, on_wait=WaitStatus(producer).report)
    failures = producer.job_store.failures(job.id, call)
    found = (one for one in failures if only in (None, one.word) and (ids is None or one.id in ids))
    first = next(found, None)  # the rest is read while it is sent: there may be a million
    if first is None:
        return None
    new = producer.begin()
    on_job(new)
    notify(f"sending the failed posters of job {job.id} as job {new.id}")
    is_all = only is None and ids is None
    if is_all:
        call(partial(producer.job_store.note_expected, new.id, failed))
    posters = (_retried(failure, producer.settings.catalogue) for failure in chain([first], found))
    with progress_bar(quiet=quiet, total=failed if is_all else None) as bar:
        feed = partial(producer.feed, new, posters)
        again = f"run `{program()} retry {job.id}`"
        return follow(producer, new, lambda on_wait: feed(on_wait=on_wait), bar, again=again)


def _retried(failure: Failure, catalogue: Path | None) -> Poster | Failure:
    """The poster to send again; a failure that was never sent stays one."""
    return Poster(failure.id, failure.path) if was_sent(failure, catalogue) else failure
