"""A worker that has no work unloads its model, and does all the same whatever comes."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from bench.image_samples import encoded, picture
from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.keys import card_key
from producer.queue.locks import Lease
from producer.queue.messages import BULK, INTERACTIVE, QUEUES
from producer.queue.workers import FAILED, LOADING, READY, WAITING, WorkerRegistry
from producer.settings import load_settings
from tests.support.installation import Installation, quiet_now
from tests.support.redis_server import RedisServer
from tests.support.wait import wait_for
from worker.runtime import unloading
from worker.runtime.health import AWAY_S
from worker.runtime.startup import WAKING_VARIABLE
from worker.runtime.unloading import IdleUnload

OWNER, GPU = "w@h/1/a", "GPU-6a1e0000-0000-0000-0000-000000000001"
IDLE_S = 100


class FakeChild:
    """What IdleUnload asks of the real one, which needs Celery; it ends when a test says so."""

    def __init__(self):
        self.running, self.held, self.signals, self.ends, self.starts = [4711], False, [], 0, 0
        self.messages, self.in_reach = 0, True

    def pids(self):
        return self.running

    def signal(self, number):
        self.signals.append(number)

    def has_message(self):
        return bool(self.messages)

    def hold(self, is_held):
        self.held = is_held

    def end(self):
        self.ends += self.in_reach
        return self.in_reach

    def start(self):
        self.starts += self.in_reach
        return self.in_reach


class Idle:
    """A worker with a fake child on a real registry; its steps, and what it and others see."""

    def __init__(self, url, **settings):
        self.child, self.job_store = FakeChild(), JobStore(url)
        self.registry, self.claims = WorkerRegistry(url, self.job_store.redis), Claims(self.job_store)
        settings = load_settings(redis_url=url, idle_unload_s=IDLE_S, **settings)
        self.unload = IdleUnload(settings, OWNER, self.child, self.job_store, self.registry)

    @property
    def redis(self):
        return self.job_store.redis

    def child_says(self, state=READY, *, idle_s=IDLE_S + 1, **fields):
        """The child's entry, published now; it has been idle for so long."""
        idle = {"loaded_at": time.time() - idle_s - 50, "progress_at": time.time() - idle_s}
        self.registry.publish(OWNER, state, {"pid": 4711, "card": GPU, "reloaded_s": 3.5} | idle | fields)

    def step(self):
        return self.unload.step(self.registry.get(OWNER))

    def unloaded(self):
        """Take it there."""
        self.child_says()
        assert not self.step()
        self.child_says()
        assert self.step()
        self.child.running = []
        assert self.step()
        return self.entry()

    def entry(self):
        return self.registry.get(OWNER)


@pytest.fixture
def idle(redis_url):
    made = Idle(redis_url)
    yield made
    os.environ.pop(WAKING_VARIABLE, None)
    made.job_store.close()


def test_it_is_unloaded_once_it_is_idle_and_gets_no_message_any_more(idle):
    """It says that it is idle twice: before its parent asks for no message, and after."""
    idle.child_says(idle_s=IDLE_S - 1)
    assert not idle.step()
    idle.child_says()
    assert not idle.child.held
    assert not idle.step()
    assert idle.child.held, "no further message is asked for"
    assert not idle.step()
    assert idle.child.ends == 0, "what it said is older than that"
    idle.child_says()
    idle.child.in_reach = False
    assert not idle.step(), "a message may be on its way"
    idle.child.in_reach = True
    assert idle.step()
    assert idle.child.ends == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda idle: idle.child_says(answered_at=time.time()),
        lambda idle: idle.child_says(progress_at=time.time()),
        lambda idle: idle.child_says(LOADING),
        lambda idle: idle.redis.lpush(QUEUES[BULK], "a batch"),
        lambda idle: idle.redis.lpush("posters:requests", "token"),
        lambda idle: idle.redis.hset(f"posters:text-requests:by:{OWNER}", "token", "taken"),
        lambda idle: setattr(idle.child, "messages", 1),
    ],
    ids=["answered", "embedded", "replaced", "batch", "request", "in-hand", "message"],
)
def test_work_in_between_keeps_it_loaded(idle, work):
    """Whoever sees it, parent or child."""
    idle.child_says()
    idle.step()
    idle.child_says()
    work(idle)
    assert not idle.step()
    assert (idle.child.held, idle.child.ends) == (False, 0)


