"""A served interface for tests: real Redis, a store whose vectors are drawn, no worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient

from bench.image_samples import encoded, picture
from producer.settings import Settings, load_settings
from producer.vectors import open_store
from producer.web.app import create_app
from tests.support.filled_store import fill
from tests.support.redis_server import RedisServer

TITLE = "<script>alert('title')</script>"  # what a hostile catalogue may hold
CATALOGUE = [
    {"file": "a.jpg", "id": "a", "title": "Alpha", "year": 1988},
    {"file": "folder/b.png", "id": 'b/"><img src=x onerror=alert(1)>', "title": TITLE, "year": 1999},
    {"file": "c.jpg", "id": "c", "title": "bad \ud800 text", "year": 1988, "note": float("nan")},
    {"file": "new.jpg", "id": "new", "title": "Not embedded"},
]
HOSTILE = str(CATALOGUE[1]["id"])


def jpeg(seed: int = 0, width: int = 120) -> bytes:
    """An image file."""
    return encoded(picture(width, 180, seed=seed), "JPEG", quality=80)


def write_collection(folder: Path, redis_url: str, **settings: object) -> Settings:
    """Posters, a catalogue, and a store that holds all of them but `new.jpg`."""
    root = folder / "posters"
    for number, entry in enumerate(CATALOGUE):
        path = root / str(entry["file"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (folder / "posters.json").write_text(json.dumps(CATALOGUE), encoding="utf-8")
    made = load_settings(
        redis_url=RedisServer.as_backend(redis_url),
        root=root,
        catalogue=folder / "posters.json",
        store=f"sqlite:{folder / 'vectors.db'}",
        **settings,
    )
    store = open_store(made.store)
    fill(store, [str(entry["id"]) for entry in CATALOGUE[:3]], contents="xyx")
    store.close()
    return made


@contextmanager
def serving(settings: Settings) -> Iterator[TestClient]:
    """A client of the application; `client.app.state.posters` is its service."""
    with TestClient(create_app(settings), base_url="http://localhost:8000", follow_redirects=False) as client:
        yield client
