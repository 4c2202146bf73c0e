"""A device that lies: the known image among the posters shows it, and what it may have spoiled leaves the store."""

import numpy as np
import pytest
import torch

from producer.errors import StoreUnavailable, WrongVectors
from producer.requests.codec import poster_request
from tests.support.fake_embedder import SPACE, Chunk, ColorEmbedder, batch, color_of, write
from tests.support.memory_store import MemoryStore
from worker.model.parity import Canary
from worker.pipeline import device_check
from worker.pipeline.request_embedder import RequestEmbedder


class Liar(ColorEmbedder):
    """Its vectors have the wrong sign from a call of `submit` on."""

    def __init__(self, chunk: int = 8, wrong_from: int = 10**9) -> None:
        super().__init__(chunk)
        pixels = torch.full((3, 16, 16), 200, dtype=torch.uint8)
        self.canary = Canary(pixels, super().submit(pixels[None]).vectors[0])
        self.sizes.clear()
        self.wrong_from = wrong_from
        self.canaries = 0

    def submit(self, pixels, *, urgent=False):
        chunk = super().submit(pixels)
        self.canaries += torch.equal(pixels[-1], self.canary.pixels)
        return Chunk(-chunk.vectors, {}) if len(self.sizes) > self.wrong_from else chunk


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(device_check, "CHECK_EVERY", 20)


def test_a_healthy_device_is_checked_every_so_many_posters(root, make):
    """With the first chunk, and once per interval; no chunk exceeds its size, and each poster has its own vector."""
    embedder, store = Liar(), MemoryStore()
    posters = [write(root, number) for number in range(60)]
    pipeline = make(embedder, store)
    assert pipeline.run(batch(posters)).embedded == 60
    assert 2 <= embedder.canaries <= 4
    assert max(embedder.sizes) <= 8
    assert sum(embedder.sizes) == 60 + embedder.canaries
    for number, poster in enumerate(posters):
        wanted = np.array([*(value + 1 for value in color_of(number)), 0, 0, 0, 0, 0])
        assert store.get(SPACE.id, [poster.id])[poster.id] @ (wanted / np.linalg.norm(wanted)) > 0.9999


def test_with_one_image_per_pass_it_is_checked_all_the_same(root, make):
    """There, no chunk has room for another."""
    embedder = Liar(chunk=1)
    make(embedder).run(batch([write(root, number) for number in range(3)]))
    assert embedder.canaries == 1


def test_a_device_that_becomes_wrong_loses_what_it_stored_since_it_was_right(root, make, caplog):
    """Also in batches before; those of the last chunk that was checked stay, the rest is left to a fresh process."""
    embedder, store = Liar(), MemoryStore()
    pipeline = make(embedder, store)
    posters = [write(root, number) for number in range(60)]
    assert pipeline.run(batch(posters[:4])).embedded == 4
    embedder.wrong_from = len(embedder.sizes)
    assert pipeline.run(batch(posters[4:10])).embedded == 6, "it is not due yet"
    with pytest.raises(WrongVectors, match="a known image has a cosine of -1"):
        pipeline.run(batch(posters[10:]))
    left = store.rows(SPACE.id, [poster.id for poster in posters])
    assert sorted(left) == [posters[0].id], "the first chunk, of one poster and the canary"
    assert "are removed: run `index` again" in caplog.text
    healthy = make(Liar(), store)
    assert healthy.run(batch(posters)).embedded == 59


def test_if_the_store_is_away_the_log_says_what_stays(root, make, caplog):
    """The process ends nevertheless."""

    class Away(MemoryStore):
        def delete(self, space_id, ids):
            raise StoreUnavailable("locked")

    pipeline = make(Liar(wrong_from=0), Away())
    with pytest.raises(WrongVectors):
        pipeline.run(batch([write(root, number) for number in range(4)]))
    assert "may be wrong, and stay: locked" in caplog.text


def test_copies_of_a_doubtful_vector_leave_the_store_as_well(root, make):
    """Of the same content in its batch, and in a later one, which took them from the store."""
    embedder, store = Liar(), MemoryStore()
    pipeline = make(embedder, store)
    first, *posters = [write(root, number) for number in range(40)]
    copies = [write(root, 1, "copy.png"), write(root, 1, "another.png")]
    assert pipeline.run(batch([first])).embedded == 1
    embedder.wrong_from = len(embedder.sizes)
    assert pipeline.run(batch([posters[0], copies[0]])).reused == 1
    assert pipeline.run(batch([copies[1], write(root, 0, "right.png")])).reused == 2
    assert len(store.rows(SPACE.id, [poster.id for poster in copies])) == 2
    with pytest.raises(WrongVectors):
        pipeline.run(batch(posters[1:]))
    ids = [poster.id for poster in (first, *posters, *copies)]
    assert sorted(store.rows(SPACE.id, [*ids, "right.png"])) == [first.id, "right.png"]


def test_requests_check_the_device_too_and_end_what_a_batch_stores(root, make, caplog):
    """The vectors of posters that they stored leave the store; nothing is stored after that."""
    embedder, store = Liar(), MemoryStore()
    pipeline = make(embedder, store)
    requests = RequestEmbedder(pipeline, store)
    posters = [write(root, number) for number in range(30)]
    try:
        requests.embed([requests.prepare(poster_request(posters[0]))])
        assert embedder.canaries == 1, "with the first chunk"
        embedder.wrong_from = len(embedder.sizes)
        prepared = [requests.prepare(poster_request(poster)) for poster in posters[1:]]
        with pytest.raises(WrongVectors, match="a known image has a cosine of -1"):
            list(map(requests.embed, ([each] for each in prepared)))
    finally:
        requests.close()
    assert embedder.canaries == 2
    assert store.rows(SPACE.id, [poster.id for poster in posters]) == {}
    assert "20 vectors since the last check are removed" in caplog.text
    with pytest.raises(WrongVectors):
        pipeline.run(batch(posters[:2]))
    assert store.rows(SPACE.id, [poster.id for poster in posters]) == {}
