"""What is said to a person, and the ledger as a line or an object."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from worker.progress import Progress


def say(text: str) -> None:
    """Tell a person something, without tearing a progress bar."""
    tqdm.write(text, file=sys.stderr)


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
