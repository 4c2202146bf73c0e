"""`doctor` says what is wrong with Redis and with the queue, and what to do."""

import json
import socket
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from click.testing import CliRunner

from producer import Producer
from producer.__main__ import main
from producer.doctor.examine import examine
from producer.doctor.finding import Status
from producer.embedding import Space
from producer.queue.workers import FAILED, LOADING, READY, WAITING
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.redis_server import RedisServer


@pytest.fixture
def producer(redis_url, tmp_path):
    settings = load_settings(redis_url=redis_url, root=tmp_path, store=f"sqlite:{tmp_path / 'v.db'}", catalogue="none")
    producer = Producer(settings)
    yield producer
    producer.close()


def found(producer):
    return {finding.name: finding for finding in examine(producer)}


@contextmanager
def configured(redis_server, **options):
    """The server with other options, of which it has the defaults afterwards."""
    names = {name: name.replace("_", "-") for name in options}
    with redis_server.client as client:
        before = {name: client.config_get(names[name])[names[name]] for name in options}
        for name, value in options.items():
            client.config_set(names[name], value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(names[name], value)


def test_a_redis_that_may_evict_the_queue_is_a_failure(producer, redis_server):
    """noeviction is right; the password is never shown."""
    assert found(producer)["eviction"].ok
    assert "only-for-tests" not in found(producer)["redis"].text
    with configured(redis_server, maxmemory_policy="allkeys-lru"):
        eviction = found(producer)["eviction"]
    assert eviction.status is Status.MISCONFIGURED
    assert "allkeys-lru" in eviction.text
    assert "noeviction" in eviction.way_out


def test_a_redis_that_loses_batches_says_what_a_restart_would_lose(producer, redis_server):
    """Jobs can be sent again, which is worth a warning; vectors cannot."""
    producer.create_job()
    persistence = found(producer)["persistence"]
    assert persistence.status is Status.WARNING
    assert "what is queued (1 unfinished job(s)): " in persistence.text
    assert "appendonly yes" in persistence.way_out
    with_vectors = producer.settings.model_copy(update={"store": producer.settings.redis_url.removesuffix("0") + "1"})
    with closing(Producer(with_vectors)) as other:
        persistence = found(other)["persistence"]
    assert persistence.status is Status.MISCONFIGURED
    assert "and the vectors" in persistence.text
    with configured(redis_server, appendonly="yes"):
        assert found(producer)["persistence"].status is Status.OK


def test_the_redis_of_the_store_is_looked_at_as_well(producer):
    """Where it is another one, it holds the vectors and nothing else."""
    with RedisServer(["--maxmemory-policy", "volatile-lru"]) as elsewhere:
        settings = producer.settings.model_copy(update={"store": elsewhere.url})
        with closing(Producer(settings)) as other:
            findings = found(other)
    assert findings["eviction"].ok
    assert "vectors" in findings["eviction of the store"].text
    assert findings["persistence of the store"].status is Status.MISCONFIGURED
    assert findings["memory of the store"].ok


def test_a_redis_that_is_almost_full_is_a_warning(producer, redis_server):
    """Before it refuses writes."""
    used = int(producer.job_store.server_info()["used_memory"])
    with configured(redis_server, maxmemory=str(int(used * 1.05))):
        memory = found(producer)["memory"]
    assert memory.status is Status.WARNING
    assert "maxmemory" in memory.way_out


def test_a_wrong_password_is_told_from_absence(producer, redis_server):
    """Redis answers: starting it again would not help. A server that wants one, and gets none, is the same case."""
    url = producer.settings.redis_url
    for wrong in (url.replace("only-for-tests", "wrong"), url.replace("posters-worker", "nobody")):
        with closing(Producer(producer.settings.model_copy(update={"redis_url": wrong}))) as other:
            refused = found(other)["redis"]
        assert refused.status is Status.MISCONFIGURED
        assert "POSTERS_REDIS_URL" in refused.way_out
        assert "redis-server" not in refused.way_out
    away = producer.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with closing(Producer(away)) as other:
        absent = found(other)["redis"]
    assert absent.status is Status.UNREACHABLE
    assert "redis-server" in absent.way_out
    without = producer.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{redis_server.port}/0"})
    with configured(redis_server, requirepass="secret"), closing(Producer(without)) as other:
        assert found(other)["redis"].status is Status.MISCONFIGURED


def test_clocks_that_are_apart_are_named(producer, monkeypatch):
    """That of this machine, or of a worker's, which says the time with every renewal."""
    producer.registry.publish("w@gpu/1/a", READY, {"host": "gpu"})
    assert found(producer)["clocks"].status is Status.OK
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 60)
    clocks = found(producer)["clocks"]
    assert clocks.status is Status.WARNING
    assert "this machine is 60 s behind" in clocks.text
    assert "w@gpu" not in clocks.text
    producer.registry.publish("w@gpu/1/a", READY, {"host": "gpu"})
    monkeypatch.undo()
    clocks = found(producer)["clocks"]
    assert "w@gpu on gpu is 45 s behind" in clocks.text, "at least: its entry may be 15 s old"
    assert "NTP" in clocks.way_out