def test_without_a_model_it_stays_ready_and_keeps_its_card(idle):
    """With what the child said of itself; for as long as there is no work."""
    entry = idle.unloaded()
    assert (entry.state, entry.get("pid"), entry.get("card")) == (READY, str(os.getpid()), GPU)
    assert entry.get("reloaded_s") == ""
    assert entry.unloading.startswith("unloaded since ")
    idle.redis.delete(f"posters:worker:{OWNER}", card_key(GPU))
    assert idle.step()
    assert idle.entry().get("unloaded_since") == entry.get("unloaded_since")
    assert idle.redis.get(card_key(GPU)) == OWNER
    assert idle.child.starts == 0


@pytest.mark.parametrize(
    "put",
    [
        lambda idle: idle.redis.lpush(QUEUES[BULK], "a batch"),
        lambda idle: idle.redis.lpush(QUEUES[INTERACTIVE], "a batch"),
        lambda idle: idle.redis.lpush("posters:requests", "token"),
        lambda idle: idle.redis.lpush("posters:text-requests", "token"),
        lambda idle: idle.redis.lpush("posters:poster-requests", "token"),
        lambda idle: idle.redis.hset(f"posters:requests:by:{OWNER}", "token", "taken"),
        lambda idle: (
            idle.redis.sadd("posters:requests:owners", "dead@h/2/b"),
            idle.redis.hset("posters:requests:by:dead@h/2/b", "token", "taken"),
        ),
        lambda idle: setattr(idle.child, "messages", 1),
    ],
    ids=["bulk", "interactive", "image", "text", "poster", "its-own", "of-a-dead-worker", "message"],
)
def test_work_brings_the_model_back(idle, put):
    """Whatever waits; messages are asked for again when the model is loaded."""
    idle.unloaded()
    put(idle)
    began = time.monotonic()
    assert idle.step()
    assert idle.child.starts == 1
    assert began <= float(os.environ[WAKING_VARIABLE]) <= time.monotonic(), "the child counts from then"
    idle.child_says(LOADING)
    assert idle.step()
    assert idle.entry().state == LOADING, "the child speaks for itself"
    assert idle.child.held
    idle.child_says()
    assert not idle.step()
    assert not idle.child.held
    assert WAKING_VARIABLE not in os.environ


def test_work_that_comes_while_it_ends_brings_it_back_as_soon_as_it_has(idle):
    """A child that is ending cannot be kept; the request waits for the next one."""
    idle.child_says()
    idle.step()
    idle.child_says()
    idle.step()
    idle.redis.lpush("posters:requests", "token")
    assert idle.step()
    assert (idle.child.starts, idle.child.signals) == (0, [])
    idle.child.running = []
    assert idle.step()
    assert idle.step()
    assert idle.child.starts == 1


def test_bulk_work_that_rests_wakes_nobody(redis_url, idle):
    """While it is paused, or in quiet hours; nor do a request in the hands of a live worker, and a text for others."""
    other = "other@h/2/b"
    idle.registry.publish(other, READY, {})
    idle.redis.sadd("posters:requests:owners", other)
    idle.redis.hset(f"posters:requests:by:{other}", "token", "taken")
    idle.unloaded()
    idle.redis.lpush(QUEUES[BULK], "a batch")
    idle.claims.pause()
    assert idle.step()
    assert idle.child.starts == 0
    idle.claims.resume()
    quiet = Idle(redis_url, quiet_hours=quiet_now(), text=False)
    assert quiet.unloaded().quiet.startswith("quiet hours until ")
    idle.redis.lpush("posters:text-requests", "for another worker")
    assert quiet.step()
    assert quiet.child.starts == 0
    quiet.job_store.close()
    idle.redis.delete("posters:text-requests")
    assert idle.step()
    assert idle.child.starts == 1


