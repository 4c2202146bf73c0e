"""Health of a real worker: planted faults turn `ready` red, with the reason, while its processes live.

Its patience is that of PATIENCE_S here, so that this takes seconds; with the real limits: tests/chaos/test_health.py.
"""

import os
import signal

import pytest

from producer.queue.workers import LOADING, READY, why_not_ready
from tests.support.chaos_installation import ChaosInstallation
from tests.support.wait import wait_for

PATIENCE_S = "1.5"
RED_S = 20  # a busy machine


@pytest.fixture(scope="module")
def installation(tmp_path_factory, redis_server):
    folder = tmp_path_factory.mktemp("health")
    (folder / "store").mkdir()
    with redis_server.client as client:
        client.flushall()
    installation = ChaosInstallation(folder, pause_s=0, store=f"sqlite:{folder / 'store' / 'vectors.db'}")
    installation.forks_workers = True
    yield installation
    installation.close()


@pytest.fixture
def worker(installation):
    """One worker for all tests, which every one of them leaves ready."""
    if not installation.workers:
        installation.worker("w", FAULT_PATIENCE_S=PATIENCE_S)
    worker = installation.workers[-1].wait_until_ready()
    wait_for(lambda: not reason(worker), "a worker that is ready")
    yield worker
    assert worker.process.poll() is None, worker.log_text()


def reason(worker):
    """Why it is not ready, as everybody can read."""
    return why_not_ready(worker.announcement())


def wait_for_red(worker, text):
    return wait_for(lambda: text in reason(worker) and reason(worker), text, RED_S)


def test_a_store_that_is_moved_away(installation, worker):
    """It is red without any work, says why, and is green again when the store is back; `ready` says the same."""
    store, earlier = installation.folder / "store", worker.log_text().count("this worker is not ready")
    store.rename(installation.folder / "away")
    try:
        wait_for_red(worker, "the store is out of reach: the folder of the store")
        done = installation.run("ready", "--worker", worker.name)
        assert (done.returncode, "is ready, but the store is out of reach" in done.stderr) == (1, True)
        assert installation.run("ready", "--live", "--worker", worker.name).returncode == 0
    finally:
        (installation.folder / "away").rename(store)
    wait_for(lambda: not reason(worker), "a worker that is ready again", RED_S)
    assert installation.run("ready", "--worker", worker.name).returncode == 0
    assert worker.log_text().count("this worker is not ready") == earlier + 1
    assert "this worker is ready again" in worker.log_text()


def test_posters_that_are_moved_away(installation, worker):
    """As a disk that is unmounted with its folder."""
    installation.root.rename(installation.folder / "disk")
    try:
        wait_for_red(worker, "the posters root is out of reach")
    finally:
        (installation.folder / "disk").rename(installation.root)
    wait_for(lambda: not reason(worker), "a worker that is ready again", RED_S)


def test_batches_that_fail_again_and_again(installation, worker):
    """A mount that drops leaves an empty folder: messages are taken, and nothing gets done."""
    names = installation.draw(8, "mount/")
    installation.arm("hold")
    first = installation.producer.enqueue([installation.root / names[0]])
    wait_for(lambda: installation.armed("held"), "a forward pass")
    job = installation.producer.enqueue([installation.root / name for name in names[1:]])  # which sees them
    disk = installation.root.rename(installation.folder / "disk")
    installation.root.mkdir()
    try:
        installation.disarm("hold")
        wait_for_red(worker, "batches fail, and are tried again: the posters root")
    finally:
        installation.root.rmdir()
        disk.rename(installation.root)
    for each in (first, job):
        assert (each.wait(60).at_rest, each.progress().failed) == (True, 0)
    wait_for(lambda: not reason(worker), "a worker that is ready again", RED_S)


def test_a_consumer_that_stops_taking_messages(installation, worker):
    """Its process lives, and so do its connections; the lane's length and the last claim give it away."""
    names = installation.draw(3, "deaf/")
    installation.arm("deaf")
    job = installation.producer.enqueue([installation.root / name for name in names])
    job_2 = installation.producer.enqueue([installation.root / name for name in names])  # its last BRPOP takes one
    wait_for_red(worker, "it takes no messages")
    installation.disarm("deaf")
    assert job.wait(60).at_rest
    assert job_2.wait(60).at_rest
    wait_for(lambda: not reason(worker), "a worker that is ready again", RED_S)
    assert float(worker.announcement().get("claimed_at")) > 1e9


def test_a_card_that_an_idle_worker_loses(installation, worker):
    """The probe finds it, and a fresh process takes over; nothing says meanwhile that the worker is ready."""
    before = worker.announcement().get("pid")
    installation.arm("lose-idle-device")
    wait_for(lambda: worker.announcement().state != READY, "a worker that is not ready", RED_S)
    wait_for(lambda: worker.announcement().state == READY, "a fresh process")
    assert worker.announcement().get("pid") != before
    assert "a probe failed: the GPU's context is broken" in worker.log_text()


def test_a_forward_pass_that_hangs_and_a_child_that_dies(installation, worker):
    """The pass has no time limit but that of its batch, of minutes; a dead child's entry says READY for no 15 s."""
    names = installation.draw(20, "hang/")
    assert installation.producer.enqueue([installation.root / names[0]]).wait(60).at_rest
    installation.arm("hang")
    job = installation.producer.enqueue([installation.root / name for name in names[1:]])
    found = wait_for_red(worker, "nothing has moved for more than 2 s in batch")
    assert job.id in found
    assert worker.announcement().state == READY
    os.kill(worker.child(), signal.SIGKILL)
    wait_for(lambda: worker.announcement().state == LOADING, "the news of its death", 10)
    progress = job.wait(120)
    assert (progress.at_rest, progress.failed) == (True, 0)
