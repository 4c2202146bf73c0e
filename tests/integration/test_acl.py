"""docs/redis.acl: a backend can do all of its own work, and nothing that only a worker does.

Whether a worker can do its work is shown by every test that starts one: it connects as posters-worker.
"""

import json
import os
import re
import subprocess

import numpy as np
import pytest
import redis
import yaml
from click.testing import CliRunner

from producer import Producer
from producer.__main__ import main
from producer.embedding import Space
from producer.errors import Busy, JobUnknown, PosterError, StoreUnavailable
from producer.queue.claims import Claims
from producer.queue.dead_letters import DeadLetters
from producer.queue.jobs import JobStore
from producer.queue.keys import job_keys, sender_key
from producer.queue.locks import Lease
from producer.queue.messages import QUEUES, BatchMessage, EmbedBatch, Poster
from producer.queue.progress import Outcome
from producer.queue.redelivery import Redelivery
from producer.queue.sender import send
from producer.queue.workers import READY, WorkerRegistry
from producer.requests.client import RequestClient
from producer.requests.codec import CRASHED, IMAGE, REQUESTS, Answer, Request, request_key
from producer.requests.inbox import Inbox
from producer.settings import load_settings, without_password
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.project import PROJECT
from tests.support.redis_server import ACL, BACKEND, RedisServer
from tests.support.wait import wait_for

SPACE = Space("m", "0" * 12, "gelu", "none", 2)
ROWS = [Row("a.jpg", "d" * 64, 1, 1), Row("b.jpg", "e" * 64, 1, 1)]
BATCH = EmbedBatch("J", "J.1", (Poster("a.jpg", "a.jpg"), Poster("b.jpg", "b.jpg")))


@pytest.fixture
def backend(redis_url, tmp_path):
    """A producer that connects as the backend's user, to the store as well."""
    for row in ROWS:
        (tmp_path / row.id).write_bytes(b"x")
    url = RedisServer.as_backend(redis_url)
    assert "posters-backend" in url
    settings = load_settings(redis_url=url, root=tmp_path, store=url[:-1] + "1", catalogue="none")
    producer = Producer(settings)
    yield producer
    producer.close()


@pytest.fixture
def worker(redis_url):
    """The ledger as a worker has it."""
    job_store = JobStore(redis_url)
    yield job_store
    job_store.close()


def vectors():
    return np.eye(2, dtype=np.float32)


def test_a_backend_can_send_follow_cancel_and_redeliver(backend, worker):
    """Everything that `Producer` and `index` do with the ledger and the lanes."""
    claims = Claims(worker)
    job = backend.enqueue([backend.settings.root / row.id for row in ROWS])
    (name,) = claims.open_batches(job.id)
    message = BatchMessage(job.id, name)
    batch = claims.claim(message, "w#1").batch(message)
    claims.release(batch, "w#1", 0)
    backend.claims.pause()
    claims.claim(message, "w#1")
    assert backend.claims.resume() == 1
    again = Redelivery(backend.claims, backend.job_store, lambda lost: send(backend._app, lost))
    again._returned_at = again._scan_at = 0
    assert again.run() == 1
    again.close()
    claims.claim(batch, "w#2")
    claims.finish(batch, Outcome(embedded=2))
    assert job.wait(5).embedded == 2
    assert list(job.failures()) == []
    second = backend.enqueue([backend.settings.root / row.id for row in ROWS], force=True)
    assert backend.claims.cancel(second.id) == 2
    assert backend.job_store.list_jobs() == [second.id, job.id]
    backend.job_store.list_active()


def test_a_backend_can_take_a_job_at_rest_off_the_active_ones(backend, worker, redis_server):
    """One whose producer died, and one whose entry Redis has lost: `index` does both while it waits, `cancel` too."""
    abandoned, lost = (backend.begin() for _ in range(2))
    with redis_server.client as client:
        client.delete(sender_key(abandoned.id), sender_key(lost.id), *job_keys(lost.id, ""))
    with pytest.raises(JobUnknown):
        lost.cancel()
    assert backend.job_store.list_active() == []
    assert worker.progress(abandoned.id).state == "abandoned"


