"""Redis stops, hangs, loses data, fills up; afterwards the invariant of chaos_installation.py holds."""

import time

import pytest

from producer.errors import PosterError, RedisUnreachable
from tests.support.scenario_table import scenario
from tests.support.wait import wait_for


@pytest.mark.chaos
@scenario("Redis stopped (SIGTERM) for 5 s and started again", "`index` and worker wait and continue; nothing is lost")
def test_redis_stopped(shared_installation, measured):
    """As an upgrade of Redis does."""

    def fault():
        shared_installation.redis.stop()
        time.sleep(5)
        shared_installation.redis.start()

    measured(*shared_installation.interrupted("stopped", fault))


@scenario("Redis killed (SIGKILL), started again after 3 s", "the same: every acknowledged write is in the AOF")
def test_redis_killed(shared_installation, measured):
    """The producer is in the middle of sending, the worker in the middle of a batch."""

    def fault():
        shared_installation.redis.kill()
        time.sleep(3)
        shared_installation.redis.start()

    measured(*shared_installation.interrupted("killed", fault, count=72))


@pytest.mark.chaos
@scenario("Redis killed again and again, every 2 s", "the job completes as soon as Redis stays up")
def test_redis_flapping(shared_installation, measured):
    """A container that restarts in a loop."""

    def fault():
        for _ in range(5):
            shared_installation.redis.kill()
            time.sleep(0.5)
            shared_installation.redis.start()
            time.sleep(2)

    measured(*shared_installation.interrupted("flapping", fault, count=240))


@pytest.mark.chaos
@pytest.mark.parametrize("store", ["SQLite", "Redis"])
@scenario(
    "Redis restarts from an AOF that is some seconds old; vectors in {store}",
    "what it lost is sent again: every poster that `index` accepted is counted",
)
def test_redis_from_a_stale_aof(new_installation, measured, store):
    """Finished batches are open again; others, and vectors, were never recorded."""
    installation = new_installation(window="4", **({"store": "redis"} if store == "Redis" else {}))
    names = installation.draw(240)
    installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=10)
    installation.wait_for_some(running.job, 30)
    with installation.stale_redis():
        installation.wait_for_some(running.job, 120)
    back = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, back)
    ledger = running.finish()
    installation.check(ledger["job"], names)
    measured(recovered, installation.embedded() - 240)


@pytest.mark.chaos
@scenario(
    "Redis restarts from a stale AOF after everything was sent",
    "finished batches are open again, finished again without embedding, and counted once",
)
def test_redis_from_a_stale_aof_after_sending(new_installation, measured):
    """The producer has nothing left to send and only waits."""
    installation = new_installation(window="100")
    names = installation.draw(240)
    installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=10)
    installation.wait_for_some(running.job, 30)
    wait_for(lambda: running.job.progress().state in ("sent", "finished"), "everything sent")
    with installation.stale_redis():
        installation.wait_for_some(running.job, 150)
    back = time.monotonic()
    recovered = installation.wait_for_a_finish(running.job, back)
    ledger = running.finish()
    installation.check(ledger["job"], names)
    measured(recovered, installation.embedded() - 240)


@pytest.mark.chaos
@pytest.mark.parametrize("seconds", [5, 33, 60])
@scenario(
    "Redis hangs (SIGSTOP) for {seconds} s",
    "a backend's call fails within 5 s with an error; `index` and worker continue when Redis answers",
)
def test_redis_hangs(shared_installation, measured, seconds):
    """Connections stay open, and nothing is answered."""
    waited = []

    def fault():
        shared_installation.redis.pause()
        ends = time.monotonic() + seconds
        calls = [
            lambda: shared_installation.producer.enqueue([shared_installation.root / f"hang{seconds}" / "0000.jpg"]),
            lambda: shared_installation.producer.job("last").progress(),
        ]
        for call in calls[: 1 if seconds < 10 else 2]:  # in 5 s, a second call could reach a Redis that answers again
            called = time.monotonic()
            with pytest.raises(RedisUnreachable):
                call()
            waited.append(time.monotonic() - called)
        time.sleep(max(0.0, ends - time.monotonic()))
        shared_installation.redis.resume()

    recovered, twice = shared_installation.interrupted(f"hang{seconds}", fault, count=72)
    assert max(waited) < 5
    measured(recovered, twice, f"a backend's call failed after {max(waited):.1f} s")


@pytest.mark.chaos
@scenario("every connection cut (CLIENT KILL), four times in 2 s", "all reconnect; nothing is lost")
def test_connections_cut(shared_installation, measured):
    """What a proxy or a firewall does to idle and busy connections alike."""

    def fault():
        with shared_installation.redis.client as client:
            for _ in range(4):
                client.client_kill_filter(skipme=True, _type="normal")
                time.sleep(0.5)

    measured(*shared_installation.interrupted("cut", fault, count=120))


@pytest.mark.chaos
@scenario("all scripts flushed (SCRIPT FLUSH), six times in 3 s", "each is loaded again at its next use; nothing waits")
def test_scripts_flushed(shared_installation, measured):
    """As after a failover, or by an administrator."""

    def fault():
        with shared_installation.redis.client as client:
            for _ in range(6):
                client.script_flush()
                time.sleep(0.5)

    measured(*shared_installation.interrupted("flushed", fault, count=240))


@pytest.mark.chaos
@scenario(
    "maxmemory reached (noeviction) for 20 s",
    "a clear error for a backend, nothing half-written; `index` and worker continue when there is room",
)
def test_redis_full(new_installation, measured):
    """As when another program fills the Redis that the queue uses."""
    installation = new_installation(window="100")
    names = installation.draw(240)
    installation.worker("w").wait_until_ready()
    running = installation.index_in_background(batch=10)
    installation.wait_for_some(running.job, 30)
    with installation.redis.client as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 1_000_000)
        called = time.monotonic()
        with pytest.raises(PosterError, match=r"full|maxmemory"):
            installation.producer.enqueue([installation.root / names[0]])
        waited = time.monotonic() - called
        assert waited < 5
        time.sleep(20)
        client.config_set("maxmemory", 0)
    freed = time.monotonic()
    if installation.workers[-1].process.poll() is not None:
        installation.worker("w").wait_until_ready()  # as a service manager does
        noted = "the worker left and was started again"
    else:
        noted = "the worker stayed"
    recovered = installation.wait_for_a_finish(running.job, freed)
    installation.check(running.finish()["job"], names)
    measured(recovered, installation.embedded() - 240, f"a backend's call failed after {waited:.1f} s; {noted}")
