"""Worker processes die, hang, or start late; afterwards the invariant of chaos_installation.py holds."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.scenario_table import scenario
from tests.support.tiny_model import write_tiny_model
from tests.support.wait import wait_for


@scenario(
    "`kill -9` of the child in the middle of a batch",
    "a new child takes over at once; only the chunk in progress is embedded again",
)
def test_a_killed_child(shared_installation, measured):
    """The parent starts another child, which loads the model and continues the same batch."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    names, before = installation.draw(72, "child/"), installation.embedded()
    running = installation.index_in_background("child", batch=24)
    installation.wait_for_some(running.job, 12)
    killed, old = time.monotonic(), installation.kill_child(worker)
    recovered = installation.wait_for_pass(after=killed)
    ledger = running.finish()
    assert installation.check(ledger["job"], names).embedded == 72
    twice = installation.embedded() - before - 72
    assert twice <= 3 * 8, "more than the chunks in progress was embedded twice"
    assert recovered < 60
    installation.wait_for_new_child(worker, old)
    measured(recovered, twice)


@pytest.mark.chaos
@pytest.mark.parametrize("store", ["SQLite", "Redis"])
@scenario(
    "`kill -9` of the whole worker, restarted by a service manager; vectors in {store}",
    "its batches are taken up within the claim's lifetime plus 20 s after the new worker is ready",
)
def test_a_killed_worker(new_installation, measured, store):
    """Parent and child are killed at once, as by a power cut."""
    installation = new_installation(**({"store": "redis"} if store == "Redis" else {}))
    names = installation.draw(120)
    first = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 30)
    first.kill()
    installation.worker("w").wait_until_ready()
    ready = time.monotonic()
    recovered = installation.wait_for_pass(after=ready)
    installation.check(running.finish()["job"], names)
    assert recovered < installation.settings.claim_s + 20
    measured(recovered, installation.embedded() - 120, "counted from when the new worker is ready")


@pytest.mark.chaos
@scenario("`kill -9` of the parent alone", "its child exits by itself; the next worker continues")
def test_a_killed_parent(new_installation, measured):
    """An orphan that kept the GPU lock would block its successor."""
    installation = new_installation()
    names = installation.draw(120)
    first = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 30)
    child = first.child()
    killed = time.monotonic()
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not _is_alive(child), "the orphan's end", 30)
    gone = time.monotonic() - killed
    installation.worker("w").wait_until_ready()
    ready = time.monotonic()
    recovered = installation.wait_for_pass(after=ready)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 120, f"the orphan left after {gone:.1f} s")


@scenario(
    "`kill -9` after kombu popped a message and before it is in `unacked`",
    "the message is gone, the ledger has the batch: sent again 8 s after it is found missing",
)
@pytest.mark.chaos
def test_a_kill_between_pop_and_unacked(new_installation, measured):
    """The one moment in which a message is neither in the queue nor in `unacked`."""
    installation = new_installation()
    names = installation.draw(60)
    installation.worker("w").wait_until_ready()
    installation.arm("kill-after-pop")
    running = installation.index_in_background(batch=20)
    wait_for(lambda: installation.workers[0].process.poll() is not None, "the worker's end")
    assert not installation.armed("kill-after-pop")
    installation.workers[0].kill()
    with installation.redis.client as client:
        assert client.hlen("unacked") == 0, "the message is in unacked: the kill came too late"
        wait_for(lambda: client.llen("posters.bulk") == 2, "the other two in the queue", 10)
    installation.worker("w").wait_until_ready()
    ready = time.monotonic()
    ledger = running.finish()
    recovered = time.monotonic() - ready
    installation.check(ledger["job"], names)
    assert installation.embedded() == 60
    measured(recovered, 0, "until the last batch; counted from when the new worker is ready")


