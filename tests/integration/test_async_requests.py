"""AsyncProducer and texts without a model: answers are one's own, waiting costs nothing, cancelling leaves nothing."""

import asyncio
import gc
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from producer import AsyncProducer, Busy, EmbedTimeout, NoWorker, Producer, RedisUnreachable, TextUnavailable
from producer.errors import ConfigurationError, JobUnknown, UnreadablePoster
from producer.search.index import Index
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Row
from tests.support.answering_worker import SPACE, AnsweringWorker, vector_of
from tests.support.fork import in_a_fork, needs_fork
from tests.support.redis_server import RedisServer
from tests.support.wait import wait_for


@pytest.fixture
def settings(redis_server, redis_url, tmp_path):
    """With the rights of a backend."""
    (tmp_path / "posters").mkdir()
    return load_settings(
        redis_url=redis_server.as_backend(redis_url),
        root=tmp_path / "posters",
        store=f"sqlite:{tmp_path / 'v.db'}",
        catalogue="none",
        max_requests=64,
    )


@pytest.fixture
def worker(redis_url):
    worker = AnsweringWorker(redis_url)
    yield worker
    worker.close()


@pytest.fixture
def held(redis_server):
    """The keys in Redis of requests, answers and jobs."""
    with redis_server.client as client:
        yield lambda: sorted(key for key in client.keys("posters:*") if "worker" not in key)


def run(settings, call):
    """What an async function of an AsyncProducer returns, in a loop of its own."""

    async def main():
        async with AsyncProducer(settings) as producer:
            return await call(producer)

    return asyncio.run(main())


def test_texts_are_embedded_by_both_clients(settings, worker, held):
    """One vector for a text, a matrix in order for several, with their space; nothing stays in Redis."""
    texts = [f"text {number}" for number in range(70)]  # more than are put at once
    expected = np.stack([vector_of(text.encode()) for text in texts])
    with Producer(settings) as producer:
        one, several, none = (producer.embed_text(given) for given in ("雨", texts, []))
    same = run(settings, lambda producer: asyncio.gather(*map(producer.embed_text, ("雨", texts, []))))
    for found in ((one, several, none), same):
        np.testing.assert_allclose(found[0], vector_of("雨".encode()), rtol=1e-6)
        np.testing.assert_allclose(found[1], expected, rtol=1e-6)
        assert found[2].shape == (0, SPACE.dimension)
        assert {vectors.space for vectors in found} == {SPACE.id}
    assert held() == []


def test_an_index_takes_the_result_as_it_is(settings, worker):
    """One or several, without another word about their space."""
    with Producer(settings) as producer, Index.open(settings) as index:
        assert index.search(producer.embed_text("a")) == []
        assert index.search(producer.embed_text(["a", "b"])) == [[], []]


@pytest.mark.parametrize("given", [b"a", None, 5, {"a"}, ["a", 5]])
def test_what_is_no_text_is_a_type_error(settings, worker, given):
    """Before anything is sent, and so is what is no timeout."""
    with Producer(settings) as producer, pytest.raises(TypeError):
        producer.embed_text(given)
    with pytest.raises(TypeError):
        run(settings, lambda producer: producer.embed_text(given))
    with pytest.raises(TypeError, match="timeout"):
        run(settings, lambda producer: producer.embed_text("a", timeout="soon"))


def test_errors_are_those_of_the_other_client(settings, worker, held):
    """A text that has no vector, by its name; a model without text; a lone surrogate. Nothing of the others stays."""
    cases = [
        ("bad one", UnreadablePoster, "the text 'bad one': unsupported: it is bad"),
        (["a", "bad one", *"bcd"], UnreadablePoster, "the text 'bad one': unsupported: it is bad"),
        ("no text", TextUnavailable, "no tokenizer here"),
        ("a \ud800", UnreadablePoster, "half of a character"),
        ("x" * 9000, UnreadablePoster, "too-large: it has 9,000 bytes"),
    ]
    with Producer(settings) as producer:
        for given, kind, text in cases:
            with pytest.raises(kind, match=text):
                producer.embed_text(given)
            with pytest.raises(kind, match=text):
                run(settings, lambda each, given=given: each.embed_text(given))
    wait_for(lambda: held() == [], "an empty Redis", 5)


def test_without_a_worker_that_embeds_text_that_is_said_at_once(settings, redis_url):
    """Instead of a time-out: POSTERS_TEXT is false there."""
    worker = AnsweringWorker(redis_url, kinds="image,poster")
    for call in (lambda producer: producer.embed_text("a"), lambda producer: producer.embed_text(["a"])):
        with Producer(settings) as producer, pytest.raises(TextUnavailable, match="POSTERS_TEXT is false"):
            call(producer)
        with pytest.raises(TextUnavailable, match="POSTERS_TEXT is false"):
            run(settings, call)
    worker.close()