def test_an_old_redis_is_too_old(producer, monkeypatch):
    """The rules of docs/redis.acl cannot be loaded there."""
    info = producer.job_store.server_info()
    for version, is_right in (("6.2.14", False), ("7.0.0", True), ("10.1", True)):
        monkeypatch.setattr(
            producer.job_store, "server_info", lambda version=version: info | {"redis_version": version}
        )
        redis = found(producer)["redis"]
        assert redis.ok is is_right
        assert is_right or f"is Redis {version}" in redis.text


def test_json_holds_every_finding(producer, tmp_path):
    """As objects that a program can sort by status."""
    variables = {"POSTERS_REDIS_URL": producer.settings.redis_url, "POSTERS_ROOT": str(tmp_path)}
    done = CliRunner().invoke(main, ["doctor", "--json"], env=variables | {"POSTERS_CATALOGUE": "none"})
    findings = json.loads(done.stdout)
    assert all(finding.keys() == {"name", "text", "way_out", "status"} for finding in findings)
    assert {finding["name"]: finding["status"] for finding in findings} | {"disk": "", "store": ""} == {
        **{"redis": "ok", "eviction": "ok", "persistence": "warning", "memory": "ok", "clocks": "ok"},
        **{"worker": "unreachable", "model": "misconfigured", "device": "ok", "posters root": "ok"},
        **{"store": "", "disk": "", "dead letters": "ok"},
    }
    assert done.exit_code == 3


def test_the_exit_status_tells_a_wrong_redis_from_one_out_of_reach(producer, redis_server, redis_url, tmp_path):
    """2: it answers, and somebody has to mend its settings. 3: it does not answer, or nobody works."""
    variables = {
        "POSTERS_REDIS_URL": redis_url,
        "POSTERS_ROOT": str(tmp_path),
        "POSTERS_STORE": producer.settings.store,
        "POSTERS_CATALOGUE": "none",
    }

    def status(**others):
        return CliRunner().invoke(main, ["doctor"], env=variables | others).exit_code

    assert status() == 3
    producer.store().close()  # as the worker has opened it
    fields = {"space": "s", "space_json": "{}", "root": str(tmp_path), "store": producer.settings.store}
    producer.registry.publish("w", READY, fields)
    assert status() == 0
    with configured(redis_server, maxmemory_policy="allkeys-lru"):
        assert status() == 2
    assert status(POSTERS_REDIS_URL=redis_url.replace("only-for-tests", "wrong")) == 2
    assert status(POSTERS_REDIS_URL="redis://127.0.0.1:1/0") == 3
    assert status(POSTERS_STORE="redis://127.0.0.1:1/1") == 3


def test_the_dead_letters_are_counted_with_the_newest_reason(producer):
    """And how to look at it."""
    assert found(producer)["dead letters"].ok
    producer.dead_letters.put("x", "it is not JSON")
    dead_letters = found(producer)["dead letters"]
    assert not dead_letters.ok
    assert "1 message(s) rejected; the newest: it is not JSON" in dead_letters.text
    assert "redis-cli lrange" in dead_letters.way_out
    variables = {"POSTERS_REDIS_URL": producer.settings.redis_url, "POSTERS_STORE": producer.settings.store}
    done = CliRunner().invoke(main, ["doctor", "--clear-dead-letters"], env=variables)
    assert "1 rejected message(s) removed" in done.stderr
    assert found(producer)["dead letters"].ok


def test_a_worker_that_waits_for_its_card_is_shown_with_the_reason(producer):
    """It is no failure: another one works."""
    producer.registry.publish("a", READY, {"space": "s", "space_json": "{}"})
    producer.registry.publish("b", WAITING, {"reason": "GPU 0 is in use by a"})
    worker = found(producer)["worker"]
    assert worker.ok
    assert worker.text == "a (ready), b (waiting); b: GPU 0 is in use by a"


