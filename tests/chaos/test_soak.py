"""Soak test: random faults for CHAOS_SECONDS, the invariant after each job, no leak of memory or descriptors.

    make chaos SECONDS=600            # SEED=… repeats a run

Each round indexes new posters, and old ones again, while one to three faults strike; after it the job
is checked, and with it every vector in the store.
"""

import gc
import os
import random
import re
import signal
import statistics
import time
from collections import defaultdict
from pathlib import Path

import pytest

from producer.queue.messages import QUEUES
from tests.support.fault_injection import ABORT
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 31))
POSTERS, BATCH = 80, 10  # of one round
KILLS = 20
MIN_SAMPLES = 6  # of one process, before growth can be told from noise
GROWTH_KB = 20_000
GROWTH_DESCRIPTORS = 8


class Soak:
    """The faults that a round may draw; each returns when the fault itself is over."""

    def __init__(self, installation, chance):
        self.installation, self.chance = installation, chance
        self.worker = installation.worker("w").wait_until_ready()
        self.samples = defaultdict(list)  # process id → (resident kB, open descriptors)

    def kill_child(self):
        pid = self._child()
        if pid:
            os.kill(pid, signal.SIGKILL)

    def kill_worker(self):
        self.worker.kill()
        time.sleep(self.chance.random())
        self.worker = self.installation.worker("w")

    def stop_worker(self):
        self.worker.stop()
        self.worker = self.installation.worker("w")

    def kill_parent(self):
        self.worker.process.kill()
        self.worker.process.wait()
        self.worker = self.installation.worker("w")

    def kill_after_pop(self):
        self.installation.arm("kill-after-pop")
        ends = time.monotonic() + 5
        while self.worker.process.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        self.installation.disarm("kill-after-pop")
        if self.worker.process.poll() is not None:
            self.worker.kill()
            self.worker = self.installation.worker("w")

    def kill_in_write(self):
        self.installation.arm("kill-in-write")

    def lose_device(self):
        self.installation.arm("lose-device")

    def run_out_of_memory(self):
        self.installation.arm("run-out", str(self.chance.randint(1, 4)))
        time.sleep(2)
        self.installation.disarm("run-out")

    def restart_redis(self):
        self.chance.choice([self.installation.redis.kill, self.installation.redis.stop])()
        time.sleep(3 * self.chance.random())
        self.installation.redis.start()

    def hang_redis(self):
        self.installation.redis.pause()
        time.sleep(8 * self.chance.random())
        self.installation.redis.resume()

    def cut_connections(self):
        with self.installation.redis.client as client:
            for _ in range(self.chance.randint(1, 6)):
                client.client_kill_filter(skipme=True, _type="normal")
                time.sleep(self.chance.random())

    def double_messages(self):
        with self.installation.redis.client as client:
            for message in client.lrange(QUEUES["bulk"], 0, -1):
                client.rpush(QUEUES["bulk"], message)

    def lose_messages(self):
        """Delete the queue and keep the ledger, as a Redis that lost part of its data."""
        with self.installation.redis.client as client:
            client.delete(QUEUES["bulk"])

    def send_garbage(self):
        with self.installation.redis.client as client:
            client.lpush(QUEUES["bulk"], os.urandom(20))

    FAULTS = (
        *[kill_child, kill_worker, stop_worker, kill_parent, kill_after_pop, kill_in_write, lose_device],
        *[run_out_of_memory, restart_redis, hang_redis, cut_connections, double_messages, lose_messages],
        send_garbage,
    )

    def restart_worker_if_dead(self):
        """Do what a service manager does."""
        if self.worker.process.poll() is not None:
            self.worker.kill()
            self.worker = self.installation.worker("w")

    def sample(self):
        """Record memory and open descriptors of all processes while they are idle."""
        gc.collect()  # commands that ran in this process leave their connections open until then
        pids = {"redis": self.installation.redis.pid, "parent": self.worker.process.pid, "child": self._child()}
        for role, pid in pids.items():
            resources = pid and _resources(pid)
            if resources:
                self.samples[role, pid].append(resources)

    def _child(self):
        announcement = self.worker.announcement()
        return int(announcement.get("pid") or 0) if announcement else 0


