"""`ready` tells the truth within half a minute while a worker's processes live, with the limits that people get."""

import os
import signal
import time

import pytest

from producer.queue.workers import READY
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for
from worker.runtime.health import END_S, UNTAKEN_S

RED_S = 30
ASK_S = 1.0  # a supervisor asks every 10 s
END_WITHIN_S = UNTAKEN_S + END_S + 15  # of which 5 s are for a child that does not end


def red_after(installation, worker, text, since):
    """Seconds from `since` (monotonic) until `ready` fails with the text."""
    while True:
        done = installation.run("ready", "--worker", worker.name)
        seconds = time.monotonic() - since
        if done.returncode == 1 and text in done.stderr:
            assert seconds < RED_S, done.stderr
            return seconds
        assert seconds < RED_S, f"still {done.returncode}: {done.stderr}"
        time.sleep(ASK_S)


def wait_until_green(installation, worker):
    wait_for(lambda: installation.run("ready", "--worker", worker.name).returncode == 0, "a green light")


@pytest.mark.chaos
@scenario("a forward pass hangs: `ready`", "red within 30 s; green again once a fresh process is ready")
def test_a_hung_forward_pass(new_installation, measured):
    """Its batch has 15 minutes; the process lives, and so do all its connections."""
    installation = new_installation()
    names = installation.draw(60)
    worker = installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 10)
    installation.arm("hang")
    wait_for(lambda: not installation.armed("hang"), "the hang")
    seconds = red_after(installation, worker, "nothing has moved", time.monotonic())
    assert worker.announcement().state == READY
    old = installation.kill_child(worker)
    installation.wait_for_new_child(worker, old)
    wait_until_green(installation, worker)
    installation.check(running.finish()["job"], names)
    measured(None, None, f"red after {seconds:.0f} s")


@pytest.mark.chaos
@scenario("the process that holds the model is stopped (SIGSTOP): `ready`", "red within 30 s; green when it wakes")
def test_a_stopped_process(new_installation, measured):
    """It renews nothing: neither its registry entry nor a lease."""
    installation = new_installation()
    worker = installation.worker("w").wait_until_ready()
    wait_until_green(installation, worker)
    child = worker.child()
    os.kill(child, signal.SIGSTOP)
    seconds = red_after(installation, worker, "no worker w@tests is alive", time.monotonic())
    os.kill(child, signal.SIGCONT)
    wait_until_green(installation, worker)
    measured(None, None, f"red after {seconds:.0f} s")


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["prefork", "solo"])
@scenario(
    "a consumer takes no messages any more after its connections were cut, pool {pool}: `ready`",
    "red within 30 s; the worker ends with status 75 a minute later, and the next one does the job",
)
def test_a_consumer_that_stops_taking_messages(new_installation, measured, pool):
    """Celery's users report it for years; nothing in the process notices."""
    installation = new_installation()
    names = installation.draw(40)
    worker = installation.worker("w", "--pool", pool).wait_until_ready()
    installation.arm("deaf")
    with installation.redis.client as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    time.sleep(2)  # its last BRPOP is over
    running, began = installation.index_in_background(batch=10), time.monotonic()
    wait_for(lambda: running.job, "the job")
    seconds = red_after(installation, worker, "it takes no messages", began)
    assert worker.process.wait(END_WITHIN_S) == 75
    ended = time.monotonic() - began
    assert "so that it can be restarted: it takes no messages" in worker.log_text()
    installation.disarm("deaf")
    installation.worker("next").wait_until_ready()
    installation.check(running.finish()["job"], names)
    measured(None, None, f"red after {seconds:.0f} s, ended after {ended:.0f} s")


@pytest.mark.chaos
@scenario("the store's folder is moved away under an idle worker: `ready`", "red within 30 s; green when it is back")
def test_a_store_that_is_away(new_installation, tmp_path, measured):
    """No batch is needed to notice."""
    folder, away = tmp_path / "store", tmp_path / "away"
    installation = new_installation(store=f"sqlite:{folder / 'vectors.db'}")
    worker = installation.worker("w").wait_until_ready()
    wait_until_green(installation, worker)
    folder.rename(away)
    seconds = red_after(installation, worker, "the store is out of reach", time.monotonic())
    away.rename(folder)
    wait_until_green(installation, worker)
    assert worker.process.poll() is None
    measured(None, None, f"red after {seconds:.0f} s")


@pytest.mark.chaos
@scenario(
    "an idle worker's card is lost: `ready`", "red within 30 s, until a fresh process is ready; no batch is needed"
)
def test_a_card_that_an_idle_worker_loses(new_installation, measured):
    """Its context answers every call with an error from now on."""
    installation = new_installation()
    worker = installation.worker("w").wait_until_ready()
    wait_until_green(installation, worker)
    old = worker.child()
    installation.arm("lose-idle-device")
    seconds = red_after(installation, worker, "is loading", time.monotonic())
    installation.wait_for_new_child(worker, old)
    wait_until_green(installation, worker)
    measured(None, None, f"red after {seconds:.0f} s")
