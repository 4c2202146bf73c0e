"""A program that uses the whole public interface: `mypy --strict` must pass on it. It is never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from producer import (
    AsyncJob,
    AsyncProducer,
    Busy,
    EmbedTimeout,
    Index,
    Job,
    Match,
    NoWorker,
    PosterError,
    Producer,
    RedisUnreachable,
    SpaceMismatch,
    TextUnavailable,
    UnreadablePoster,
)
from producer.embedding import Space, SpacedVectors, Vectors
from producer.queue.progress import Failure, Progress
from producer.settings import Settings, load_settings
from worker.clip_embedder import CLIPEmbedder, EmbeddedPaths

settings: Settings = load_settings(root=Path("/srv/posters"))


def blocking() -> float:
    """Producer, Job and Index."""
    with Producer(settings) as producer, Index.open(settings, refresh_s=None) as index:
        job: Job = producer.enqueue(["a.jpg", Path("b.png")], force=True)
        progress: Progress = job.wait(timeout=60, on_progress=lambda now: print(now.done))
        failures: list[Failure] = job.failures()
        print(job.progress().total, job.cancel(), producer.job("last").id, [failure.reason for failure in failures])
        try:
            vector = producer.embed("a.jpg", timeout=None)
            assert_type(vector, SpacedVectors)
            assert_type(producer.embed_image(b"", 5.0, name="upload"), SpacedVectors)
            assert_type(producer.embed_text("rain"), SpacedVectors)
            assert_type(producer.embed_text(["rain", "sea"], timeout=5), SpacedVectors)
            producer.embed_text(5)  # type: ignore[call-overload]  # an unused comment is an error: types are known
        except Busy as error:
            return error.retry_after_s
        except UnreadablePoster as error:
            print(error.path, error.word, error.reason)
        except (NoWorker, EmbedTimeout, RedisUnreachable, SpaceMismatch, TextUnavailable, PosterError):
            raise
        for match in index.search(vector, k=5):
            assert isinstance(match, Match)
            print(match.id, match.score, match.about.get("title"))
        ids, matrix = index.vectors()
        space: Space | None = index.space
        print(len(index), ids[0], matrix.shape, space.id if space else vector.space, index.refresh())
        return progress.per_second


async def asynchronous() -> int:
    """AsyncProducer and AsyncJob."""
    async with AsyncProducer(settings) as producer:
        job: AsyncJob = await producer.enqueue(Path("/srv/posters").glob("*.jpg"))
        async for progress in job.watch():
            assert_type(progress, Progress)
        assert_type(await job.progress(), Progress)
        assert_type(await job.wait(timeout=5), Progress)
        assert_type(await job.failures(), list[Failure])
        assert_type(await producer.embed("a.jpg"), SpacedVectors)
        assert_type(await producer.embed_image(Path("a.jpg"), timeout=1), SpacedVectors)
        assert_type(await producer.embed_text("rain"), SpacedVectors)
        assert_type(await producer.embed_text(["rain", "sea"]), SpacedVectors)
        await producer.embed_image(b"", timeout="5")  # type: ignore[arg-type]
        same = await producer.job(job.id)
        print([worker.name for worker in await producer.workers()], same.id)
        return await same.cancel()


def engine() -> Vectors:
    """The model without a queue."""
    embedder = CLIPEmbedder("ViT-B/32", device="cpu", batch_size="auto", text=True)
    result: EmbeddedPaths = embedder.embed_paths([Path("a.jpg"), "b.jpg"])
    print(result.indices, result.failures, embedder.space.dimension)
    assert_type(embedder.embed_image("a.jpg"), Vectors)
    assert_type(embedder.embed_text(["rain"]), Vectors)
    return embedder.embed_text("rain")
