"""A backend for asyncio that describes, shows and indexes: ``uvicorn examples.async_backend:app --workers 2``.

POSTERS_ROOT=/srv/posters POSTERS_STORE=sqlite:/srv/data/embeddings.db uvicorn examples.async_backend:app

GET /search?text=a+girl+with+a+red+umbrella, POST /search with an image as `image`, POST /jobs with `["new/"]`,
GET /jobs/{id} follows a job as server-sent events.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.responses import StreamingResponse

from producer import AsyncProducer, Busy, EmbedTimeout, Index, NoWorker, PosterError, RedisUnreachable, UnreadablePoster

producer = AsyncProducer()  # one for the life of the process; it connects in the event loop that first uses it


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The index in memory, which follows the store by itself."""
    with Index.open() as index:
        app.state.index = index
        yield
    await producer.close()


app = FastAPI(lifespan=lifespan)


def http_error(error: PosterError) -> HTTPException:
    """The status for an error, and when to try again."""
    if isinstance(error, Busy):
        return HTTPException(429, str(error), {"Retry-After": str(math.ceil(error.retry_after_s))})
    if isinstance(error, NoWorker | EmbedTimeout | RedisUnreachable):
        return HTTPException(503, str(error), {"Retry-After": "5"})
    return HTTPException(422 if isinstance(error, UnreadablePoster) else 500, str(error))


@app.get("/search")
async def describe(text: str, k: int = 5) -> list[tuple[str, float]]:
    """The posters that a text describes best."""
    try:
        vector = await producer.embed_text(text, timeout=10)
    except PosterError as error:
        raise http_error(error) from error
    return [(match.id, match.score) for match in app.state.index.search(vector, k=k)]


@app.post("/search")
async def show(image: UploadFile, k: int = 5) -> list[tuple[str, float]]:
    """The posters most like an image. A client that disconnects cancels the call, which withdraws its request."""
    try:
        vector = await producer.embed_image(image.file, timeout=10, name=image.filename or "")
    except PosterError as error:
        raise http_error(error) from error
    return [(match.id, match.score) for match in app.state.index.search(vector, k=k)]


@app.post("/jobs", status_code=202)
async def enqueue(paths: list[str]) -> str:
    """Queue posters and folders; the id of the job."""
    try:
        return (await producer.enqueue(paths)).id
    except PosterError as error:
        raise http_error(error) from error


@app.get("/jobs/{job_id}")
async def follow(job_id: str) -> StreamingResponse:
    """The counts of a job whenever they change, until it ends."""
    job = await producer.job(job_id)

    async def events() -> AsyncIterator[str]:
        async for progress in job.watch():
            yield f"data: {progress.done} done, {progress.failed} failed\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