@pytest.mark.chaos
@scenario("two workers, one of them killed", "the other does the rest; no batch is embedded by both")
def test_two_workers(new_installation, measured):
    """Both consume the same lanes; the batch of the dead worker goes to the other."""
    installation = new_installation()
    names = installation.draw(200)
    first, second = installation.worker("a"), installation.worker("b")
    wait_for(lambda: any(worker.state == "ready" for worker in installation.producer.workers()), "a worker")
    running = installation.index_in_background(batch=10)
    installation.wait_for_some(running.job, 60)
    holder = first if _is_ready(installation, first) else second
    holder.kill()
    killed = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, killed)
    installation.check(running.finish()["job"], names)
    twice = installation.embedded() - 200
    assert twice <= 10, "more than the dead worker's batch was embedded twice"
    measured(recovered, twice)


@pytest.mark.chaos
@pytest.mark.parametrize(("until", "count"), [("for two claim lifetimes", 400), ("until the job is done", 160)])
@pytest.mark.parametrize("process", ["child", "main process"])
@scenario(
    "the {process} of one of two workers stopped (SIGSTOP) in the middle of a batch, {until}",
    "the other does what the first does not, that batch as well; the first works again when it wakes",
)
def test_a_stopped_process(new_installation, measured, process, until, count):
    """A frozen child sends no heartbeats; the messages that a frozen main process has taken are on no lane."""
    installation = new_installation(pause_s=0.3)
    names = installation.draw(count)
    first, second = (installation.worker(name) for name in "ab")
    pids = {worker.wait_until_ready().child() for worker in (first, second)}
    running = installation.index_in_background(batch=20)
    wait_for(lambda: pids <= {pid for _, pid, _ in installation.passes()}, "both at work")
    stopped = first.child() if process == "child" else first.process.pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        if until == "until the job is done":
            job = running.finish()["job"]
        else:
            time.sleep(2 * installation.settings.claim_s)
            assert not running.job.progress().at_rest, "the job ended too early"
    finally:
        os.kill(stopped, signal.SIGCONT)
    if until != "until the job is done":
        job = running.finish()["job"]
    installation.check(job, names)
    twice = installation.embedded() - count
    assert twice <= 2 * 20, "more than the worker had in hand was embedded twice"
    assert second.stop() == 0
    later = installation.draw(20, "later/")
    installation.check(installation.index(str(installation.root / "later"))["job"], later)
    measured(None, twice)


@pytest.fixture
def busy_core():
    """A core with four busy processes at the highest priority; whatever else runs on it starves."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("taskset") is None:
        pytest.skip("the highest priority needs Linux and root, a core of its own taskset")
    core = max(os.sched_getaffinity(0))
    processes = []

    def fill():
        for _ in range(4):
            command = ["taskset", "-c", str(core), "nice", "-n", "-20", sys.executable, "-c", "while True: pass"]
            processes.append(subprocess.Popen(command, start_new_session=True))
            # where the kernel shares the cores between sessions first, the niceness that counts is a session's
            with suppress(OSError):
                Path(f"/proc/{processes[-1].pid}/autogroup").write_text("-20")

    def free():
        for process in processes:
            process.kill()
            process.wait()

    yield core, fill, free
    free()


@pytest.mark.chaos
@scenario(
    "a worker's core is taken by four busy processes at the highest priority, for four claim lifetimes",
    "a heartbeat that starves may cost a claim, and never a poster",
)
def test_a_starved_worker(new_installation, busy_core, measured):
    """Heartbeat, batch and main process share what is left of one core."""
    core, fill, free = busy_core
    installation = new_installation()
    installation.worker_prefix = ("taskset", "-c", str(core))
    names = installation.draw(240)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 20)
    used, began = _cpu_s(worker), time.monotonic()
    fill()
    time.sleep(4 * installation.settings.claim_s)
    share = (_cpu_s(worker) - used) / (time.monotonic() - began)
    free()
    freed = time.monotonic()
    assert share < 0.1, f"it had {share:.0%} of a core"
    assert not running.job.progress().at_rest, "the job ended too early"
    recovered = installation.wait_for_a_finish(running.job, freed)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 240, f"the worker had {share:.1%} of a core")


@pytest.mark.chaos
@scenario(
    "worker started before Redis",
    "it waits; `index` meanwhile says what is missing (status 3); the job is done once Redis is up",
)
def test_started_before_redis(new_installation, measured):
    """As after a reboot, when services start in any order."""
    installation = new_installation()
    names = installation.draw(40)
    installation.redis.stop()
    worker = installation.worker("early")
    refused = installation.run("index")
    assert refused.returncode == 3
    assert "does not answer" in refused.stderr
    time.sleep(8)
    assert worker.process.poll() is None, worker.log_text()
    installation.redis.start()
    back = time.monotonic()
    worker.wait_until_ready()
    ledger = installation.index()
    installation.check(ledger["job"], names)
    measured(installation.wait_for_pass(after=back), installation.embedded() - 40)


@pytest.mark.chaos
@scenario("the model hangs", "the batch's time limit (here 10 s) ends the child; the next one does the batch")
def test_a_hang_in_the_model(new_installation, measured):
    """As with a device that neither answers nor fails."""
    installation = new_installation(batch_time_limit_s="10")
    names = installation.draw(60)
    installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 10)
    installation.arm("hang")
    wait_for(lambda: not installation.armed("hang"), "the hang")
    hung = time.monotonic()
    recovered = installation.wait_for_pass(after=hung)
    installation.check(running.finish()["job"], names)
    assert recovered < 10 + installation.settings.claim_s + 10 + 30
    measured(recovered, installation.embedded() - 60)


@pytest.mark.chaos
@scenario("the CUDA context is lost", "the child exits, a fresh one takes over at once")
def test_a_lost_device(shared_installation, measured):
    """As after CUDA's 'unspecified launch failure': every further call in the process would fail."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    names, before = installation.draw(60, "device/"), installation.embedded()
    old = worker.child()
    running = installation.index_in_background("device", batch=20)
    installation.wait_for_some(running.job, 10)
    installation.arm("lose-device")
    wait_for(lambda: not installation.armed("lose-device"), "the fault")
    lost = time.monotonic()
    recovered = installation.wait_for_pass(after=lost)
    installation.check(running.finish()["job"], names)
    installation.wait_for_new_child(worker, old)
    assert "context is broken" in worker.log_text()
    measured(recovered, installation.embedded() - before - 60)


