"""Processes die, hang, or come late: after each, the invariant of chaos_world.py."""

import os
import time

import pytest
from chaos_table import scenario
from patience import wait_for
from tiny_model import write_tiny_model


@scenario(
    "`kill -9` of the child in the middle of a batch",
    "a new child takes over at once; only the chunk in hand is done again",
)
def test_a_killed_child(enduring, measured):
    """The parent starts another, which loads the model and goes on with the same batch."""
    world, worker = enduring, enduring.workers[-1]
    names, before = world.draw(72, "child/"), world.embedded()
    running = world.index_in_background("child", batch=24)
    world.wait_for_some(running.job, 12)
    killed, old = time.monotonic(), world.kill_child(worker)
    recovered = world.wait_for_pass(after=killed)
    ledger = running.finish()
    assert world.check(ledger["job"], names).embedded == 72
    twice = world.embedded() - before - 72
    assert twice <= 3 * 8, "more than the chunks that were on their way was done twice"
    assert recovered < 60
    world.new_child(worker, old)
    measured(recovered, twice)


@pytest.mark.chaos
@pytest.mark.parametrize("store", ["SQLite", "Redis"])
@scenario(
    "`kill -9` of the whole worker, and a supervisor that starts it again; vectors in {store}",
    "its batches come back no later than the claim's lifetime and 20 s after the new one is ready",
)
def test_a_killed_worker(fresh, measured, store):
    """Parent and child at once, as a power cut does."""
    world = fresh(**({"store": "redis"} if store == "Redis" else {}))
    names = world.draw(120)
    first = world.worker("w").wait_until_ready()
    running = world.index_in_background(batch=20)
    world.wait_for_some(running.job, 30)
    first.kill()
    world.worker("w").wait_until_ready()
    ready = time.monotonic()
    recovered = world.wait_for_pass(after=ready)
    world.check(running.finish()["job"], names)
    assert recovered < world.settings.claim_s + 20
    measured(recovered, world.embedded() - 120, "counted from when the new worker is ready")


@pytest.mark.chaos
@scenario("`kill -9` of the parent alone", "its child leaves by itself; the next worker goes on")
def test_a_killed_parent(fresh, measured):
    """An orphan that kept the card would stand in the way of its successor."""
    world = fresh()
    names = world.draw(120)
    first = world.worker("w").wait_until_ready()
    running = world.index_in_background(batch=20)
    world.wait_for_some(running.job, 30)
    child = first.child()
    killed = time.monotonic()
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not _lives(child), "the orphan's end", 30)
    gone = time.monotonic() - killed
    world.worker("w").wait_until_ready()
    ready = time.monotonic()
    recovered = world.wait_for_pass(after=ready)
    world.check(running.finish()["job"], names)
    measured(recovered, world.embedded() - 120, f"the orphan left after {gone:.1f} s")


@scenario(
    "`kill -9` between Redis' pop and kombu's note of it",
    "the message is gone, the ledger knows the batch: sent again 8 s after it was missed",
)
@pytest.mark.chaos
def test_a_kill_between_pop_and_note(fresh, measured):
    """The one moment in which a message is nowhere: neither queued nor reserved."""
    world = fresh()
    names = world.draw(60)
    world.worker("w").wait_until_ready()
    world.arm("kill-after-pop")
    running = world.index_in_background(batch=20)
    wait_for(lambda: world.workers[0].process.poll() is not None, "the worker's end")
    assert not world.armed("kill-after-pop")
    world.workers[0].kill()
    with world.redis.client as client:
        assert client.hlen("unacked") == 0, "kombu noted the message: this is not the moment that was meant"
        wait_for(lambda: client.llen("posters.bulk") == 2, "the two others on the queue", 10)
    world.worker("w").wait_until_ready()
    ready = time.monotonic()
    ledger = running.finish()
    recovered = time.monotonic() - ready
    world.check(ledger["job"], names)
    assert world.embedded() == 60
    measured(recovered, 0, "until the last batch; counted from when the new worker is ready")


@pytest.mark.chaos
@scenario("two workers, one of them killed", "the other does the rest; no batch is embedded by both")
def test_two_workers(fresh, measured):
    """Both take from the same lanes; what the dead one held comes to the living one."""
    world = fresh()
    names = world.draw(200)
    first, second = world.worker("a"), world.worker("b")
    wait_for(lambda: any(worker.state == "ready" for worker in world.producer.workers()), "a worker")
    running = world.index_in_background(batch=10)
    world.wait_for_some(running.job, 60)
    holder = first if _is_ready(world, first) else second
    holder.kill()
    killed = time.monotonic()
    recovered = world.wait_for_a_finish(running.job, killed)
    world.check(running.finish()["job"], names)
    twice = world.embedded() - 200
    assert twice <= 10, "more than the dead worker's batch was done twice"
    measured(recovered, twice)


