"""Values that the ledger returns: progress, failures, verdicts on claims, outcomes of batches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple


class Failure(NamedTuple):
    """A poster that failed: its id, its path, one of errors.FAILURE_WORDS, one sentence."""

    id: str
    path: str
    word: str
    reason: str


class Claim(Enum):
    """The verdict on a worker's claim of a batch."""

    WORK = "work"  # it is claimed
    FINISHED = "finished"  # finished or cancelled before: acknowledge, do nothing
    BUSY = "busy"  # another worker holds it, or it pauses
    PAUSED = "paused"  # its lane is paused: it rests, and is sent again after that
    CANCELLED = "cancelled"  # its job was cancelled before a worker began it: withdraw it


@dataclass(frozen=True)
class Outcome:
    """The result of one batch; its parts add up to the batch."""

    embedded: int = 0
    reused: int = 0
    unchanged: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def posters(self) -> int:
        """How many posters it is the result of."""
        return self.embedded + self.reused + self.unchanged + len(self.failures)

    def counts(self) -> dict[str, int]:
        """The counts by name."""
        counts = {"embedded": self.embedded, "reused": self.reused, "unchanged": self.unchanged}
        return counts | {"failed": len(self.failures)}

    def summary(self) -> str:
        """The counts, for a log."""
        return ", ".join(f"{count} {name}" for name, count in self.counts().items())


@dataclass(frozen=True)
class Progress:
    """A job at one moment.

    `doing` counts posters of
    unfinished batches that are already stored, for a progress bar; they are in no other count yet.
    `steps` is how many steps of sending the ledger holds. `state` is one of

    sending     a producer sends more
    sent        all is sent, and batches are open
    finished    all is sent, and none is open
    cancelled   what no worker had begun was withdrawn
    abandoned   its producer died while it sent
    """

    job: str
    state: str
    submitted: int
    embedded: int
    reused: int
    unchanged: int
    failed: int
    cancelled: int
    doing: int
    open_batches: int
    steps: int
    created: float
    ended: float | None
    expected: int = 0  # posters that its producer has counted; 0: unknown

    @property
    def settled(self) -> int:
        """Posters that are embedded, reused, unchanged or failed."""
        return self.embedded + self.reused + self.unchanged + self.failed

    @property
    def done(self) -> int:
        """Posters that are settled, or stored by a batch in progress."""
        return self.settled + self.doing

    @property
    def total(self) -> int | None:
        """Posters of the whole job; None while its producer still sends and has not counted them."""
        if self.state != "sending":
            return self.submitted
        return max(self.expected, self.submitted) if self.expected else None

    @property
    def per_second(self) -> float:
        """Posters done per second since the job began."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the end at the speed so far; None where that is unknown, 0 at rest."""
        if self.at_rest:
            return 0.0
        if self.total is None or not self.done:
            return None
        return max(0, self.total - self.done) / max(self.per_second, 1e-9)

    @property
    def at_rest(self) -> bool:
        """True when no batch is open and no producer sends more."""
        return self.state != "sending" and self.open_batches == 0

    @property
    def is_balanced(self) -> bool:
        """At rest, ``submitted == embedded + reused + unchanged + failed``; or something else changed the ledger."""
        return not self.at_rest or self.submitted == self.settled

    @property
    def seconds(self) -> float:
        """From the first batch to the end, or to now."""
        return max(0.0, (self.ended if self.ended is not None else time.time()) - self.created)


NOTHING: Final = Progress("", "finished", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)  # of no job: nothing had to be sent