def test_a_backend_can_have_an_image_embedded(backend, redis_url):
    """It puts the image, waits for the answer, renews and withdraws it, and finds out that too many wait."""
    mine, theirs = RequestClient(backend.settings.redis_url, 1, backend.workers), Inbox(redis_url, REQUESTS, "w@h/1/a")
    request = Request(IMAGE, b"image")
    token = mine.put(request, 5)
    with pytest.raises(Busy):
        mine.put(request, 5)
    theirs.answer({taken.token: Answer("s", b"1234") for taken in theirs.take(8)})
    assert mine.wait(request, token, 5).shape == (1,)
    token = mine.put(request, 5)
    assert mine._redis.expire(request_key(token), 9)
    assert mine.wait(request, token, 0.1) is None
    mine.close()
    theirs.close()


def test_a_backend_can_read_prune_and_choose_what_workers_stored(backend, redis_url):
    """`Index`, `export`, `prune` and `spaces`; `doctor` and `ready` as well."""
    with_rights = open_store(redis_url[:-1] + "1")
    with_rights.put(SPACE, ROWS, vectors(), {"by": "w"})
    store = open_store(backend.settings.store)
    assert set(store.rows(SPACE.id, ["a.jpg", "b.jpg"])) == {"a.jpg", "b.jpg"}
    assert sum(len(rows) for rows, _ in store.read(SPACE.id)) == 2
    assert store.current() == SPACE.id
    assert store.spaces()[0].count == 2
    assert store.delete(SPACE.id, ["a.jpg"]) == 1
    store.use(SPACE.id)
    store.check()
    assert store.drop(SPACE.id) == 1
    store.close()
    with_rights.close()
    variables = {
        f"POSTERS_{name.upper()}": str(getattr(backend.settings, name)) for name in ("redis_url", "root", "store")
    } | {"POSTERS_CATALOGUE": "none"}
    assert "no worker is alive" in CliRunner().invoke(main, ["ready"], env=variables).output
    registry = WorkerRegistry(redis_url)
    seen = without_password(redis_url[:-1] + "1")
    registry.publish("w@h/1/a", READY, {"store": seen, "root": str(backend.settings.root.resolve())})
    registry.close()
    findings = json.loads(CliRunner().invoke(main, ["doctor", "--json"], env=variables).output)
    wrong = {finding["name"]: finding["status"] for finding in findings if finding["status"] != "ok"}
    assert wrong == {"persistence": "misconfigured"}, "the tests' Redis keeps no log of its writes"