def test_images_and_posters(settings, worker, tmp_path):
    """Bytes, a path, a file; a poster by its path, whose errors are those of Producer."""
    (settings.root / "a.jpg").write_bytes(b"picture")

    async def calls(producer):
        with (settings.root / "a.jpg").open("rb") as file:
            found = await asyncio.gather(
                producer.embed_image(b"picture"),
                producer.embed_image(settings.root / "a.jpg"),
                producer.embed_image(file),
            )
        assert (await producer.embed("a.jpg")).space == SPACE.id
        with pytest.raises(ConfigurationError):
            await producer.embed(settings.root)  # a folder
        with pytest.raises(UnreadablePoster, match="missing"):
            await producer.embed_image(tmp_path / "nowhere.png")
        with pytest.raises(TypeError, match=r"pathlib\.Path"):
            await producer.embed_image("nowhere.png")
        return found

    for vector in run(settings, calls):
        np.testing.assert_allclose(vector, vector_of(b"picture"), rtol=1e-6)


def test_every_call_ends_in_its_time(settings, worker, redis_url, held):
    """NoWorker, EmbedTimeout, Busy and RedisUnreachable, and nothing stays."""
    worker.go_on.clear()
    with pytest.raises(EmbedTimeout, match=r"no vector for the text 'a' within 0\.4 s"):
        run(settings, lambda producer: producer.embed_text("a", timeout=0.4))
    few = settings.model_copy(update={"max_requests": 3})

    async def crowd(producer):
        return await asyncio.gather(*(producer.embed_text(f"{n}", 1) for n in range(5)), return_exceptions=True)

    kinds = sorted(type(error).__name__ for error in run(few, crowd))
    assert kinds == ["Busy", "Busy", "EmbedTimeout", "EmbedTimeout", "EmbedTimeout"]
    assert held() == []
    worker.registry.withdraw("w@h/1/a")
    with pytest.raises(NoWorker):
        run(settings, lambda producer: producer.embed_text("a"))
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    for call in (
        lambda producer: producer.embed_text("a"),
        lambda producer: producer.embed_image(b"a"),
        lambda producer: producer.workers(),
    ):
        began = time.monotonic()
        with pytest.raises(RedisUnreachable, match=r"127\.0\.0\.1:1"):
            run(away, call)
        assert time.monotonic() - began < 5
    assert issubclass(Busy, Exception)


def test_a_redis_that_hangs_ends_every_call_within_five_seconds(redis_program, settings):
    """Before a request is put, and while it is waited for; the other client is measured elsewhere."""
    with RedisServer() as server:
        worker = AnsweringWorker(server.url)
        worker.go_on.clear()
        hanging = settings.model_copy(update={"redis_url": server.as_backend(server.url)})

        async def calls(producer):
            task = asyncio.ensure_future(producer.embed_text("a", None))
            await asyncio.sleep(0.5)
            server.pause()
            began = time.monotonic()
            others = producer.embed_text("b"), producer.embed_image(b"c", None), producer.workers()
            errors = await asyncio.gather(task, *others, return_exceptions=True)
            return errors, time.monotonic() - began

        try:
            errors, seconds = run(hanging, calls)
            assert [type(error) for error in errors] == [RedisUnreachable] * 4
            assert seconds < 5
        finally:
            server.resume()
            worker.close()


def test_a_cancelled_call_leaves_nothing_behind(settings, worker, held):
    """Whenever it is cancelled: before, while and after it is put, while it waits, alone or one of several."""
    worker.go_on.clear()

    async def cancel_at(producer, delay_s, call):
        task = asyncio.ensure_future(call(producer))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    calls = [
        lambda producer: producer.embed_text("a", 30),
        lambda producer: producer.embed_text(["a", "b", "c"], 30),
        lambda producer: producer.embed_image(b"picture", 30),
    ]

    async def cancelled(producer):
        for call in calls:
            for delay_s in (0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.3):
                await cancel_at(producer, delay_s, call)
        before = threading.active_count()
        await asyncio.gather(*(cancel_at(producer, 0.5, call) for call in calls * 5))
        assert threading.active_count() == before

    run(settings, cancelled)
    assert held() == []


def test_a_call_that_is_cut_by_a_timeout_of_asyncio_is_withdrawn(settings, worker, held):
    """As by asyncio.timeout, and wait_for."""
    worker.go_on.clear()

    async def cut(producer):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await producer.embed_text("a", None)

    run(settings, cut)
    assert held() == []


def test_waiting_is_a_blocking_read_and_takes_no_thread(settings, worker, redis_server):
    """20 callers for two seconds: no thread is added, and hardly a command is sent."""
    worker.go_on.clear()

    def commands():
        with redis_server.client as client:
            stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("blpop", "get", "exists", "smembers"))

    async def waiting(producer):
        await producer.workers()
        tasks = [asyncio.ensure_future(producer.embed_text(f"{n}", 10)) for n in range(20)]
        await asyncio.sleep(0.5)
        threads, sent = threading.active_count(), commands()
        await asyncio.sleep(2)
        assert threading.active_count() == threads
        assert commands() - sent <= 20 * 2 * 2  # a blocking read a second; at most four
        worker.go_on.set()
        began = time.monotonic()
        found = await asyncio.gather(*tasks)
        assert time.monotonic() - began < 0.5  # woken, not polled
        return found

    found = run(settings, waiting)
    for number, vector in enumerate(found):
        np.testing.assert_allclose(vector, vector_of(f"{number}".encode()), rtol=1e-6)


