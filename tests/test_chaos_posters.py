"""Posters that kill, change, or vanish: after each, the invariant of chaos_world.py."""

import math
import time

import pytest
from chaos_table import scenario
from mischief import ABORT


@pytest.mark.parametrize(("count", "attempts"), [(4, 1), pytest.param(64, 2, marks=pytest.mark.chaos)])
@scenario(
    "one of {count} posters makes the decoder abort (`POSTERS_ATTEMPTS={attempts}`)",
    "found by halving: it alone fails, as `crashed-worker`; its neighbours are stored",
)
def test_a_poster_that_aborts_the_decoder(fresh, measured, count, attempts):
    """What a broken codec library does: abort() in the process that holds the model."""
    world = fresh(pause_s=0, attempts=str(attempts))
    names = world.draw(count - 1)
    bad = world.draw(1, "bad", ABORT)[0]
    names.insert(count // 2 + 1, bad)
    worker = world.worker("w").wait_until_ready()
    job = world.producer.enqueue([world.root / name for name in names])
    began = time.monotonic()
    assert job.wait(400).at_rest, worker.said()
    seconds = time.monotonic() - began
    world.check(job, names, {bad: "crashed-worker"})
    crashes = worker.said().count(" ready: ") - 1
    sizes = int(math.log2(count)) + 1
    assert 1 <= crashes <= attempts * sizes
    measured(seconds, world.embedded() - (count - 1), f"until all was done, with {crashes} crashes")


@pytest.mark.chaos
@scenario(
    "two poisonous posters in two batches, and another job behind them",
    "each fails alone; the other job is done meanwhile or after, whole",
)
def test_several_poisonous_posters(fresh, measured):
    """One sender's broken collection must not cost another sender a poster."""
    world = fresh(pause_s=0, attempts="1")
    worker = world.worker("w").wait_until_ready()
    mixed, bad = [], []
    for number in range(2):
        mixed += world.draw(3, f"m{number}-")
        bad += world.draw(1, f"bad{number}-", ABORT)
        mixed.append(bad[-1])
    others = world.draw(16, "other")
    producer = world.producer_with(posters_per_batch=4)
    began = time.monotonic()
    job = producer.enqueue([world.root / name for name in mixed])
    other = producer.enqueue([world.root / name for name in others])
    assert other.wait(400).at_rest, worker.said()
    assert job.wait(400).at_rest, worker.said()
    world.check(job, mixed, dict.fromkeys(bad, "crashed-worker"))
    world.check(other, others)
    measured(time.monotonic() - began, world.embedded() - 6 - 16, "until all was done")


@scenario(
    "posters replaced and deleted between sending and embedding",
    "the vector is that of the bytes that were read, with their digest; the deleted one fails as `missing`; "
    "the next `index` finds every change",
)
def test_posters_that_change_meanwhile(enduring, measured):
    """A person tidies up while the queue is long."""
    world = enduring
    names = world.draw(60, "change/")
    world.references.remember(names)
    running = world.index_in_background("change", batch=60)
    world.wait_for_some(running.job, 1)
    replaced, deleted = names[0:60:3], names[40:60:3]
    deleted = [name for name in deleted if name not in replaced]
    for name in deleted:  # first: painting takes longer than a worker's chunk
        (world.root / name).unlink()
    for name in replaced:
        world.paint(name)
    ledger = running.finish(status=1)
    failing = {failure.id: failure.word for failure in world.producer.job(ledger["job"]).failures()}
    assert failing
    assert set(failing) <= set(deleted)
    world.check(ledger["job"], names, dict.fromkeys(failing, "missing"), replaced=replaced)
    again = world.index(str(world.root / "change"))
    left = [name for name in names if name not in deleted]
    assert again["submitted"] == len(left)
    assert again["embedded"] <= len(replaced)
    world.check(again["job"], left)
    measured(None, None, f"{again['embedded']} of {len(replaced)} were read before they were replaced")


@pytest.mark.chaos
@scenario(
    "posters that are overwritten in place all the time while they are read",
    "each ends as a vector of what its bytes were, or fails by name; "
    "once the writer rests, `index` makes all of them right",
)
def test_posters_written_while_they_are_read(enduring, measured):
    """A download folder: half files, files that change between stat and read."""
    world = enduring
    names = world.draw(24, "busy/")
    before = {name: (world.root / name).read_bytes() for name in names}
    other = dict(zip(names, [before[name] for name in [*names[1:], names[0]]], strict=True))
    for contents in (other, before):
        for name in names:
            (world.root / name).write_bytes(contents[name])
        world.references.remember(names)
    running = world.index_in_background("busy", batch=12)
    while running.process.poll() is None:
        for name in names:
            for data in (other[name], before[name]):
                with (world.root / name).open("wb") as file:
                    file.write(data[:700])
                    file.flush()
                    time.sleep(0.001)
                    file.write(data[700:])
    status = running.process.returncode
    assert status in (0, 1)
    ledger = running.finish(status=status)
    words = {failure.id: failure.word for failure in world.producer.job(ledger["job"]).failures()}
    assert set(words.values()) <= {"truncated", "unreadable", "missing"}
    world.check(ledger["job"], names, words, replaced=names)
    again = world.index(str(world.root / "busy"))
    world.check(again["job"], names)
    measured(None, None, f"{len(words)} of 24 were caught half-written, and failed by name")
