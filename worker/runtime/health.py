"""Health: what a worker with a loaded model notices of itself, when it is not ready, and when it must be restarted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from producer.errors import DeviceLost, PosterError

STEP_S: Final = 12.0  # without a step: chunks take seconds on a CPU, and what asks must know within 30 s
STEP_DECAY: Final = 0.98  # for each step: the longest counts half after 34
UNTAKEN_S: Final = 12.0  # an idle worker takes a message within a second, or after a pause of 2 s (consumer.PAUSE_S)
AWAY_S: Final = 10.0  # a short hiccup of a disk or a network is over by then
RETRIED_S: Final = 90.0  # a batch that failed is tried again before (backoff.MAX_PAUSE_S)
PROBE_S: Final = 5.0  # between two probes
# What a restart may mend ends the worker when it lasts: a card and a consumer do not recover by themselves; a disk or
# a server may come back, and loading the model again takes as long as some of their restarts.
END_S: Final = 60.0
END_AWAY_S: Final = 300.0
DEVICE: Final = "the device"
STORE: Final = "the store"
ROOT: Final = "the posters root"


class Away(NamedTuple):
    """Something that does not answer, or answers with an error."""

    what: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class Facts:
    """What a worker knows of itself at one moment.

    Attributes:
        work: in hand, whose last step is the longest ago; empty: none.
        step_s: since that step.
        step_limit_s: how long one may take.
        untaken_s: for how long messages have been waiting while the worker was idle and took none.
        away: what is out of reach.
        failing_s: for how long batches have been failing for a reason that may pass, and none was done.
        failure: that reason.
    """

    work: str = ""
    step_s: float = 0.0
    step_limit_s: float = STEP_S
    untaken_s: float = 0.0
    away: tuple[Away, ...] = ()
    failing_s: float = 0.0
    failure: str = ""


class Fault(NamedTuple):
    """Why a worker is not ready.

    Attributes:
        reason: in words; empty: it is ready.
        ends: it has lasted so long that the worker must be restarted.
    """

    reason: str = ""
    ends: bool = False


def fault_of(facts: Facts) -> Fault:
    """The fault that the facts amount to.

    A hung batch is ended by its time limit (heartbeat.py), and batches that fail are tried again for as long as it
    takes: neither ends the worker here.
    """
    for away in facts.away:
        if away.seconds > AWAY_S:
            reason = f"is out of reach: {away.reason}" if away.reason else "does not answer"
            limit_s = END_S if away.what == DEVICE else END_AWAY_S
            return Fault(f"{away.what} {reason}", away.seconds > AWAY_S + limit_s)
    if facts.untaken_s > UNTAKEN_S:
        reason = f"it takes no messages: some have waited for more than {UNTAKEN_S:.0f} s while it was idle"
        return Fault(reason, facts.untaken_s > UNTAKEN_S + END_S)
    if facts.work and facts.step_s > facts.step_limit_s:
        return Fault(f"nothing has moved for more than {facts.step_limit_s:.0f} s in {facts.work}")
    if facts.failing_s > AWAY_S:
        return Fault(f"batches fail, and are tried again: {facts.failure}")
    return Fault()


class Health:
    """Collects the facts; threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known yet."""
        self._clock, self._lock = clock, threading.Lock()
        self._longest_step_s = 0.0  # of late
        self._in_hand: dict[int, tuple[str, float]] = {}  # thread → what it works on, and its last step
        self._messages = 0  # in hand
        self._untaken_since: float | None = None
        self._away: dict[str, tuple[float, str]] = {}  # since when, and why
        self._probing: tuple[str, float] | None = None  # what is being asked, since when
        self._failing: tuple[float, float, str] | None = None  # first and last failure in a row, and the last reason

    def expect(self, step_s: float) -> None:
        """A step may take that long."""
        with self._lock:
            self._longest_step_s = max(self._longest_step_s, step_s)

    @contextmanager
    def steps(self, work: str) -> Iterator[None]:
        """The time in which this thread works on something; it begins and ends with a step."""
        thread = threading.get_ident()
        with self._lock:
            self._in_hand[thread] = work, self._clock()
        try:
            yield
        finally:
            self.step()
            with self._lock:
                del self._in_hand[thread]

    def step(self) -> None:
        """This thread has made a step in what it works on, if it does."""
        thread, now = threading.get_ident(), self._clock()
        with self._lock:
            if thread not in self._in_hand:
                return
            work, before = self._in_hand[thread]
            self._longest_step_s = max(now - before, STEP_DECAY * self._longest_step_s)
            self._in_hand[thread] = work, now

    @contextmanager
    def message(self) -> Iterator[None]:
        """The time in which a message is in hand."""
        with self._lock:
            self._messages += 1
            self._untaken_since = None
        try:
            yield
        finally:
            with self._lock:
                self._messages -= 1

    def lanes(self, *, hold_messages: bool) -> None:
        """Note whether messages wait."""
        with self._lock:
            if not hold_messages or self._messages:
                self._untaken_since = None
            elif self._untaken_since is None:
                self._untaken_since = self._clock()

    def redis_is_away(self) -> None:
        """Whatever lasts longer for that reason does not count: nobody can read this worker's fault meanwhile."""
        now = self._clock()
        with self._lock:
            self._untaken_since = None
            self._away = {what: (now, reason) for what, (_, reason) in self._away.items()}

    def failed(self, error: Exception) -> None:
        """A batch failed for a reason that may pass."""
        now = self._clock()
        with self._lock:
            is_first = self._failing is None or now - self._failing[1] > RETRIED_S
            since = now if is_first or self._failing is None else self._failing[0]
            self._failing = since, now, _in_words(error)

    def done(self) -> None:
        """A batch is done."""
        with self._lock:
            self._failing = None

    def probe(self, what: str, ask: Callable[[], object]) -> None:
        """Ask something whether it answers; raises DeviceLost."""
        with self._lock:
            self._probing = what, self._clock()
        try:
            ask()
        except DeviceLost:
            raise
        except (PosterError, OSError, RuntimeError) as error:  # torch's are RuntimeError
            with self._lock:
                since = self._away.get(what, (self._clock(), ""))[0]
                self._away[what] = since, _in_words(error)
        else:
            with self._lock:
                self._away.pop(what, None)
        finally:
            with self._lock:
                self._probing = None

    @property
    def is_idle(self) -> bool:
        """Whether no batch and no request is in hand."""
        return not self._in_hand

    def fault(self) -> Fault:
        """Why this worker is not ready now."""
        return fault_of(self.facts())

    def facts(self) -> Facts:
        """What is known now."""
        with self._lock:
            now = self._clock()
            work, since = min(self._in_hand.values(), key=lambda each: each[1], default=("", now))
            away = {what: (since, reason) for what, (since, reason) in self._away.items()}
            if self._probing is not None:
                what, asked = self._probing
                began, reason = away.get(what, (asked, ""))
                away[what] = min(began, asked), reason
            is_failing = self._failing is not None and now - self._failing[1] <= RETRIED_S
            first, last, failure = self._failing if self._failing and is_failing else (now, now, "")
            return Facts(
                work=work,
                step_s=now - since,
                step_limit_s=max(STEP_S, 2 * self._longest_step_s),
                untaken_s=0.0 if self._untaken_since is None else now - self._untaken_since,
                away=tuple(Away(what, now - began, reason) for what, (began, reason) in away.items()),
                failing_s=now - first if last > first else 0.0,
                failure=failure,
            )


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # without its number
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error) or type(error).__name__


class Prober(threading.Thread):
    """Asks again and again whether device, store and posters root answer, until the process ends."""

    def __init__(
        self, health: Health, probes: Mapping[str, Callable[[], object]], failed: Callable[[Exception], object]
    ) -> None:
        """`failed` is called once, with what ends this thread: DeviceLost, or a defect."""
        super().__init__(name="probes", daemon=True)
        self._health, self._probes, self._failed = health, dict(probes), failed

    def run(self) -> None:
        """Ask every PROBE_S."""
        try:
            while True:
                time.sleep(PROBE_S)
                for what, ask in self._probes.items():
                    self._health.probe(what, ask)
        except Exception as error:  # noqa: BLE001 - nobody would notice that nothing is asked any more
            self._failed(error)
