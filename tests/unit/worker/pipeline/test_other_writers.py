"""What others do to the store during a batch: its file is deleted or replaced, or another worker is faster."""

import threading
from contextlib import closing, suppress

import numpy as np
import pytest

from producer.errors import StoreError, StoreUnavailable
from producer.vectors.sqlite import SQLiteStore
from tests.support.fake_embedder import SPACE, ColorEmbedder, batch, expected, write
from tests.support.memory_store import MemoryStore
from tests.support.wait import wait_for


class Meddler(ColorEmbedder):
    """Calls `meddle` once, before the chunk with that number."""

    def __init__(self, chunk, meddle):
        super().__init__(4)
        self.at, self.meddle = chunk, meddle

    def submit(self, pixels):
        if len(self.sizes) == self.at:
            self.meddle()
        return super().submit(pixels)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store" / "v.db"


@pytest.fixture
def store(path):
    with closing(SQLiteStore(str(path))) as store:
        yield store


def delete(path):
    for file in path.parent.glob("v.db*"):
        file.unlink()


def check(path, numbers):
    """The file that the path means holds exactly these posters, each with its own vector."""
    with closing(SQLiteStore(str(path))) as store:
        found = store.get(SPACE.id, [f"{number:03}.png" for number in numbers])
        assert store.count(SPACE.id) == len(found) == len(numbers)
    for number in numbers:
        assert found[f"{number:03}.png"] @ expected(number) > 0.99999


def run(pipeline, batch):
    """Run a batch as a worker does: once more after an outage, as when the file is deleted while it is opened."""
    with suppress(StoreError):
        return pipeline.run(batch)
    return pipeline.run(batch, begun_before=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_file_that_is_deleted_during_a_batch_costs_no_vector(root, make, path, store, force, at):
    """Each counted poster is in the file that a reader opens: what was in the other one is embedded again."""
    posters = [write(root, number) for number in range(20)]
    embedder = Meddler(at, lambda: delete(path))
    outcome = run(make(embedder, store), batch(posters, force=force))
    assert (outcome.embedded, outcome.reused, outcome.unchanged, outcome.failures) == (20, 0, 0, ())
    check(path, range(20))


def test_what_was_unchanged_in_a_deleted_file_is_embedded_again(root, make, path, store):
    """Deleted while the rest of the batch is embedded: `unchanged` is not counted for rows that are gone."""
    posters = [write(root, number) for number in range(20)]
    run(make(None, store), batch(posters[:12]))
    outcome = run(make(Meddler(1, lambda: delete(path)), store), batch(posters))
    assert (outcome.embedded, outcome.unchanged) == (20, 0)
    check(path, range(20))


def test_a_batch_goes_on_in_the_file_that_replaces_another(root, make, path, store):
    """A restored backup: what it holds is kept, what it lacks is embedded."""
    posters = [write(root, number) for number in range(20)]
    with closing(SQLiteStore(str(path.with_name("backup.db")))) as backup:
        make(None, backup).run(batch(posters[:5]))

    def restore():
        delete(path)
        path.with_name("backup.db").rename(path)

    assert run(make(Meddler(3, restore), store), batch(posters)).embedded == 20
    check(path, range(20))


def test_a_poster_that_goes_with_the_store_fails_as_missing(root, make, path, store):
    """Nothing of the first round is left in the outcome."""
    posters = [write(root, number) for number in range(8)]

    def meddle():
        wait_for(lambda: store.count(SPACE.id), "the first chunk in the store")
        delete(path)
        (root / "000.png").unlink()

    outcome = run(make(Meddler(2, meddle), store), batch(posters))
    assert [(failure.id, failure.word) for failure in outcome.failures] == [("000.png", "missing")]
    assert outcome.embedded == 7
    check(path, range(1, 8))


def test_a_store_that_keeps_nothing_is_an_outage(root, make):
    """The batch is not counted, and does not go round for ever."""

    class Forgetful(MemoryStore):
        def put(self, *arguments, **options):
            super().put(*arguments, **options)
            self.delete(SPACE.id, ["001.png"])

    with pytest.raises(StoreUnavailable, match=r"1 rows keep disappearing .* 001\.png"):
        make(None, Forgetful()).run(batch([write(root, 0), write(root, 1)]))


class Late(MemoryStore):
    """Its first put waits until another writer has finished."""

    def __init__(self):
        super().__init__()
        self.reached, self.proceed, self.is_first = threading.Event(), threading.Event(), True

    def put(self, *arguments, **options):
        if self.is_first:
            self.is_first = False
            self.reached.set()
            assert self.proceed.wait(30)
        super().put(*arguments, **options)


@pytest.mark.parametrize("before", [False, True])
def test_a_worker_that_was_frozen_overwrites_no_newer_row(root, make, before):
    """Stopped between reading and storing, while another took its batch over and the files changed."""
    posters = [write(root, number) for number in range(8)]
    store, outcomes = Late(), []
    store.is_first = False
    if before:
        run(make(None, store), batch(posters))
        posters = [write(root, number + 20, f"{number:03}.png") for number in range(8)]
    store.is_first = True
    frozen = threading.Thread(target=lambda: outcomes.append(run(make(None, store), batch(posters))))
    frozen.start()
    assert store.reached.wait(30)
    newer = [write(root, number + 50, f"{number:03}.png") for number in range(8)]
    assert run(make(None, store), batch(newer)).embedded == 8
    rows, version = store.rows(SPACE.id, [poster.id for poster in newer]), store.version(SPACE.id)
    store.proceed.set()
    frozen.join()
    assert {name: row.digest for name, row in store.rows(SPACE.id, list(rows)).items()} == {
        name: row.digest for name, row in rows.items()
    }
    assert store.version(SPACE.id) != version, "the frozen worker has written, or tried to"
    found = store.get(SPACE.id, list(rows))
    for number in range(8):
        assert found[f"{number:03}.png"] @ expected(number + 50) > 0.99999
    assert outcomes[0].embedded + outcomes[0].unchanged == 8
    assert np.array_equal(outcomes[0].failures, ())
