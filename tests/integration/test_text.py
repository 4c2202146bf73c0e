"""Texts through a real worker, and AsyncProducer in the programs in which backends run; all with one worker."""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from producer import AsyncProducer, Index, TextUnavailable, UnreadablePoster
from tests.support.installation import Installation
from tests.support.project import PROJECT
from tests.support.redis_server import RedisServer
from tests.support.tiny_model import TEXT, write_tiny_model
from worker.clip_embedder import CLIPEmbedder

TEXTS = ["girl with a red umbrella in the rain", "two robots", "雨の中の少女", "a"]


@pytest.fixture(scope="module")
def installation(redis_server, tmp_path_factory):
    """One worker with a text tower, and twelve posters in its store."""
    with redis_server.client as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("text")
    model = write_tiny_model(folder / "with-text", text_cfg=TEXT)
    installation = Installation(folder, redis_server, model_name=model)
    installation.draw(12)
    installation.worker("text").wait_until_ready()
    installation.index()
    yield installation
    installation.close()


@pytest.fixture(scope="module")
def embedder(installation):
    """The same model in this process."""
    embedder = CLIPEmbedder(installation.settings.model_name, "cpu", precision="fp32")
    yield embedder
    embedder.close()


def test_images_are_answered_while_the_text_tower_is_loaded(installation):
    """It is loaded by the first text, once, and says how long that took; nobody else waits for it."""
    worker, image = installation.workers[0], (installation.root / "p0000.jpg").read_bytes()
    producer = installation.producer
    for _ in range(2):
        assert producer.embed_text(TEXTS[0], timeout=60).space == producer.embed_image(image, timeout=5).space
    before, *after = worker.log_text().split("text tower of local-dir:with-text: 7 MB on cpu in fp32, loaded in")
    assert len(after) == 1
    assert "12 embedded" in before
    assert "text tower" not in before
    assert worker.announcement().get("requests") == "image,poster,text"


def test_a_text_has_the_vector_that_it_has_in_process(installation, embedder):
    """Alone and among others, from both clients; an index takes it as it is."""
    expected = embedder.embed_text(TEXTS)
    vectors = installation.producer.embed_text(TEXTS, timeout=60)
    assert (vectors * expected).sum(axis=1).min() > 0.9999
    assert vectors.space == embedder.space.id

    async def embed():
        async with AsyncProducer(installation.producer.settings) as producer:
            return await asyncio.gather(*(producer.embed_text(text, 60) for text in TEXTS))

    assert (np.stack(asyncio.run(embed())) * expected).sum(axis=1).min() > 0.9999
    done = installation.run("identify", "--text", TEXTS[1], "2:two robots", "+", "text:a", "--json")
    assert done.returncode == 0, done.stderr
    summed, described = json.loads(done.stdout)
    with Index.open(installation.producer.settings) as index:
        assert [match["id"] for match in described["matches"]] == [m.id for m in index.search(vectors[1], k=5)]
        both = 2 * expected[1] + expected[3]
        found = index.search((both / np.linalg.norm(both)).astype(np.float32), k=5, space=vectors.space)
        assert [match["id"] for match in summed["matches"]] == [match.id for match in found]
        nearest = index.search(vectors, k=12)
        ids, matrix = index.vectors()
        for matches, vector in zip(nearest, expected, strict=True):
            assert matches[0].id == ids[int((np.asarray(matrix) @ vector).argmax())]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "it is empty"), ("umbrella " * 80, "it has 82 tokens, and this model reads 77"), ("\0", "NUL")],
)
def test_a_text_without_a_vector_fails_by_name(installation, text, reason):
    """With the reason of the model's tokenizer."""
    with pytest.raises(UnreadablePoster, match=reason):
        installation.producer.embed_text(text, timeout=60)