def test_readers_that_use_another_space_than_the_worker_makes_are_reported(producer):
    """The vectors that are read and those that are made never meet, and nobody would notice."""
    old, new = (Space("m", number * 32, "gelu", "64x64", 4) for number in "12")
    store = producer.store()
    store.put(old, [Row("a", "d", 1, 1)], np.full((1, 4), 0.5, np.float32))
    store.close()
    mine = {"store": producer.settings.store, "root": str(producer.settings.root)}
    producer.registry.publish("w", READY, {"space": new.id, "space_json": new.to_json(), **mine})
    finding = found(producer)["store"]
    assert not finding.ok
    assert f"spaces use {new.id}" in finding.way_out
    producer.registry.publish("w", READY, {"space": old.id, "space_json": old.to_json(), **mine})
    assert found(producer)["store"].ok


def test_ready_is_for_health_checks(producer, redis_url):
    """0 only for a worker that can embed now; else 1 and the reason, never another status."""

    def ready(*arguments, url=redis_url):
        done = CliRunner().invoke(main, ["ready", *arguments], env={"POSTERS_REDIS_URL": url})
        return done.exit_code, done.stderr

    status, said = ready()
    assert (status, "no worker is alive; start it: " in said) == (1, True)
    producer.registry.publish("a@h/1/aa", LOADING, {"stage": "weights"})
    assert ready() == (1, "a@h is loading: weights\n")
    producer.registry.publish("b@h/2/bb", READY, {})
    assert ready() == ready("--worker", "b@h") == (0, "")
    assert ready("--worker", "a@h")[0] == 1
    status, said = ready("--worker", "c@h")
    assert (status, "no worker c@h is alive (alive: a@h, b@h)" in said) == (1, True)
    producer.registry.publish("b@h/3/cc", LOADING, {})  # the entry of its predecessor is about to expire
    assert ready("--worker", "b@h")[0] == 0
    status, said = ready(url="redis://127.0.0.1:1/0")
    assert (status, "does not answer" in said) == (1, True)


def test_a_worker_that_has_loaded_its_model_may_still_not_be_ready(producer, redis_url):
    """What it says of itself is the reason, in `ready`, `status` and `doctor`."""

    def run(*arguments):
        return CliRunner().invoke(main, arguments, env={"POSTERS_REDIS_URL": redis_url})

    producer.registry.publish("a@h/1/aa", READY, {"fault": "the store does not answer"})
    done = run("ready")
    assert (done.exit_code, done.stderr) == (1, "a@h is ready, but the store does not answer\n")
    assert "the store does not answer" in run("status").stdout
    assert (found(producer)["worker"].ok, found(producer)["worker"].text) == (False, done.stderr.strip())
    producer.registry.publish("b@h/1/aa", READY, {"fault": ""})
    assert run("ready").exit_code == 0
    assert run("ready", "--worker", "a@h").exit_code == 1


def test_a_cpu_in_place_of_a_lost_card_is_shown(producer, redis_url):
    """It works, and many times slower: ready, and yet not well."""
    fields = {"lost_device": "cuda:0 NVIDIA H200", "device": "cpu", "bottleneck": "device-bound"}
    producer.registry.publish("a@h/1/aa", READY, fields)
    shown = CliRunner().invoke(main, ["status"], env={"POSTERS_REDIS_URL": redis_url}).stdout
    assert "THE CPU in place of cuda:0 NVIDIA H200; device-bound" in shown
    assert CliRunner().invoke(main, ["ready"], env={"POSTERS_REDIS_URL": redis_url}).exit_code == 0
    assert "uses the CPU in place of cuda:0 NVIDIA H200" in found(producer)["device"].text
    assert "nvidia-smi" in found(producer)["device"].way_out


def test_ready_live_is_for_what_restarts_a_worker(producer, redis_url):
    """A model may take minutes to load, and a restart brings no Redis back."""

    def live(*arguments, url=redis_url):
        return CliRunner().invoke(main, ["ready", "--live", *arguments], env={"POSTERS_REDIS_URL": url}).exit_code

    assert live() == 1
    for state, status in ((LOADING, 0), (WAITING, 0), (READY, 0), (FAILED, 1)):
        producer.registry.publish("a@h/1/aa", state, {"fault": "the store does not answer"})
        assert live("--worker", "a@h") == status
    assert live("--worker", "b@h") == 1
    assert live(url="redis://127.0.0.1:1/0") == 0


