"""What is said to a person, and the ledger as a line or an object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from producer.errors import PosterError
from producer.queue.progress import Failure, Progress

if TYPE_CHECKING:
    from producer.queue_client import QueueClient


SHOWN: Final = 20  # failures that a person reads without asking for them


def notify(text: str) -> None:
    """Tell a person something, without tearing a progress bar."""
    tqdm.write(text, file=sys.stderr)


def notify_failures(queue: QueueClient, progress: Progress, failures: Sequence[Failure] | None = None) -> None:
    """Name what failed and why, and say where the rest can be read.

    Args:
        queue: whose ledger, and whose workers.
        progress: of the job.
        failures: its first ones, as many as SHOWN or more; None: the ledger is asked for them.
    """
    if failures is None:
        failures = nsmallest(SHOWN, queue.job_store.failures(progress.job)) if progress.failed else ()
    for failure in failures[:SHOWN]:
        notify(f"failed: {failure.path}: {failure.word}: {failure.reason}")
    if progress.failed > SHOWN:
        notify(f"… and {progress.failed - SHOWN} more: `python -m producer failures {progress.job}`")
    root = queue.settings.root
    if any(failure.word == "missing" and (root / failure.path).is_file() for failure in failures[:SHOWN]):
        with suppress(PosterError):  # a hint
            theirs = ", ".join(sorted({worker.get("root") for worker in queue.workers()} - {""})) or "another folder"
            notify(
                f"files that are missing for the worker are here: it looks under {theirs}, this program under {root}"
            )


def ledger_entry(progress: Progress) -> dict[str, Any]:
    """The ledger line as an object: job, counts, seconds, images per second (embedded ones)."""
    seconds = round(progress.seconds, 3)
    return {
        "job": progress.job,
        "submitted": progress.submitted,
        "embedded": progress.embedded,
        "reused": progress.reused,
        "unchanged": progress.unchanged,
        "failed": progress.failed,
        "seconds": seconds,
        "images_per_second": round(progress.embedded / seconds, 1) if seconds else 0.0,
    }


def ledger_line(progress: Progress) -> str:
    """The ledger as one line of text: names and values, separated by blanks."""
    return " ".join(f"{name} {value}" for name, value in ledger_entry(progress).items())