FORBIDDEN = {
    "claim a batch": lambda b, c: Claims(b.job_store).claim(BATCH, "b#1"),
    "renew a claim": lambda b, c: Claims(b.job_store).renew(BATCH, "w#1", 1),
    "release a claim with a pause": lambda b, c: Claims(b.job_store).release(BATCH, "w#1", 5),
    "register as a worker": lambda b, c: b.registry.publish("w@h/1/a", READY, {}),
    "withdraw a worker": lambda b, c: b.registry.withdraw("w@h/1/a"),
    "hold a GPU": lambda b, c: Lease(b.job_store, "posters:card:GPU-1", "b", 5).acquire(),
    "reject a message": lambda b, c: DeadLetters(b.job_store).put("x", "y"),
    "store a vector": lambda b, c: open_store(b.settings.store).put(SPACE, ROWS, vectors()),
    "take a request": lambda b, c: Inbox(b.settings.redis_url, REQUESTS, "w@h/1/b").take(1),
    "pop a request": lambda b, c: c.rpop(REQUESTS),
    "read another caller's image": lambda b, c: c.hget("posters:request:t", "body"),
    "answer a request": lambda b, c: Inbox(b.settings.redis_url, REQUESTS, "w@h/1/b").answer({"t": CRASHED}),
    "drop all requests": lambda b, c: c.delete(REQUESTS),
    "take a message": lambda b, c: c.brpop(QUEUES["bulk"], 1),
    "take a message from the other end": lambda b, c: c.blpop(QUEUES["bulk"], 1),
    "pop a message": lambda b, c: c.rpop(QUEUES["bulk"]),
    "drop a lane": lambda b, c: c.delete(QUEUES["bulk"]),
    "touch what kombu has delivered": lambda b, c: c.hset("unacked", "a", "b"),
    "broadcast": lambda b, c: c.publish("/0.posters.pidbox", "x"),
    "listen": lambda b, c: c.execute_command("PSUBSCRIBE", "*"),
    "read another program's keys": lambda b, c: c.get("shop:session"),
    "list keys": lambda b, c: c.keys("*"),
    "run a script of its own": lambda b, c: c.eval("return 1", 0),
    "change the server": lambda b, c: c.config_set("maxmemory", "1"),
    "empty the database": lambda b, c: c.flushdb(),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("deed", FORBIDDEN)
def test_a_backend_cannot_do_what_only_a_worker_does(backend, worker, deed):
    """Whoever has a backend's password can neither take work, nor pretend that it was done, nor write vectors."""
    worker.create("J")
    worker.record_step("J", 1, batch=BATCH)
    with_rights = WorkerRegistry(worker.url)
    with_rights.publish("w@h/1/a", READY, {})
    if "claim a" not in deed:
        Claims(worker).claim(BATCH, "w#1")
    with (
        redis.Redis.from_url(backend.settings.redis_url) as client,
        pytest.raises(
            (redis.exceptions.ResponseError, PosterError, StoreUnavailable), match=r"ermission|forbids a command"
        ),
    ):
        FORBIDDEN[deed](backend, client)
    assert with_rights.get("w@h/1/a") is not None
    with_rights.close()
    assert Claims(worker).open_batches("J") == {"J.1"}


def test_the_compose_file_starts_redis_with_a_password_for_each_user(redis_program, tmp_path):
    """Its script, with a real server: an AOF, and two users, each with its own password, and nobody else."""
    service = yaml.safe_load((PROJECT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["redis"]
    environment = {"WORKER_PASSWORD": "w0rk", "REDISCLI_AUTH": "b4ck", "PATH": os.environ["PATH"]}
    assert set(service["environment"]) < set(environment)
    script = service["command"][0].replace("$$", "$").replace("/tmp", str(tmp_path))
    script = script.replace("/etc/redis.acl", str(ACL))
    path = tmp_path / "redis.sock"
    script = script.replace("exec redis-server", f"exec {redis_program} --port 0 --unixsocket {path}")
    process = subprocess.Popen([*service["entrypoint"], script], cwd=tmp_path, env=environment)

    def answer(user, password):
        with redis.Redis(unix_socket_path=str(path), username=user, password=password) as client:
            return client.ping()

    try:
        wait_for(path.exists, "the socket", 10)
        wait_for((tmp_path / "appendonlydir").is_dir, "an AOF", 10)
        assert answer("posters-worker", "w0rk")
        assert answer("posters-backend", "b4ck")
        for user, password in ((None, None), ("default", ""), ("posters-worker", "b4ck"), ("posters-backend", "w0rk")):
            with pytest.raises(redis.AuthenticationError):
                answer(user, password)
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("right", ["hvals", "lpush"])
def test_index_ends_where_a_right_is_missing(backend, redis_server, right):
    """As it follows the job, or sends: nobody grants a right because a command waits for it, as for an outage."""
    line = next(line for line in ACL.read_text(encoding="utf-8").splitlines() if line.startswith(f"user {BACKEND} "))
    rules = re.findall(r"\([^)]*\)|\S+", line.replace(f"+{right} ", ""))[2:]
    variables = {
        "POSTERS_REDIS_URL": backend.settings.redis_url.replace(f"{BACKEND}:", "poor:"),
        "POSTERS_ROOT": str(backend.settings.root),
        "POSTERS_STORE": f"sqlite:{backend.settings.root}/x.db",
        "POSTERS_CATALOGUE": "none",
    }
    with redis_server.client as client:
        client.execute_command("ACL", "SETUSER", "poor", "reset", *rules, "nopass")
        done = CliRunner().invoke(main, ["index"], env=variables)
    assert done.exit_code == 2, done.output
    assert re.search(r"error: Redis at .* forbids a command: .*docs/redis.acl lists what is needed", done.output)
    (job,) = backend.job_store.list_jobs()
    assert backend.job_store.progress(job).state in ("sent", "finished"), "nobody goes on sending"
