"""Health: which facts make a worker not ready, when they end it, and how they are collected."""

import errno
import os
import threading

import pytest

from producer.errors import DeviceLost, StoreUnavailable
from worker.runtime.health import (
    AWAY_S,
    DEVICE,
    END_AWAY_S,
    END_S,
    PROBE_S,
    RETRIED_S,
    ROOT,
    STEP_S,
    STORE,
    UNTAKEN_S,
    Away,
    Facts,
    Fault,
    Health,
    Prober,
    fault_of,
)

FULL = OSError(errno.ENOSPC, "the disk is full")
NOTICED_S = 30  # what the documentation promises
REPORTED_S = 2.5  # the look at the lanes, and the heartbeat that publishes


@pytest.fixture
def health(clock):
    return Health(clock)


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(work="batch j.1", step_s=STEP_S),
        Facts(work="batch j.1", step_s=59, step_limit_s=60),
        Facts(step_s=1e6),
        Facts(untaken_s=UNTAKEN_S),
        Facts(away=(Away(STORE, AWAY_S, "locked"),)),
        Facts(failing_s=AWAY_S, failure="locked"),
    ],
)
def test_what_may_pass_is_no_fault(facts):
    """Up to the limits, and without work in hand nobody waits for a step."""
    assert fault_of(facts) == Fault()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(work="batch j.1", step_s=STEP_S + 0.1), "nothing has moved for more than 12 s in batch j.1"),
        (Facts(work="requests", step_s=61, step_limit_s=60), "nothing has moved for more than 60 s in requests"),
        (
            Facts(untaken_s=UNTAKEN_S + 0.1),
            "it takes no messages: some have waited for more than 12 s while it was idle",
        ),
        (Facts(away=(Away(DEVICE, AWAY_S + 0.1, ""),)), "the device does not answer"),
        (
            Facts(away=(Away(ROOT, 1, "x"), Away(STORE, AWAY_S + 0.1, "it is locked"))),
            "the store is out of reach: it is locked",
        ),
        (Facts(failing_s=AWAY_S + 0.1, failure="it is full"), "batches fail, and are tried again: it is full"),
    ],
)
def test_what_lasts_is_a_fault_in_words(facts, reason):
    """Which names what is out of order."""
    assert fault_of(facts) == Fault(reason, ends=False)


@pytest.mark.parametrize(
    ("facts", "ends"),
    [
        (Facts(untaken_s=UNTAKEN_S + END_S), False),
        (Facts(untaken_s=UNTAKEN_S + END_S + 0.1), True),
        (Facts(away=(Away(DEVICE, AWAY_S + END_S + 0.1, ""),)), True),
        (Facts(away=(Away(STORE, AWAY_S + END_AWAY_S, ""),)), False),
        (Facts(away=(Away(STORE, AWAY_S + END_AWAY_S + 0.1, ""),)), True),
        (Facts(away=(Away(ROOT, AWAY_S + END_AWAY_S + 0.1, ""),)), True),
        (Facts(work="batch j.1", step_s=800), False),
        (Facts(failing_s=1e6, failure="it is full"), False),
    ],
)
def test_only_what_a_restart_may_mend_ends_the_worker(facts, ends):
    """A batch has its own time limit, and one that fails is tried again for as long as it takes."""
    fault = fault_of(facts)
    assert fault.reason
    assert fault.ends is ends


def test_all_of_it_is_noticed_within_half_a_minute():
    """The store may be asked when it has just been asked; the others are watched all the time."""
    assert max(STEP_S, UNTAKEN_S, AWAY_S + PROBE_S) + REPORTED_S < NOTICED_S


def test_a_step_may_take_twice_as_long_as_the_longest_of_late(health, clock):
    """A large model on a CPU takes a minute for a chunk, as its warm-up has shown."""
    health.expect(20)
    with health.steps("batch j.1"):
        clock.now += 39
        assert health.fault() == Fault()
        clock.now += 2
        assert health.fault().reason == "nothing has moved for more than 40 s in batch j.1"
        health.step()
        assert health.fault() == Fault()
        for _ in range(100):
            clock.now += 1
            health.step()
        clock.now += STEP_S + 0.1
        assert health.fault().reason, "long ago"
    assert health.fault() == Fault()