def test_an_asynchronous_client_does_all_that_the_other_does(installation, embedder):
    """Embeds a poster and stores it, indexes and follows a job, waits for one."""
    installation.draw(3, prefix="async")

    async def calls():
        async with AsyncProducer(installation.producer.settings) as producer:
            vector = await producer.embed("async0000.jpg", timeout=60)
            assert (vector * embedder.embed_image(installation.root / "async0000.jpg")).sum() > 0.9999
            job = await producer.enqueue(["async0000.jpg", "async0001.jpg", "async0002.jpg", "/elsewhere.jpg"])
            seen = [progress async for progress in job.watch()]
            assert seen[-1].state == "finished"
            assert (seen[-1].submitted, seen[-1].embedded, seen[-1].failed) == (4, 2, 1)
            assert await job.wait() == await job.progress() == seen[-1]
            assert [failure.word for failure in await job.failures()] == ["outside-root"]

    asyncio.run(calls())
    assert {"async0000.jpg", "async0001.jpg", "async0002.jpg"} <= installation.stored()


def program(installation, code):
    """Run a program with the environment of a backend; what it prints."""
    path = installation.folder / "program.py"
    path.write_text(code)
    environment = {name: installation.redis.as_backend(value) for name, value in installation.environment.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(installation.folder), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_under_uvicorn_with_two_processes(installation):
    """Each process, started anew, answers from one AsyncProducer made when the module is imported."""
    pytest.importorskip("uvicorn")
    out = program(
        installation,
        """
import asyncio, json, os, socket, subprocess, sys, time, urllib.request
from producer import AsyncProducer

producer = AsyncProducer()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await producer.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    vector = await producer.embed_text("two robots", 60)
    body = json.dumps([os.getpid(), vector.tolist()]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "program:app", "--workers", "2", "--port", str(port)]
    server = subprocess.Popen([*command, "--log-level", "error"])
    pids, vectors, ends = set(), set(), time.monotonic() + 60
    while len(pids) < 2 and time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                pid, vector = json.load(answer)
        except OSError:
            time.sleep(0.1)
            continue
        pids.add(pid)
        vectors.add(tuple(vector))
    server.terminate()
    print(len(pids), len(vectors), server.wait(20))
""",
    )
    assert out.split()[:2] == ["2", "1"]


def test_inside_a_celery_task_of_another_application(installation):
    """Its current application stays its own, before, while and after a task uses both clients."""
    out = program(
        installation,
        """
import asyncio, os
from celery import Celery, current_app
from producer import AsyncProducer, Producer

app = Celery("shop", broker=os.environ["POSTERS_REDIS_URL"].replace("/0", "/5"), backend="cache+memory://")
app.conf.task_always_eager = True
producer, asynchronous = Producer(), AsyncProducer()


@app.task
def describe(text):
    assert current_app._get_current_object() is app
    one = producer.embed_text(text, 60)
    other = asyncio.run(asynchronous.embed_text(text, 60))
    job = asyncio.run(enqueue())
    assert current_app._get_current_object() is app
    return [round(float(one @ other), 4), job]


async def enqueue():
    job = await asynchronous.enqueue(["p0001.jpg"])
    return (await job.wait(60)).state


print(*(describe.delay("two robots").get() for _ in range(2)))
assert current_app._get_current_object() is app
print(app.conf.task_default_queue, app.main)
""",
    )
    assert out.splitlines() == ["[1.0, 'finished'] [1.0, 'finished']", "celery shop"]


def test_with_gunicorns_preload(installation):
    """Made in the parent and used there; each forked child uses it in its own event loop, the parent goes on."""
    out = program(
        installation,
        """
import asyncio, os, sys
from producer import AsyncProducer, Producer

producer, blocking = AsyncProducer(), Producer()
first = asyncio.run(producer.embed_text("two robots", 60))
blocking.embed_text("two robots", 60)
for _ in range(2):
    child = os.fork()
    if not child:
        again = asyncio.run(producer.embed_text("two robots", 60))
        same = blocking.embed_text("two robots", 60)
        os._exit(0 if again @ first > 0.9999 and same @ first > 0.9999 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(round(float(asyncio.run(producer.embed_text("two robots", 60)) @ first), 4))
""",
    )
    assert out == "1.0\n"


def test_a_worker_that_may_not_embed_text_says_so_at_once(tmp_path):
    """POSTERS_TEXT=false: no caller waits for it."""
    with RedisServer() as server, closing(Installation(tmp_path, server, text="false")) as alone:
        alone.worker("no-text").wait_until_ready()
        began = time.monotonic()
        with pytest.raises(TextUnavailable, match="POSTERS_TEXT is false"):
            alone.producer.embed_text(TEXTS[0], timeout=60)
        assert time.monotonic() - began < 5
