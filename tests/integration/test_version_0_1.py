"""Version 0.1 and the code of today: what one wrote the other reads, and workers of both share a queue and a ledger."""

import base64
import json
import shutil
from contextlib import closing

import numpy as np
import pytest

from producer.queue.claims import Claims
from producer.queue.jobs import JobStore
from producer.queue.messages import BULK, QUEUES
from producer.queue.progress import Claim, Failure, Outcome
from producer.queue.sender import create_sender, send
from producer.settings import load_settings
from producer.vectors import open_store
from tests.support.fixtures.validation_v0_1 import rejection_reason
from tests.support.ledger_jobs import batch, begin, holds, recorded
from tests.support.old_ledger import LEDGER, STORE, OldWorker, restore
from tests.support.wait import wait_for

(UNFINISHED,) = json.loads(LEDGER.read_text(encoding="utf-8"))["posters:active"]["value"]


@pytest.fixture
def job_store(redis_url, redis_server):
    with redis_server.client as client:
        restore(client)
    with closing(JobStore(redis_url)) as job_store:
        yield job_store


def test_the_rows_of_its_store_are_found(tmp_path):
    """Ids, vectors, and what is known of the files; and the store takes new rows."""
    shutil.copy(STORE, tmp_path / "v.db")
    with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
        (info,) = store.spaces()
        assert (info.space.model, info.space.dimension, info.count) == ("tiny", 8, 3)
        assert store.current() == info.space.id
        found = store.get(info.space.id, ["a", "b", "c", "z"])
        assert sorted(found) == ["a", "b", "c"]
        assert np.array_equal(np.stack([found[name] for name in "abc"]), np.eye(3, 8, dtype=np.float32))
        (row,) = (row for row in store.rows(info.space.id, ["b"]).values())
        assert (row.digest, row.size, row.mtime_ns) == ("digest-b", 1001, 10**18)
        store.put(info.space, [row._replace(id="z")], np.eye(1, 8, 5, dtype=np.float32))
        assert store.spaces()[0].count == 4


def test_its_jobs_add_up(job_store):
    """The job that had ended, the one that had not, and their order."""
    finished, unfinished = job_store.progress("finished"), job_store.progress(UNFINISHED)
    assert finished.at_rest
    assert holds(finished)
    counts = (finished.submitted, finished.embedded, finished.reused, finished.unchanged, finished.failed)
    assert counts == (7, 2, 1, 2, 2)
    assert (unfinished.at_rest, unfinished.submitted, unfinished.open_batches) == (False, 2, 1)
    assert job_store.list_jobs() == [UNFINISHED, "finished"]


def test_its_failures_are_listed(job_store):
    """With names of files that are not UTF-8."""
    failures = sorted(job_store.failures("finished"))
    assert failures == [
        Failure("d", "d.jpg", "not_an_image", "it is a text"),
        Failure("e", "caf\udce9.jpg", "missing", "it is not there"),
    ]


def test_its_worker_reads_the_batches_of_today(job_store):
    """Byte by byte as it recorded them itself: it may hold the redelivery lease, and send them again."""
    job = f"posters:job:{UNFINISHED}:open"
    text = json.loads(LEDGER.read_text(encoding="utf-8"))[job]["value"][f"{UNFINISHED}.1"]
    found = recorded(job_store, UNFINISHED, f"{UNFINISHED}.1")
    job_store.redis.delete(f"posters:job:{UNFINISHED}")
    job_store.create(UNFINISHED)
    job_store.record_step(UNFINISHED, 1, batch=found)
    assert job_store.redis.hget(job, f"{UNFINISHED}.1") == text


def test_its_worker_defers_the_messages_of_today(redis_url, redis_server):
    """It lets them pass to its task, which sees that they are newer, and leaves the batch for a minute."""
    with redis_server.client as client, create_sender(load_settings(redis_url=redis_url)) as app:
        send(app, batch())
        element = client.rpop(QUEUES[BULK])
    assert rejection_reason(element.encode()) is None
    ((message,), _, _) = json.loads(base64.b64decode(json.loads(element)["body"]))
    assert message["version"] == 2


def test_workers_of_both_versions_share_a_ledger(redis_url, redis_server):
    """Each takes over what the other left; every poster is counted once, and nothing stays behind."""
    with closing(JobStore(redis_url)) as job_store:
        claims, old = Claims(job_store), OldWorker(job_store, "old")
        begin(job_store, *(batch(number) for number in range(1, 5)))
        assert claims.claim(batch(1), "new#1").verdict is Claim.WORK
        assert old.claim(batch(1)) == ("busy", 0)
        assert claims.release(batch(1), "new#1")
        assert old.claim(batch(1)) == ("work", 1)
        assert claims.claim(batch(1), "new#2").verdict is Claim.BUSY
        assert old.renew(batch(1), 2)
        assert old.finish(batch(1))
        assert old.claim(batch(2)) == ("work", 1)
        assert old.release(batch(2))
        assert sorted(claims.take_returned()) == [("job", "job.2")]
        assert claims.claim(batch(2), "new#3")[:3] == (Claim.WORK, 1, True)
        assert not old.renew(batch(2), 1)
        assert claims.finish(batch(2), Outcome(embedded=4))
        assert claims.claim(batch(3), "new#4").verdict is Claim.WORK
        assert old.finish(batch(3)), "its claim had expired, and the old worker had begun before"
        assert old.split(batch(4))
        for half in batch(4).halves():
            claimed = claims.claim(half, "new#5")
            assert claimed.batch(half) == half
            assert claims.finish(half, Outcome(unchanged=2))
        progress = job_store.progress("job")
        assert progress.at_rest
        assert holds(progress)
        assert (progress.embedded, progress.unchanged) == (12, 4)
        with redis_server.client as client:
            assert [key for key in client.keys("*") if client.ttl(key) < 0] == ["posters:jobs"]


def test_its_queued_batch_is_done(installation):
    """A message of version 1, as it lies in the lane's list, by a worker that never saw the sender."""
    with installation.redis.client as client:
        restore(client)
    for name, drawn in zip(("one.png", "two.png"), installation.draw(2), strict=True):
        (installation.root / drawn).rename(installation.root / name)
    installation.worker("newer").wait_until_ready()
    progress = wait_for(lambda: (found := installation.producer.job(UNFINISHED).progress()).at_rest and found, "an end")
    assert holds(progress)
    assert (progress.submitted, progress.embedded) == (2, 2)
    assert installation.stored() == {"one.png", "two.png"}