def test_a_model_that_cannot_be_loaded_again_is_tried_again(idle, monkeypatch):
    """The worker goes on, says why, and is not ready meanwhile."""
    idle.unloaded()
    idle.redis.lpush("posters:requests", "token")
    idle.step()
    idle.child.running = [4712]
    idle.child_says(FAILED, reason="CUDA out of memory")
    assert idle.step(), "or its supervisor would end the worker for good"
    assert idle.child.ends == 2
    idle.child.running = []
    assert idle.step()
    entry = idle.entry()
    assert (entry.state, entry.get("reason")) == (
        WAITING,
        "its model is unloaded, and cannot be loaded: CUDA out of memory",
    )
    idle.redis.delete("posters:requests")  # its caller has given up, and no other asks a worker that is not ready
    assert idle.step()
    assert idle.child.starts == 1, "after a pause"
    monkeypatch.setattr(unloading, "time", SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() + 60}))
    assert idle.step()
    assert idle.child.starts == 2
    idle.child_says()
    assert not idle.step()
    idle.child.running = [4713]
    assert idle.unloaded().state == READY, "the failure is forgotten"


def test_posters_that_are_out_of_reach_are_noticed_without_a_model(redis_url, tmp_path, monkeypatch):
    """After as long as with one; whoever asks must not find out first."""
    root = tmp_path / "posters"
    root.mkdir()
    idle = Idle(redis_url, root=root)
    assert idle.unloaded().get("fault") == ""
    root.rename(tmp_path / "away")
    assert idle.step()
    assert idle.entry().get("fault") == "", "a hiccup"
    monkeypatch.setattr(idle.unload._health, "_clock", lambda: time.monotonic() + AWAY_S)
    assert idle.step()
    assert idle.entry().get("fault") == f"the posters root is out of reach: No such file or directory: {root}"
    (tmp_path / "away").rename(root)
    assert idle.step()
    assert idle.entry().get("fault") == ""
    idle.job_store.close()


def test_a_card_that_another_worker_took_is_waited_for(idle):
    """As after an outage of Redis for longer than the lease."""
    idle.unloaded()
    idle.redis.delete(card_key(GPU))
    other = Lease(idle.job_store, card_key(GPU), "other@h/2/b", 30)
    other.acquire()
    idle.redis.lpush("posters:requests", "token")
    assert idle.step()
    assert (idle.entry().state, idle.child.starts) == (WAITING, 0)
    assert idle.entry().get("reason").endswith("the GPU is in use by other@h/2/b")
    other.release()
    assert idle.step()
    assert (idle.entry().state, idle.child.starts) == (READY, 1)


def test_a_child_that_does_not_end_is_killed(idle, monkeypatch):
    """And only then."""
    idle.child_says()
    idle.step()
    idle.child_says()
    idle.step()
    assert idle.step()
    assert idle.child.signals == []
    monkeypatch.setattr(unloading, "END_S", -1.0)
    assert idle.step()
    assert idle.child.signals == [signal.SIGKILL]


@pytest.mark.parametrize("state", [READY, FAILED])
def test_the_parent_removes_what_the_child_leaves_to_it(idle, state):
    """Entry and lease; but why it failed can still be read, until it expires."""
    idle.child_says(state)
    lease = Lease(idle.job_store, card_key(GPU), OWNER, 30)
    lease.acquire()
    idle.unload.close()
    assert (idle.entry() is None) == (state == READY)
    assert (lease.current_holder() is None) == (state == READY)


