"""Posters that crash the worker, change, or vanish; afterwards the invariant of chaos_installation.py holds."""

import math
import time

import pytest

from tests.support.fault_injection import ABORT, FREEZE
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for


@pytest.mark.chaos
@pytest.mark.parametrize(("count", "attempts"), [(4, 1), (64, 2)])
@scenario(
    "one of {count} posters makes the decoder abort (`POSTERS_ATTEMPTS={attempts}`)",
    "found by bisection: it alone fails, as `crashed-worker`; its neighbors are stored",
)
def test_a_poster_that_aborts_the_decoder(new_installation, measured, count, attempts):
    """As a broken codec library does: abort() in the process that holds the model."""
    installation = new_installation(pause_s=0, attempts=str(attempts))
    names = installation.draw(count - 1)
    bad = installation.draw(1, "bad", ABORT)[0]
    names.insert(count // 2 + 1, bad)
    worker = installation.worker("w").wait_until_ready()
    job = installation.producer.enqueue([installation.root / name for name in names])
    began = time.monotonic()
    assert job.wait(400).at_rest, worker.log_text()
    seconds = time.monotonic() - began
    installation.check(job, names, {bad: "crashed-worker"})
    crashes = worker.log_text().count(" ready: ") - 1
    sizes = int(math.log2(count)) + 1
    assert 1 <= crashes <= attempts * sizes
    measured(seconds, installation.embedded() - (count - 1), f"until all was done, with {crashes} crashes")


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["prefork", "solo"])
@scenario(
    "a decoder that keeps Python's lock for one of 4 posters, so that no thread runs (`--pool {pool}`)",
    "the process ends after `STALL_S` (60 s, here 3 s), without its heartbeat; the poster alone fails",
)
def test_a_poster_that_freezes_the_process(new_installation, measured, pool):
    """As a regular expression that tries for minutes did. A service manager starts a solo worker again."""
    installation = new_installation(pause_s=0, attempts="1", claim_s="3")
    names = installation.draw(3)
    bad = installation.draw(1, "bad", FREEZE)[0]
    options = ["--pool", "solo"] if pool == "solo" else []
    worker = installation.worker("w", *options, FAULT_STALL_S="3").wait_until_ready()
    job = installation.producer.enqueue([installation.root / name for name in [*names, bad]])
    began = time.monotonic()
    while pool == "solo" and not job.wait(5).at_rest:
        if worker.process.poll() is not None:
            worker = installation.worker("w", *options, FAULT_STALL_S="3").wait_until_ready()
    assert job.wait(200).at_rest, worker.log_text()
    installation.check(job, [*names, bad], {bad: "crashed-worker"})
    measured(time.monotonic() - began, None)


@pytest.mark.chaos
@scenario(
    "two crashing posters in two batches, and another job behind them",
    "each fails alone; the other job is completed",
)
def test_several_crashing_posters(new_installation, measured):
    """One sender's broken collection costs another sender no poster."""
    installation = new_installation(pause_s=0, attempts="1")
    worker = installation.worker("w").wait_until_ready()
    mixed, bad = [], []
    for number in range(2):
        mixed += installation.draw(3, f"m{number}-")
        bad += installation.draw(1, f"bad{number}-", ABORT)
        mixed.append(bad[-1])
    others = installation.draw(16, "other")
    producer = installation.producer_with(posters_per_batch=4)
    began = time.monotonic()
    job = producer.enqueue([installation.root / name for name in mixed])
    other = producer.enqueue([installation.root / name for name in others])
    assert other.wait(400).at_rest, worker.log_text()
    assert job.wait(400).at_rest, worker.log_text()
    installation.check(job, mixed, dict.fromkeys(bad, "crashed-worker"))
    installation.check(other, others)
    measured(time.monotonic() - began, installation.embedded() - 6 - 16, "until all was done")


@pytest.mark.chaos
@scenario(
    "posters replaced and deleted between sending and embedding",
    "the vector is that of the bytes that were read, with their digest; the deleted one fails as `missing`; "
    "the next `index` finds every change",
)
def test_posters_that_change_before_they_are_embedded(shared_installation, measured):
    """As when a person tidies up while the queue is long."""
    installation = shared_installation
    names = installation.draw(60, "change/")
    installation.references.remember(names)
    installation.arm("hold")
    running = installation.index_in_background("change", batch=60)
    wait_for(lambda: installation.armed("held"), "a forward pass that waits, with chunks read ahead and others not")
    replaced, deleted = names[0:60:3], names[40:60:3]
    deleted = [name for name in deleted if name not in replaced]
    for name in deleted:
        (installation.root / name).unlink()
    for name in replaced:
        installation.paint(name)
    installation.disarm("hold")
    ledger = running.finish(status=1)
    failing = {failure.id: failure.word for failure in installation.producer.job(ledger["job"]).failures()}
    assert failing
    assert set(failing) <= set(deleted)
    installation.check(ledger["job"], names, dict.fromkeys(failing, "missing"), replaced=replaced)
    again = installation.index(str(installation.root / "change"))
    left = [name for name in names if name not in deleted]
    assert again["submitted"] == len(left)
    assert again["embedded"] <= len(replaced)
    installation.check(again["job"], left)
    measured(None, None, f"{again['embedded']} of {len(replaced)} were read before they were replaced")


@pytest.mark.chaos
@scenario(
    "posters overwritten in place again and again while they are read",
    "each gets the vector of bytes that the file held, or a failure; "
    "once the writer stops, `index` embeds all of them correctly",
)
def test_posters_that_are_written_while_they_are_read(shared_installation, measured):
    """As in a download folder: half files, files that change between stat and read."""
    installation = shared_installation
    names = installation.draw(24, "busy/")
    before = {name: (installation.root / name).read_bytes() for name in names}
    other = dict(zip(names, [before[name] for name in [*names[1:], names[0]]], strict=True))
    for contents in (other, before):
        for name in names:
            (installation.root / name).write_bytes(contents[name])
        installation.references.remember(names)
    running = installation.index_in_background("busy", batch=12)
    while running.process.poll() is None:
        for name in names:
            for data in (other[name], before[name]):
                with (installation.root / name).open("wb") as file:
                    file.write(data[:700])
                    file.flush()
                    time.sleep(0.001)
                    file.write(data[700:])
    status = running.process.returncode
    assert status in (0, 1)
    ledger = running.finish(status=status)
    words = {failure.id: failure.word for failure in installation.producer.job(ledger["job"]).failures()}
    assert set(words.values()) <= {"truncated", "unreadable", "missing"}
    installation.check(ledger["job"], names, words, replaced=names)
    again = installation.index(str(installation.root / "busy"))
    installation.check(again["job"], names)
    measured(None, None, f"{len(words)} of 24 were caught half-written, and failed by name")


@pytest.mark.chaos
@scenario(
    "the posters root is an empty folder for 6 s, as a mount that drops leaves it",
    "the worker waits for it: no poster fails as `missing`",
)
def test_a_root_that_drops(new_installation, measured):
    """Batches are released and retried; one of them is in progress."""
    installation = new_installation()
    names = installation.draw(60)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 10)
    disk = installation.root.rename(installation.root.with_name("disk"))
    installation.root.mkdir()
    wait_for(lambda: "is empty: is its disk mounted?" in worker.log_text(), "the worker's log line")
    time.sleep(6)
    assert not running.job.progress().at_rest
    installation.root.rmdir()
    disk.rename(installation.root)
    back = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, back)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 60)
