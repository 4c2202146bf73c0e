"""How a command that waited for a job ends: with what failed, or with a job that goes on without it."""

from __future__ import annotations

import sys
from heapq import nsmallest
from typing import Final, NoReturn

from producer.client import Producer
from producer.commands.group import EX_INTERRUPTED
from producer.voice import say
from worker.progress import Progress

SHOWN: Final = 20  # failures that a person reads without asking for them


def say_failures(producer: Producer, progress: Progress) -> None:
    """Name what failed and why, and say where the rest can be read."""
    failures = nsmallest(SHOWN, producer.ledger.failures(progress.job)) if progress.failed else []
    for failure in failures:
        say(f"failed: {failure.path}: {failure.word}: {failure.reason}")
    if progress.failed > SHOWN:
        say(f"… and {progress.failed - SHOWN} more: `python -m producer failures {progress.job}`")
    root = producer.settings.root
    if any(failure.word == "missing" and (root / failure.path).is_file() for failure in failures):
        theirs = ", ".join(sorted({worker.get("root") for worker in producer.workers()} - {""})) or "another folder"
        say(f"files that are missing for the worker are here: it looks under {theirs}, this program under {root}")


def leave_interrupted(interrupt: KeyboardInterrupt) -> NoReturn:
    """Say that the job goes on, and how to follow or stop it; leave with status 130."""
    job = interrupt.args[0] if interrupt.args else "last"
    say(f"interrupted; job {job} goes on. Follow it: `python -m producer status {job}`; ")
    say(f"stop it: `python -m producer cancel {job}`")
    sys.exit(EX_INTERRUPTED)
