"""Identify images: find the most similar posters. The images may lie anywhere, and are not stored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from producer.client import Producer
from producer.collection.catalogue import Catalogue
from producer.embedding import SpacedVectors, with_space
from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.host import engine_required
from producer.maintenance.spaces import require_same_space
from producer.queue.image_requests import MAX_BYTES
from producer.search.nearest import Match, nearest, title_of, with_metadata
from producer.settings import Settings
from producer.vectors.base import SpaceInfo, VectorStore


@dataclass(frozen=True)
class Identified:
    """An image with its most similar posters, best first, or the reason why it could not be embedded."""

    image: Path
    matches: Sequence[Match]
    failure: UnreadablePoster | None = None


def identify(
    producer: Producer,
    store: VectorStore,
    info: SpaceInfo,
    catalogue: Catalogue,
    images: Sequence[Path],
    *,
    k: int,
    local: bool,
    timeout_s: float,
) -> list[Identified]:
    """Embed the images, by a worker or in this process, and search the space.

    A worker gets the bytes of an image through Redis, never its path: it reads nothing outside its posters root.

    Raises:
        NoWorker: no worker is alive.
        EmbedTimeout: no answer within `timeout_s` for an image.
        SpaceMismatch: the model makes vectors of another space than the one that is searched.
    """
    who = "the model that the settings name" if local else "the worker"
    if local:
        made = embed_locally(producer.settings, images)
    else:
        if (space := producer.space()) is not None:
            require_same_space(space.id, info.space.id, who)
        made = [_embed(producer, image, timeout_s) for image in images]
    found = [vector for vector in made if not isinstance(vector, UnreadablePoster)]
    for vector in found:
        require_same_space(vector.space or "", info.space.id, who)
    matches = iter(nearest(store, info.space.id, np.stack(list(found)), k) if found else ())
    return [
        Identified(image, (), vector)
        if isinstance(vector, UnreadablePoster)
        else Identified(image, with_metadata(next(matches), catalogue))
        for image, vector in zip(images, made, strict=True)
    ]


def embed_locally(settings: Settings, images: Sequence[Path]) -> list[SpacedVectors | UnreadablePoster]:
    """Embed image files with a model loaded in this process: for each its vector, or why it has none.

    Raises:
        ConfigurationError: the engine is not installed here, or the model cannot be loaded.
    """
    with engine_required():
        from worker.clip_embedder import CLIPEmbedder

    with closing(CLIPEmbedder.from_settings(settings)) as embedder:
        result = embedder.embed_paths(images)
    found: dict[int, SpacedVectors | UnreadablePoster] = dict(result.failures)
    for vector, index in zip(result.vectors, result.indices, strict=True):
        found[index] = with_space(vector, embedder.space.id)
    return [found[index] for index in range(len(images))]


def as_entry(result: Identified, info: SpaceInfo) -> dict[str, Any]:
    """The result for one image as a JSON object."""
    entry: dict[str, Any] = {"image": str(result.image), "space": info.space.id}
    if result.failure:
        return entry | {"error": {"word": result.failure.word, "reason": result.failure.reason}}
    matches = [
        {
            "rank": rank,
            "score": round(match.score, 6),
            "id": match.id,
            "title": title_of(match),
            "file": match.about["file"],
            "about": match.about,
        }
        for rank, match in enumerate(result.matches, 1)
    ]
    return entry | {"matches": matches}


def as_rows(result: Identified) -> list[tuple[str, str, str, str]]:
    """The result for one image as rows of a table: rank, score, title, file."""
    return [
        (f"{rank:>3}", f"{match.score:.4f}", title_of(match), str(match.about["file"]))
        for rank, match in enumerate(result.matches, 1)
    ]


def _embed(producer: Producer, image: Path, timeout_s: float) -> SpacedVectors | UnreadablePoster:
    try:
        content = read_file(image, max_bytes=min(MAX_BYTES, producer.settings.max_file_bytes))
        return producer.embed_image(content.data, timeout_s, str(image))
    except UnreadablePoster as error:
        return UnreadablePoster(str(image), error.word, error.reason)