def test_the_thread_that_hangs_is_found_beside_one_that_works(health, clock):
    """Requests are answered while a batch hangs, or the other way round."""
    done, begun = threading.Event(), threading.Event()

    def hang():
        with health.steps("batch j.1"):
            begun.set()
            done.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    assert begun.wait(10)
    assert not health.is_idle
    clock.now += STEP_S + 1
    with health.steps("requests"):
        health.step()
        assert health.fault().reason.endswith("in batch j.1")
    done.set()
    thread.join()
    assert health.is_idle


def test_only_an_idle_worker_that_takes_nothing_is_at_fault(health, clock):
    """Lanes that are empty at one look, a message in hand, and an outage of Redis begin the time anew."""

    def look(hold_messages=True):
        health.lanes(hold_messages=hold_messages)
        clock.now += UNTAKEN_S - 1
        return health.fault().reason

    assert not look()
    health.lanes(hold_messages=False)
    assert not look()
    with health.message():
        assert not look()
        assert not look()
    assert not look()
    health.redis_is_away()
    assert not look()
    assert look().startswith("it takes no messages")
    with health.message():
        assert health.fault() == Fault()


def test_a_store_that_is_away_and_back(health, clock):
    """The reason is that of the last try, the time that of the first."""

    def fail():
        raise StoreUnavailable(f"tried at {clock.now:.0f}")

    health.probe(STORE, fail)
    clock.now += 5
    health.probe(STORE, fail)
    assert health.fault() == Fault()
    clock.now += AWAY_S - 4
    assert health.fault().reason == "the store is out of reach: tried at 5"
    clock.now += END_AWAY_S
    assert health.fault().ends
    health.redis_is_away()
    assert health.fault() == Fault(), "nobody could have read it meanwhile"
    health.probe(STORE, lambda: None)
    clock.now += END_AWAY_S
    assert health.fault() == Fault()


def test_a_folder_that_is_gone_is_named_without_a_number(health, clock, tmp_path):
    """An operator reads it, not a program."""
    health.probe(ROOT, lambda: os.scandir(tmp_path / "gone"))
    clock.now += AWAY_S + 1
    gone = tmp_path / "gone"
    assert health.fault().reason == f"the posters root is out of reach: No such file or directory: {gone}"


def test_what_gives_no_answer_is_away_since_it_was_asked(health, clock):
    """A network drive that hangs, or a card."""
    asked, answer = threading.Event(), threading.Event()

    def hang():
        asked.set()
        answer.wait(10)

    thread = threading.Thread(target=health.probe, args=(ROOT, hang))
    thread.start()
    assert asked.wait(10)
    clock.now += AWAY_S + 1
    assert health.fault().reason == "the posters root does not answer"
    answer.set()
    thread.join()
    assert health.fault() == Fault()


def test_batches_that_keep_failing_are_a_fault_until_one_is_done(health, clock):
    """An empty posters root, a full disk: messages are taken and released, again and again."""
    health.failed(FULL)
    clock.now += AWAY_S + 1
    assert health.fault() == Fault(), "it may be tried again any moment"
    health.failed(FULL)
    assert health.fault().reason == "batches fail, and are tried again: the disk is full"
    clock.now += RETRIED_S + 1
    assert health.fault() == Fault(), "its job was cancelled"
    health.failed(FULL)
    clock.now += AWAY_S + 1
    health.failed(FULL)
    health.done()
    assert health.fault() == Fault()


@pytest.mark.parametrize("error", [DeviceLost("the card is gone"), KeyError("a defect")])
def test_a_lost_device_and_a_defect_end_the_probes(health, monkeypatch, error):
    """With them the process, as a green light that nobody watches is worse than none."""
    monkeypatch.setattr("worker.runtime.health.PROBE_S", 0)
    failed = []

    def fail():
        raise error

    Prober(health, {DEVICE: fail}, failed.append).run()
    assert failed == [error]
