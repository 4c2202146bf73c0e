"""A backend of your own with the served interface in it: ``uvicorn examples.backend:app``.

POSTERS_ROOT=/srv/posters POSTERS_STORE=sqlite:/srv/data/embeddings.db uvicorn examples.backend:app --port 8000

The interface is under /library/api/v1, its pages under /library/. Your login comes before both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, UploadFile

from producer.web import lifespan as posters_lifespan
from producer.web import page_router, router

USERS = {"secret-of-ann": "ann"}  # stands for your own login


def user(x_key: Annotated[str, Header()]) -> str:
    """Your login."""
    if x_key not in USERS:
        raise HTTPException(401, "who are you?")
    return USERS[x_key]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What you open yourself, and what the posters need."""
    async with posters_lifespan(app):
        yield


app = FastAPI(lifespan=lifespan)
app.include_router(router, prefix="/library", dependencies=[Depends(user)])
app.include_router(page_router, prefix="/library", dependencies=[Depends(user)])


@app.post("/shelf")
def shelve(image: UploadFile, who: Annotated[str, Depends(user)]) -> dict[str, str]:
    """An endpoint of your own, with the same clients; `def`, so that it runs in the thread pool."""
    service = app.state.posters
    vector = service.producer.embed_image(image.file, timeout=10)
    match = next(iter(service.index().search(vector, k=1)), None)
    return {"who": who, "poster": match.id if match else "none yet"}