@pytest.mark.chaos
@scenario(
    "worker started before Redis",
    "it waits; `index` meanwhile says what is missing (status 3); the job is done when Redis comes",
)
def test_started_before_redis(fresh, measured):
    """As after a reboot, when services start in any order."""
    world = fresh()
    names = world.draw(40)
    world.redis.stop()
    worker = world.worker("early")
    refused = world.run("index")
    assert refused.returncode == 3
    assert "does not answer" in refused.stderr
    time.sleep(8)
    assert worker.process.poll() is None, worker.said()
    world.redis.start()
    back = time.monotonic()
    worker.wait_until_ready()
    ledger = world.index()
    world.check(ledger["job"], names)
    measured(world.wait_for_pass(after=back), world.embedded() - 40)


@pytest.mark.chaos
@scenario("the model hangs", "the batch's time limit (here 10 s) ends the child; the batch is done by the next")
def test_a_hang_in_the_model(fresh, measured):
    """A device that neither answers nor fails."""
    world = fresh(batch_time_limit_s="10")
    names = world.draw(60)
    world.worker("w").wait_until_ready()
    running = world.index_in_background(batch=20)
    world.wait_for_some(running.job, 10)
    world.arm("hang")
    wait_for(lambda: not world.armed("hang"), "the hang")
    hung = time.monotonic()
    recovered = world.wait_for_pass(after=hung)
    world.check(running.finish()["job"], names)
    assert recovered < 10 + world.settings.claim_s + 10 + 30
    measured(recovered, world.embedded() - 60)


@pytest.mark.chaos
@scenario("the GPU's context breaks for good", "the child leaves, a fresh one takes over at once")
def test_a_lost_device(enduring, measured):
    """CUDA's 'unspecified launch failure': every further call in the process would fail."""
    world, worker = enduring, enduring.workers[-1]
    names, before = world.draw(60, "device/"), world.embedded()
    old = worker.child()
    running = world.index_in_background("device", batch=20)
    world.wait_for_some(running.job, 10)
    world.arm("lose-device")
    wait_for(lambda: not world.armed("lose-device"), "the fault")
    lost = time.monotonic()
    recovered = world.wait_for_pass(after=lost)
    world.check(running.finish()["job"], names)
    world.new_child(worker, old)
    assert "context is broken" in worker.said()
    measured(recovered, world.embedded() - before - 60)


@scenario(
    "memory runs out for more than two images", "the chunk is halved in place, nothing fails, nothing is done twice"
)
def test_out_of_memory(enduring, measured):
    """While another program has most of the card."""
    world, worker = enduring, enduring.workers[-1]
    names, before = world.draw(30, "memory/"), world.embedded()
    world.arm("run-out", "2")
    try:
        ledger = world.index(str(world.root / "memory"), "--batch", "15")
    finally:
        world.disarm("run-out")
    world.check(ledger["job"], names)
    assert max(images for _, _, images in world.passes() if world.embedded()) >= 2
    assert "out of memory" in worker.said()
    assert world.embedded() - before == 30
    measured(None, 0)


@pytest.mark.chaos
@scenario(
    "the model is changed while old batches are queued",
    "every vector lies in the space of the model that made it; `index` then fills the new space",
)
def test_a_changed_model(fresh, measured):
    """A vector of one model never meets a vector of another."""
    world = fresh()
    old, queued = world.draw(20, "old/"), world.draw(20, "queued/")
    first = world.worker("a").wait_until_ready()
    world.index(str(world.root / "old"))
    assert first.stop() == 0
    job = world.producer.enqueue([world.root / name for name in queued])
    other = write_tiny_model(world.folder / "other", seed=1)
    world.references.learn(other)
    world.worker("b", POSTERS_MODEL_NAME=other).wait_until_ready()
    assert job.wait(60).at_rest
    failing = {failure.id: failure.word for failure in job.failures()}
    assert failing in ({}, dict.fromkeys(queued, "internal"))
    world.check(job, queued, failing)
    ledger = world.index()
    assert ledger["submitted"] == 40
    world.check(ledger["job"], [*old, *queued])
    store = world.producer.store()
    assert sorted(info.count for info in store.spaces()) == [20, 40]
    store.close()
    measured(None, None)


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def _is_ready(world, worker):
    heard = worker.heard()
    return heard is not None and heard.state == "ready"
