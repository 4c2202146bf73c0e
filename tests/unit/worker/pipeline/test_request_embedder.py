"""RequestEmbedder: every request gets its own vector, posters are stored as a batch stores them, failures say why."""

import threading

import numpy as np
import pytest
from PIL import Image

from bench.image_samples import encoded
from producer.errors import BadMessage, StoreUnavailable, UnreadablePoster
from producer.queue.messages import Poster
from producer.requests.codec import IMAGE, POSTER, Answer, Refusal, Request, poster_request
from tests.support.fake_embedder import SPACE, ColorEmbedder, batch, color_of, expected, write
from tests.support.memory_store import MemoryStore
from worker.pipeline.request_embedder import RequestEmbedder


@pytest.fixture
def build(make):
    built = []

    def build(embedder=None, store=None, **options):
        store = store or MemoryStore()
        pipeline = make(embedder, store, **options)
        built.append(RequestEmbedder(pipeline, store))
        built[-1].pipeline = pipeline
        return built[-1]

    yield build
    for one in built:
        one.close()


def image(number: int) -> Request:
    return Request(IMAGE, encoded(Image.new("RGB", (20, 30), color_of(number)), "PNG"))


def ask(requests, *asked):
    """The vectors of requests that were gathered."""
    answers = requests.embed([requests.prepare(request) for request in asked])
    assert all(isinstance(answer, Answer) and answer.space == SPACE.id for answer in answers), answers
    return [np.frombuffer(answer.vector, "<f4") for answer in answers]


def test_gathered_requests_share_a_forward_pass_and_each_gets_its_own_vector(build, root):
    """Images and posters, new and stored, in any order."""
    embedder = ColorEmbedder(64)
    requests = build(embedder)
    posters = [write(root, number) for number in (3, 4)]
    ask(requests, poster_request(posters[0]))
    asked = [image(1), poster_request(posters[0]), image(2), poster_request(posters[1])]
    for vector, number in zip(ask(requests, *asked), (1, 3, 2, 4), strict=True):
        assert vector @ expected(number) > 0.99999
    assert embedder.sizes == [1, 3]
    assert (requests.limit, requests.space, requests.kinds) == (64, SPACE.id, (IMAGE, POSTER))


def test_a_poster_is_stored_as_a_batch_stores_it(build, root):
    """The same row; its content is embedded once; a changed file gets its new vector."""
    embedder, store = ColorEmbedder(), MemoryStore()
    requests = build(embedder, store)
    poster, copy = write(root, 1, "a.png"), write(root, 1, "b.png")
    ask(requests, poster_request(poster), poster_request(poster))
    rows = store.rows(SPACE.id, ["a.png"])
    assert requests.pipeline.run(batch([poster])).unchanged == 1
    assert requests.pipeline.run(batch([poster], verify=True)).unchanged == 1
    assert store.rows(SPACE.id, ["a.png"]) == rows
    sizes = list(embedder.sizes)
    for request in (poster_request(copy), poster_request(poster)):
        assert ask(requests, request)[0] @ expected(1) > 0.99999
    assert embedder.sizes == sizes
    assert store.rows(SPACE.id, ["b.png"])["b.png"].digest == rows["a.png"].digest
    changed = write(root, 2, "a.png")
    assert ask(requests, poster_request(changed))[0] @ expected(2) > 0.99999
    assert store.get(SPACE.id, ["a.png"])["a.png"] @ expected(2) > 0.99999


def test_nothing_of_an_image_is_stored(build):
    """It is no poster."""
    store = MemoryStore()
    ask(build(store=store), image(1))
    assert store.count(SPACE.id) == 0


def test_what_cannot_be_read_says_why(build, root):
    """As in a batch: outside the root, missing, no image; and a request that is none."""
    requests = build()
    write(root, 1)  # the root is not empty
    (root / "text.png").write_bytes(b"no picture")
    for request, word in (
        (Request(IMAGE, b"no picture"), "unreadable"),
        (poster_request(Poster("a", "text.png")), "unreadable"),
        (poster_request(Poster("a", "nothing.png")), "missing"),
        (poster_request(Poster("a", "../secret.png")), "outside-root"),
    ):
        with pytest.raises(UnreadablePoster) as caught:
            requests.prepare(request)
        assert caught.value.word == word
    with pytest.raises(BadMessage):
        requests.prepare(Request(POSTER, b"[]"))


def test_an_image_without_a_vector_is_refused_alone(build, root):
    """A poster of the same content is not stored."""
    embedder, store = ColorEmbedder(), MemoryStore()
    embedder.refuse = {color_of(1)[0]}
    requests = build(embedder, store)
    asked = [image(1), image(2), poster_request(write(root, 1))]
    first, second, third = requests.embed([requests.prepare(request) for request in asked])
    assert first == third == Refusal("internal", "no number")
    assert np.frombuffer(second.vector, "<f4") @ expected(2) > 0.99999
    assert store.count(SPACE.id) == 0


def test_images_need_no_store(build, root, monkeypatch):
    """One that is locked fails posters, which are tried again, and nothing else."""

    def locked(*_, **__):
        raise StoreUnavailable("locked")

    store = MemoryStore()
    requests = build(store=store)
    for name in ("rows", "get", "put", "by_content"):
        monkeypatch.setattr(store, name, locked)
    ask(requests, image(1))
    with pytest.raises(StoreUnavailable):
        requests.prepare(poster_request(write(root, 1)))


def test_requests_are_answered_while_a_batch_runs(build, root):
    """Its device waits; requests do not. What they took of the device is in its timings."""
    free, running = threading.Event(), threading.Event()

    class Device(ColorEmbedder):
        def submit(self, pixels, *, urgent=False):
            chunk = super().submit(pixels)
            if not urgent:
                running.set()
                free.wait(10)
            return type(chunk)(chunk.vectors, chunk.failures, 0.5)

    requests = build(Device(4))
    done = []
    thread = threading.Thread(
        target=lambda: done.append(requests.pipeline.run(batch([write(root, number) for number in range(9)])))
    )
    thread.start()
    assert running.wait(10)
    assert ask(requests, image(50))[0] @ expected(50) > 0.99999
    free.set()
    thread.join(10)
    assert done[0].embedded == 9
    assert requests.pipeline.timings.for_requests == pytest.approx(0.5, abs=0.1), "the forward pass, and decoding"


def test_decoding_counts_where_the_device_is_the_processor(build, monkeypatch):
    """It takes cores from the batch, which is to have half of them."""
    monkeypatch.setattr("worker.pipeline.request_embedder.usable_cores", lambda: 2)
    requests = build()
    prepared = [requests.prepare(image(number)) for number in (1, 2)]
    assert all(each.core_s > 0 for each in prepared)
    for each in prepared:
        each.core_s = 3.0
    with requests.share.batch():
        requests.embed(prepared)
        assert requests.share.requests_s >= 3.0
