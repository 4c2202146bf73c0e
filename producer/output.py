"""Messages to a person on stderr, and the ledger line of a job as text or object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from producer.errors import PosterError
from producer.host import program
from producer.queue.progress import Failure, Progress

if TYPE_CHECKING:
    from producer.queue_client import QueueClient


SHOWN_FAILURES: Final = 20  # failures that are listed unasked


def notify(text: str) -> None:
    """Write a line to stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)


def notify_failures(queue: QueueClient, progress: Progress, failures: Sequence[Failure] | None = None) -> None:
    """List the first failures of a job, and the command that lists the rest.

    `failures` are its first ones, as many as SHOWN_FAILURES or more; None: they are read.
    """
    notify_imbalance(progress)
    if failures is None:
        failures = nsmallest(SHOWN_FAILURES, queue.job_store.failures(progress.job)) if progress.failed else ()
    if progress.failed and not failures:
        notify(
            f"Redis has lost which {progress.failed} poster(s) of job {progress.job} failed, and why: index them again"
        )
    for failure in failures[:SHOWN_FAILURES]:
        notify(f"failed: {failure.path}: {failure.word}: {failure.reason}")
    if progress.failed > SHOWN_FAILURES:
        notify(f"… and {progress.failed - SHOWN_FAILURES} more: `{program()} failures {progress.job}`")
    root = queue.settings.root
    if any(failure.word == "missing" and (root / failure.path).is_file() for failure in failures[:SHOWN_FAILURES]):
        with suppress(PosterError):  # a hint
            roots = sorted({worker.get("root") for worker in queue.workers()} - {""})
            searched = ", ".join(roots) or "another folder"
            notify(f"the worker misses files that are here: it reads {searched}, this program reads {root}")


def notify_imbalance(progress: Progress) -> None:
    """Say that the counts of a job do not add up."""
    if not progress.is_balanced:
        notify(
            f"the counts of job {progress.job} do not add up: {progress.submitted} posters were recorded, and "
            f"{progress.settled} are counted. Something else has changed its keys in Redis. Run `{program()} index` "
            "again: it compares every poster with the store"
        )


def ledger_entry(progress: Progress) -> dict[str, Any]:
    """The ledger line as an object: job, counts, seconds, images per second (embedded ones)."""
    seconds = round(progress.seconds, 3)
    speed = round(progress.embedded / seconds, 1) if seconds else 0.0
    counts = ("job", "submitted", "embedded", "reused", "unchanged", "failed")
    return {name: getattr(progress, name) for name in counts} | {"seconds": seconds, "images_per_second": speed}


def ledger_line(progress: Progress) -> str:
    """The ledger line as text: names and values, separated by blanks."""
    return " ".join(f"{name} {value}" for name, value in ledger_entry(progress).items())