@pytest.mark.chaos
@scenario(
    "the soak: faults drawn at random, one to three in each job of 80 posters",
    "the invariant after each job; memory and file descriptors of long-lived processes stay flat",
)
def test_soak(new_installation, measured):
    """Faults in random order, on top of each other."""
    print(f"\nsoak: {SECONDS:.0f} s, seed {SEED} (repeat with: make chaos SECONDS={SECONDS:.0f} SEED={SEED})")
    chance = random.Random(SEED)
    installation = new_installation(pause_s=0.1, attempts="3")
    soak = Soak(installation, chance)
    ends, rounds, struck, slowest_s, needed = time.monotonic() + SECONDS, 0, 0, 0.0, 0
    while time.monotonic() < ends:
        rounds += 1
        folder = f"round{rounds}/"
        names = installation.draw(POSTERS, folder)
        bad = installation.draw(1, f"{folder}bad", ABORT) if chance.random() < 0.05 else []
        faults = chance.sample(Soak.FAULTS, chance.randint(1, 3))
        print(
            f"soak: round {rounds}: {', '.join(fault.__name__ for fault in faults)}{', crashing poster' if bad else ''}"
        )
        running = installation.index_in_background(folder, batch=BATCH)
        job = running.job
        for fault in faults:
            time.sleep(2 * chance.random())
            fault(soak)
            struck += 1
        over = time.monotonic()
        while running.process.poll() is None:
            soak.restart_worker_if_dead()
            time.sleep(0.1)
            assert time.monotonic() - over < 400, (faults, job.progress(), soak.worker.log_text()[-4000:])
        slowest_s = max(slowest_s, time.monotonic() - over)
        ledger = running.finish(status=1 if bad else 0)
        soak.worker.wait_until_ready()
        progress = installation.check(ledger["job"], [*names, *bad], dict.fromkeys(bad, "crashed-worker"))
        needed += progress.submitted - progress.failed
        soak.sample()
    installation.recover()
    installation.draw(POSTERS, "quiet/")
    for _ in range(MIN_SAMPLES):  # without faults, so that even a short run has samples to compare
        installation.index(str(installation.root / "quiet"), "--force", "--batch", str(BATCH))
        needed += POSTERS
        soak.sample()
    growth = [text for (role, _), samples in soak.samples.items() if (text := _growth(role, samples))]
    assert not growth, growth
    wait_for(lambda: not installation.producer.job_store.list_active(), "no job open")
    measured(
        slowest_s,
        installation.embedded() - needed,
        f"{struck} faults in {rounds} jobs, seed {SEED}; the slowest job ended so long after its last fault",
    )


@pytest.mark.chaos
@scenario(
    f"two workers, {KILLS} times one of them or its child is killed (`kill -9`), drawn at random",
    "every poster is stored: deaths that were not its own fail none",
)
def test_random_kills(new_installation, measured):
    """Whole workers are started again at once, as by a service manager; most are killed before they are ready."""
    print(f"\nkills: seed {SEED} (repeat with: make chaos SEED={SEED})")
    chance = random.Random(SEED)
    installation = new_installation(pause_s=0.3)
    names = installation.draw(400)
    workers = {name: installation.worker(name) for name in "ab"}
    for worker in workers.values():
        worker.wait_until_ready()
    running = installation.index_in_background(batch=20)
    installation.wait_for_some(running.job, 20)
    children = 0
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.2, 2.0))
        name = chance.choice("ab")
        child = _child_of(workers[name]) if chance.random() < 2 / 3 else None
        if child is not None:
            os.kill(child, signal.SIGKILL)
            children += 1
        else:
            workers[name].kill()
            workers[name] = installation.worker(name)
    over = time.monotonic()
    assert not running.job.progress().at_rest, "the last kills came too late to be any"
    recovered = installation.wait_for_pass(after=over)
    installation.check(running.finish()["job"], names)
    noted = f"{children} children, {KILLS - children} workers, seed {SEED}"
    measured(recovered, installation.embedded() - 400, noted)


def _child_of(worker):
    """Process id of a worker's child; None while there is none, or it is dead already."""
    announcement = worker.announcement()
    pid = int(announcement.get("pid") or 0) if announcement else 0
    return pid if pid and _resources(pid) else None


def _growth(role, samples):
    """What grew from the first third of the samples to the last third; None: nothing, or there are too few samples."""
    if len(samples) < MIN_SAMPLES:
        return None
    third = len(samples) // 3
    memory, descriptors = (
        statistics.median(values[-third:]) - statistics.median(values[:third]) for values in zip(*samples, strict=True)
    )
    if memory > GROWTH_KB or descriptors > GROWTH_DESCRIPTORS:
        return f"{role} grew by {memory} kB and {descriptors} descriptors over {len(samples)} jobs"
    return None


def _resources(pid):
    """Resident kB and open descriptors of a process; None when it is gone, or dead and not waited for yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    memory = re.search(r"^VmRSS:\s*(\d+)", status, re.MULTILINE)
    return (int(memory[1]), descriptors) if memory else None
