"""Stores, jobs and queued batches that version 0.1 left behind are read and finished by the code of today."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest

from producer.queue.jobs import JobStore
from producer.queue.progress import Failure
from producer.vectors import open_store
from tests.support.ledger_jobs import holds
from tests.support.old_ledger import LEDGER, STORE, restore
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