def has_ended(pid):
    """Whether a process is gone, with all the memory that it had."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def unloaded(worker):
    """Wait until a real worker says so."""

    def says_so():
        entry = worker.announcement()
        return entry is not None and entry.get("unloaded_since")

    wait_for(says_so, "an idle worker to unload its model")


def image(number):
    return encoded(picture(120, 180, seed=number), "JPEG")


@pytest.fixture
def installation(redis_url, redis_server, tmp_path):
    installation = Installation(tmp_path, redis_server, idle_unload_s="1")
    yield installation
    installation.close()


def test_an_idle_worker_frees_its_memory_and_serves_what_comes(installation):
    """Its child ends; a request brings it back, how long that took is reported, and a batch is embedded."""
    names = installation.draw(3)
    worker = installation.worker("w").wait_until_ready()
    child = worker.child()
    unloaded(worker)
    assert has_ended(child)
    assert worker.child() == worker.process.pid
    assert installation.run("ready", "--worker", "w@tests").returncode == 0
    assert "unloaded since" in installation.run("status").stdout
    job = installation.producer.enqueue(names)
    assert installation.producer.embed_image(image(1), timeout=60).shape == (512,)
    took = worker.announcement().get("reloaded_s")
    assert 0 < float(took) < 60
    assert f"was loaded again in {took} s" in installation.run("status").stdout
    assert f"the model is loaded again, {took} s after work had come" in worker.log_text()
    assert job.wait(60).embedded == 3


@pytest.mark.chaos
def test_it_keeps_its_card_and_leaves_nothing_behind(installation):
    """A batch alone brings it back as well; it can be stopped while it is unloaded."""
    names = installation.draw(12)
    worker = installation.worker("w", "--include", "tests.support.fake_gpu", FAKE_GPU=GPU).wait_until_ready()
    for round_trip in range(2):
        child = worker.child()
        unloaded(worker)
        assert has_ended(child)
        with installation.redis.client as client:
            assert client.get(card_key(GPU)).startswith(f"w@tests/{worker.process.pid}/")
        if round_trip == 0:
            assert installation.index()["embedded"] == 12
    assert installation.stored() == set(names)
    assert worker.stop() == 0
    assert installation.producer.workers() == []
    with installation.redis.client as client:
        assert not client.exists(card_key(GPU))


@pytest.mark.chaos
def test_a_model_that_is_away_is_tried_again_until_it_is_back(installation):
    """A real worker, whose weights are on a disk that is gone for a while."""
    worker = installation.worker("w").wait_until_ready()
    unloaded(worker)
    weights = next(installation.folder.joinpath("model").rglob("*.safetensors"))
    weights.rename(weights.with_suffix(".away"))
    with ThreadPoolExecutor() as callers:
        vector = callers.submit(installation.producer.embed_image, image(1), timeout=120)
        wait_for(lambda: worker.announcement().state == WAITING, "the reason why it cannot be loaded")
        assert "cannot be loaded" in worker.announcement().get("reason")
        assert installation.run("ready").returncode == 1
        weights.with_suffix(".away").rename(weights)
        assert vector.result().shape == (512,)
    assert worker.process.poll() is None


@pytest.mark.chaos
def test_an_outage_of_redis_while_it_is_unloaded_is_survived(tmp_path):
    """Celery makes its connection anew without a child, and the entry is back before work comes."""
    with RedisServer(["--appendonly", "yes", "--appendfsync", "always"]) as server:
        installation = Installation(tmp_path, server, idle_unload_s="1")
        names = installation.draw(3)
        worker = installation.worker("w").wait_until_ready()
        unloaded(worker)
        server.stop()
        time.sleep(20)  # longer than the entry lives
        server.start()
        unloaded(worker)
        assert installation.producer.enqueue(names).wait(60).embedded == 3
        unloaded(worker)
        assert worker.stop() == 0
        installation.close()


@pytest.mark.chaos
def test_nothing_is_lost_whenever_it_comes(installation):
    """Requests and batches at random moments around those at which it unloads."""
    chance, names = random.Random(7), installation.draw(24)
    worker = installation.worker("w").wait_until_ready()
    children = {worker.child()}
    for number in range(8):
        time.sleep(chance.uniform(8, 13))  # it unloads 6 to 12 s after its last work
        if number % 2:
            assert installation.producer.embed_image(image(number), timeout=60).shape == (512,)
        else:
            assert installation.producer.enqueue(names[3 * number : 3 * number + 3]).wait(60).embedded == 3
        children.add(worker.child())
    assert len(children) > 2, "it was unloaded meanwhile"
    assert worker.process.poll() is None