def test_one_client_serves_several_event_loops(settings, worker):
    """One after the other, as asyncio.run in each task of a Celery worker, and side by side in threads."""
    producer = AsyncProducer(settings)
    found = [asyncio.run(producer.embed_text("a")) for _ in range(3)]
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(producer.embed_text("a")))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for vector in found:
        np.testing.assert_allclose(vector, vector_of(b"a"), rtol=1e-6)
    gc.collect()  # a connection that was not closed with its loop would warn, which fails the test
    asyncio.run(producer.close())


@needs_fork
def test_forked_processes_have_connections_of_their_own(settings, worker):
    """As gunicorn's workers with preload: made and even used in the parent, then used in each child."""
    producer = AsyncProducer(settings)
    asyncio.run(producer.embed_text("a"))

    def in_child():
        async def both():
            return [(await producer.embed_text("b")).tolist(), (await producer.embed_image(b"c")).tolist()]

        return asyncio.run(both())

    for _ in range(2):
        b, c = in_a_fork(in_child)
        np.testing.assert_allclose(b, vector_of(b"b"), rtol=1e-6)
        np.testing.assert_allclose(c, vector_of(b"c"), rtol=1e-6)
    np.testing.assert_allclose(asyncio.run(producer.embed_text("d")), vector_of(b"d"), rtol=1e-6)
    asyncio.run(producer.close())


def test_a_job_is_followed_without_a_worker(settings, worker, redis_server):
    """Queued, watched, cancelled; a cancelled `enqueue` withdraws what it has queued."""
    for number in range(5):
        (settings.root / f"{number}.jpg").write_bytes(b"picture")

    async def follow(producer):
        job = await producer.enqueue([f"{number}.jpg" for number in range(5)] + ["/elsewhere.jpg"])
        progress = await job.progress()
        assert (progress.submitted, progress.failed, progress.open_batches) == (6, 1, 1)
        assert not (await job.wait(timeout=0.1)).at_rest
        assert [failure.word for failure in await job.failures()] == ["outside-root"]
        assert (await (await producer.job("last")).progress()).job == job.id
        seen = []

        async def watch():
            async for each in job.watch():
                seen.append(each)

        watching = asyncio.ensure_future(watch())
        await asyncio.sleep(0.4)
        assert await job.cancel() == 5
        await asyncio.wait_for(watching, 5)
        assert [each.state for each in seen] == ["sent", "cancelled"]
        with pytest.raises(JobUnknown):
            await (await producer.job("nothing")).wait()
        with pytest.raises(ConfigurationError, match="a list of paths"):
            await producer.enqueue("0.jpg")

    run(settings, follow)


def test_a_cancelled_enqueue_withdraws_what_it_has_queued(settings, worker):
    """Also in the middle of a long list."""
    (settings.root / "0.jpg").write_bytes(b"picture")
    small = settings.model_copy(update={"posters_per_batch": 1})
    read = threading.Event()

    def paths():
        yield "0.jpg"
        read.set()
        while True:
            time.sleep(0.01)
            yield "0.jpg"

    async def cancelled(producer):
        task = asyncio.ensure_future(producer.enqueue(paths()))
        while not read.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        progress = await (await producer.job("last")).progress()
        assert (progress.state, progress.open_batches) == ("cancelled", 0)

    run(small, cancelled)


def test_the_example_of_an_asynchronous_backend(settings, worker, monkeypatch):
    """examples/async_backend.py: texts, uploads and jobs; each error has its status."""
    from fastapi.testclient import TestClient

    for name in ("redis_url", "root", "catalogue", "store"):
        monkeypatch.setenv(f"POSTERS_{name.upper()}", str(getattr(settings, name) or "none"))
    from examples.async_backend import app

    with closing(open_store(settings.store)) as store:
        vectors = np.stack([vector_of(b"rain"), vector_of(b"\xff\x01\xff\x01")])
        store.put(SPACE, [Row(name, name, 1, 1) for name in ("rain.jpg", "other.jpg")], vectors)
    (settings.root / "a.jpg").write_bytes(b"picture")
    with TestClient(app) as client:
        assert client.get("/search", params={"text": "rain"}).json()[0][0] == "rain.jpg"
        assert client.post("/search", files={"image": ("x.png", b"rain")}).json()[0][0] == "rain.jpg"
        assert client.get("/search", params={"text": "bad"}).status_code == 422
        job = client.post("/jobs", json=["a.jpg"]).json()
        with Producer(settings) as producer:
            producer.job(job).cancel()
        assert client.get(f"/jobs/{job}").text == "data: 0 done, 0 failed\n\n"
        worker.registry.withdraw("w@h/1/a")
        answer = client.get("/search", params={"text": "rain"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