def test_two_files_of_one_name_are_two_stores(producer, tmp_path, monkeypatch):
    """The worker and this program were started in different folders, each with `sqlite:data/e.db`."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    ids = {}
    for name in ("there", "here"):
        monkeypatch.chdir(tmp_path / name)
        with closing(open_store("sqlite:data/e.db")) as store:
            ids[name] = store.check()
    relative = Producer(load_settings(redis_url=producer.settings.redis_url, root=tmp_path, store="sqlite:data/e.db"))
    with closing(relative):

        def seen(folder, **fields):
            about = {"space": "s", "space_json": "{}", "root": tmp_path, "store": "sqlite:data/e.db", "folder": folder}
            relative.registry.publish("w", READY, about | fields)
            return found(relative)["store"]

        there = seen(tmp_path / "there", store_id=ids["there"])
        assert not there.ok
        assert str(tmp_path / "there" / "data" / "e.db") in there.text
        assert str(tmp_path / "here" / "data" / "e.db") in there.text
        assert seen(tmp_path / "here", store_id=ids["here"]).ok
        assert seen("/srv", store="sqlite:volume/e.db", store_id=ids["here"], host="container").ok, "as mounted there"
        copy = tmp_path / "there" / "data" / "copy.db"
        copy.write_bytes((tmp_path / "here" / "data" / "e.db").read_bytes())
        same_host = {"store_id": ids["here"], "host": socket.gethostname()}
        assert not seen("/", store=f"sqlite:{copy}", **same_host).ok, "a copy has the id of the original"
        assert seen("/", store=f"sqlite:{tmp_path}/here/data/e.db", **same_host).ok


def test_a_store_at_a_mistyped_place_is_reported_and_not_created(producer, tmp_path):
    """Neither file nor folder; what the worker writes to is named."""
    url = producer.settings.redis_url

    def seen(store):
        with closing(Producer(load_settings(redis_url=url, root=tmp_path, catalogue="none", store=store))) as other:
            return found(other)["store"]

    assert seen(f"sqlite:{tmp_path}/v.db").ok, "of an installation that begins"
    assert not seen(f"sqlite:{tmp_path}/dta/v.db").ok
    fields = {"space": "s", "space_json": "{}", "root": tmp_path, "store": f"sqlite:{tmp_path}/data/v.db"}
    producer.registry.publish("w", READY, fields)
    absent = seen(f"sqlite:{tmp_path}/v.db")
    assert not absent.ok
    assert f"{tmp_path}/data/v.db" in absent.text
    assert not list(tmp_path.iterdir())


def test_a_replica_and_a_full_redis_take_no_writes(producer, redis_server):
    """They answer, and that is all; the primary is named."""
    with redis_server.client as client:
        client.replicaof("127.0.0.1", 1)
        try:
            redis = found(producer)["redis"]
        finally:
            client.replicaof("NO", "ONE")
        assert (redis.ok, "is a replica of 127.0.0.1:1" in redis.text) == (False, True)
        client.config_set("maxmemory", 1)
        try:
            redis = found(producer)["redis"]
        finally:
            client.config_set("maxmemory", 0)
        assert (redis.ok, "is full" in redis.text) == (False, True)
        assert found(producer)["redis"].ok


def test_a_redis_cluster_is_refused(producer, monkeypatch):
    """A job's keys lie on several nodes of it."""
    info = producer.job_store.server_info()
    monkeypatch.setattr(producer.job_store, "server_info", lambda: info | {"cluster_enabled": 1})
    assert not found(producer)["redis"].ok


def test_all_points_that_need_no_redis_are_seen_without_it(tmp_path, monkeypatch):
    """And a variable that looks as if it chose the Redis is named."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere/0")
    settings = load_settings(redis_url="redis://127.0.0.1:1/0", root=tmp_path / "x", store=f"sqlite:{tmp_path}/no/v.db")
    with closing(Producer(settings)) as producer:
        findings = found(producer)
    assert [name for name, finding in findings.items() if not finding.ok] == ["redis", "posters root", "store"]
    assert "CELERY_BROKER_URL in the environment does not apply" in findings["redis"].text


def test_two_roots_on_one_machine_are_reported(producer, tmp_path):
    """In a container the same folder has another path: its inode says that it is the same."""
    mine = {"space": "s", "space_json": "{}", "store": producer.settings.store}

    def root(**fields):
        producer.registry.publish("w", READY, mine | fields)
        return found(producer)["posters root"]

    assert not root(root="/other", root_inode=1, host=socket.gethostname()).ok
    assert "right if both" in root(root="/other", root_inode=1, host="elsewhere").text
    assert "/other" not in root(root="/other", root_inode=tmp_path.stat().st_ino, host="elsewhere").text
