"""WaitStatus: what `index` says while it waits."""

from types import SimpleNamespace

import pytest

from producer.host import program
from producer.indexing.waiting import WaitStatus
from producer.queue.workers import LOADING, READY, Announcement

QUIET = Announcement("a@h/7/x", READY, {"quiet_until": "2026-11-29T23:30+01:00"})
OTHER = Announcement("b@h/8/x", READY, {})
PAUSED = f"rests: paused since 1970-01-01 00:00:05 UTC; `{program()} resume` ends it. Waiting for it"
FAULTY = Announcement("d@h/9/x", READY, {"fault": "the store does not answer"})
LOADS = Announcement("c@h/9/x", LOADING, {"model": "M"})


@pytest.mark.parametrize(
    ("paused", "workers", "said"),
    [
        (None, [QUIET, LOADS], "the bulk lane rests: quiet hours until 23:30. Waiting for it; Ctrl-C leaves"),
        (None, [QUIET, OTHER], ""),
        (None, [LOADS], "worker c@h is loading M …"),
        (None, [FAULTY, LOADS], "worker d@h is ready, but the store does not answer. Waiting; Ctrl-C leaves."),
        (None, [FAULTY, OTHER], ""),
        (5.0, [QUIET], PAUSED),
        (5.0, [], PAUSED),
    ],
)
def test_it_says_what_a_job_waits_for(capsys, paused, workers, said):
    """A pause before quiet hours, and both before the state of workers; nothing where one works."""
    claims = SimpleNamespace(paused_since=lambda: paused)
    status = WaitStatus(SimpleNamespace(is_closed=False, workers=lambda: workers, claims=claims))
    status.refresh()
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) == bool(said)
