"""How a command that is interrupted ends: with a job that goes on without it."""

from __future__ import annotations

import sys
from typing import NoReturn

from producer.commands.group import EX_INTERRUPTED
from producer.voice import say


def leave_interrupted(interrupt: KeyboardInterrupt) -> NoReturn:
    """Say that the job goes on, and how to follow or stop it; leave with status 130."""
    job = interrupt.args[0] if interrupt.args else "last"
    say(f"interrupted; job {job} goes on. Follow it: `python -m producer status {job}`; ")
    say(f"stop it: `python -m producer cancel {job}`")
    sys.exit(EX_INTERRUPTED)