@scenario(
    "memory runs out for more than two images", "the chunk is halved in place; nothing fails, nothing is embedded twice"
)
def test_out_of_memory(shared_installation, measured):
    """As while another program uses most of the GPU's memory."""
    installation, worker = shared_installation, shared_installation.workers[-1]
    names, before = installation.draw(30, "memory/"), installation.embedded()
    installation.arm("run-out", "2")
    try:
        ledger = installation.index(str(installation.root / "memory"), "--batch", "15")
    finally:
        installation.disarm("run-out")
    installation.check(ledger["job"], names)
    assert max(images for _, _, images in installation.passes() if installation.embedded()) >= 2
    assert "out of memory" in worker.log_text()
    assert installation.embedded() - before == 30
    measured(None, 0)


@pytest.mark.chaos
@scenario(
    "the model is changed while old batches are queued",
    "every vector lies in the space of the model that made it; `index` then fills the new space",
)
def test_a_changed_model(new_installation, measured):
    """Vectors of two models are never mixed."""
    installation = new_installation()
    old, queued = installation.draw(20, "old/"), installation.draw(20, "queued/")
    first = installation.worker("a").wait_until_ready()
    installation.index(str(installation.root / "old"))
    assert first.stop() == 0
    job = installation.producer.enqueue([installation.root / name for name in queued])
    other = write_tiny_model(installation.folder / "other", seed=1)
    installation.references.learn(other)
    installation.worker("b", POSTERS_MODEL_NAME=other).wait_until_ready()
    assert job.wait(60).at_rest
    failing = {failure.id: failure.word for failure in job.failures()}
    assert failing in ({}, dict.fromkeys(queued, "internal"))
    installation.check(job, queued, failing)
    ledger = installation.index()
    assert ledger["submitted"] == 40
    installation.check(ledger["job"], [*old, *queued])
    store = installation.producer.store()
    assert sorted(info.count for info in store.spaces()) == [20, 40]
    store.close()
    measured(None, None)


def _cpu_s(worker):
    """Seconds that main process and child have run."""
    ticks = 0
    for pid in (worker.process.pid, worker.child()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def _is_ready(installation, worker):
    announcement = worker.announcement()
    return announcement is not None and announcement.state == "ready"
