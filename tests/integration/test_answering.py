"""Real workers answer while they run batches: each caller gets its own vector, whatever happens beside it."""

import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from bench.image_samples import encoded, picture
from producer.errors import EmbedTimeout, UnreadablePoster
from tests.support.chaos_installation import ChaosInstallation
from tests.support.reference_vectors import TOLERANCE
from tests.support.wait import wait_for
from worker.clip_embedder import CLIPEmbedder

BATCH = 24


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """With one worker, which sleeps before each forward pass, so that there is always a batch in work."""
    installation = ChaosInstallation(tmp_path_factory.mktemp("answering"), pause_s=0.05, posters_per_batch=str(BATCH))
    installation.forks_workers = True
    installation.worker("w").wait_until_ready()
    yield installation
    installation.close()


@pytest.fixture
def bulk(installation):
    """A job that is in work during the test, and is done afterwards."""
    names = installation.draw(10 * BATCH, "bulk/")
    ended = threading.Event()
    jobs = [installation.producer.enqueue(names, force=True)]

    def go_on():
        while not ended.wait(0.1):
            if jobs[-1].progress().at_rest:
                jobs.append(installation.producer.enqueue(names, force=True))

    thread = threading.Thread(target=go_on)
    thread.start()
    wait_for(lambda: jobs[0].progress().doing, "a batch in work")
    yield jobs
    ended.set()
    thread.join()
    for job in jobs:
        assert job.wait(120).at_rest
        installation.check(job, names)


def references(model, folder, count):
    """Different images, and the vector of each as this process computes it."""
    folder.mkdir()
    images = [encoded(picture(96, 144, seed=5000 + number), "JPEG", quality=85) for number in range(count)]
    for number, image in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(image)
    embedder = CLIPEmbedder(model, "cpu", precision="fp32")
    vectors = embedder.embed_batch([folder / f"{number}.jpg" for number in range(count)], batch_size=64)
    embedder.close()
    assert len(np.unique(vectors.round(4), axis=0)) == count, "images that cannot be told apart prove nothing"
    return images, vectors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "callers"), [(150, 8), pytest.param(2000, 20, marks=pytest.mark.chaos)], ids=["short", "long"]
)
def test_none_is_answered_with_the_vector_of_another(installation, bulk, tmp_path, count, callers):
    """Many callers at once, while a batch runs and its process is killed in the middle.

    What was being decoded at that moment may be refused; all else is answered by the next process.
    """
    images, expected = references(installation.model, tmp_path / "images", count)
    found, errors, lock, numbers = {}, [], threading.Lock(), iter(range(count))

    def call():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                found[number] = np.asarray(installation.producer.embed_image(images[number], timeout=90))
            except UnreadablePoster as error:
                errors.append(error.word)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(found) > count // 3, "a third of the vectors")
    worker = installation.workers[0]
    old = installation.kill_child(worker)
    for thread in threads:
        thread.join()
    installation.wait_for_new_child(worker, old)
    wrong = [number for number, vector in found.items() if np.abs(vector - expected[number]).max() > TOLERANCE]
    assert not wrong
    assert Counter(errors).keys() <= {"crashed-worker"}
    assert len(errors) <= callers
    assert len(found) + len(errors) == count
    published = wait_for(lambda: worker.announcement().get("batch_share"), "the next batch")
    assert 0 < float(published) <= 1
    assert float(worker.announcement().get("requests_per_second")) > 0


@pytest.mark.slow
def test_a_locked_store_stops_nobody_who_does_not_need_it(installation):
    """Images are answered meanwhile; a poster waits for it, and says so when its time is over."""
    installation.draw(2, "locked")
    image = encoded(picture(96, 144, seed=1), "JPEG")
    installation.producer.embed_image(image, timeout=30)
    path = installation.settings.store.removeprefix("sqlite:")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(EmbedTimeout, match=r"locked0000\.jpg within 2 s"):
            installation.producer.embed("locked0000.jpg", timeout=2)
        began = time.monotonic()
        for _ in range(3):
            installation.producer.embed_image(image, timeout=5)
        assert time.monotonic() - began < 5
        other.execute("ROLLBACK")
    vector = installation.producer.embed("locked0001.jpg", timeout=60)
    assert np.array_equal(vector, installation.producer.embed("locked0001.jpg"))
