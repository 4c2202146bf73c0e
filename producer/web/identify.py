"""Interface: which poster is this, and which are like that one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, File, Form, Path, Query, Request, UploadFile

from producer.embedding import SpacedVectors, with_space
from producer.maintenance.spaces import find_space
from producer.search import identify as search
from producer.search.download import download
from producer.search.nearest import Match, title_of
from producer.search.query import MAX_WEIGHT, Term, combine
from producer.search.query import Query as WeightedQuery
from producer.search.sources import open_sources
from producer.search.verdict import Verdict
from producer.web import models
from producer.web.guard import MAX_PARTS, GuardedRoute
from producer.web.models import Identified, encodable, printable_json
from producer.web.problems import RESPONSES, Problem, invalid, not_found
from producer.web.service import Service, picture_url, service_of
from producer.web.uploads import check_image, image_of

WAIT_S: Final = 30.0  # for a vector; as `identify` waits
MATCHES_MOST: Final = 100
CANDIDATES: Final = 10  # that are compared picture by picture, 0.1 s each; as `identify --check` does
router = APIRouter(
    route_class=GuardedRoute, responses=dict(RESPONSES), tags=["search"], form_limits={"max_files": MAX_PARTS}
)
Matches = Annotated[int, Query(ge=1, le=MATCHES_MOST, description="Number of matches.")]


@dataclass(frozen=True)
class Parts:
    """What is looked for: images, texts, or a weighted sum of both.

    Attributes:
        images: name and bytes of each.
        texts: descriptions.
        weights: of the images, then of the texts.
        k: matches.
        check: compare the pictures of the best candidates.
    """

    images: Sequence[tuple[str, bytes]]
    texts: Sequence[str]
    weights: Sequence[float]
    k: int = 5
    check: bool = False


@dataclass(frozen=True)
class Found:
    """The matches, and of a single image the verdict."""

    space: str
    matches: Sequence[Match]
    verdict: Verdict | None = None
    without_bars: bool = False
    comparisons: Mapping[str, Any] | None = None


@router.post("/identify", summary="Which poster is this?")
async def identify(
    request: Request,
    image: Annotated[list[UploadFile] | None, File(description="Images, 32 MB each. They are not stored.")] = None,
    url: Annotated[list[str] | None, Form(max_length=MAX_PARTS, description="Addresses of images.")] = None,
    text: Annotated[list[str] | None, Form(max_length=MAX_PARTS, description="Descriptions.")] = None,
    weight: Annotated[
        list[float] | None,
        Form(description="Of each image, then of each address, then of each text; below zero: subtracted."),
    ] = None,
    k: Annotated[int, Form(ge=1, le=MATCHES_MOST, description="Number of matches.")] = 5,
    check: Annotated[bool, Form(description="Compare the pictures of the best matches, for one image.")] = False,
) -> Identified:
    """Find the posters most similar to an image, a text, or a weighted sum of images and texts.

    Of one image, `verdict` says whether it shows one of them. It waits for a worker for 30 s, beside all bulk work.
    Too many requests at once are refused with 429.
    """
    service = service_of(request)
    found = await service.requests.run(find, service, image or (), url or (), text or (), weight, k, check)
    return as_result(request, service, found)


@router.get("/posters/{poster:path}/similar", summary="Posters like this one")
def similar(request: Request, poster: Annotated[str, Path(min_length=1)], k: Matches = 5) -> Identified:
    """The posters most similar to one of the collection, itself left out."""
    service = service_of(request)
    return as_result(request, service, find_similar(service, poster, k))


def find(
    service: Service,
    uploads: Sequence[UploadFile],
    urls: Sequence[str],
    texts: Sequence[str],
    weights: Sequence[float] | None,
    k: int,
    check: bool = False,
) -> Found:
    """The posters most similar to what was sent."""
    settings, count = service.settings, len(uploads) + len(urls) + len(texts)
    if not 1 <= count <= MAX_PARTS:
        raise invalid(f"there are {count} images, addresses and texts", f"Send 1 to {MAX_PARTS}.")
    chosen = list(weights or [1.0] * count)
    if len(chosen) != count or not all(0 < abs(one) <= MAX_WEIGHT for one in chosen):
        raise invalid(f"the weights are {chosen}", f"Send one for each part, not 0, {MAX_WEIGHT:g} at most.")
    images = [(upload.filename or "the image", image_of(settings, upload)) for upload in uploads]
    for address in urls:
        data = download(address, private=settings.private_urls)
        check_image(settings, data, address)
        images.append((address, data))
    return find_parts(service, Parts(images, texts, chosen, k, check))


def find_parts(service: Service, parts: Parts) -> Found:
    """The same, of images that were read and checked."""
    if service.index().space is None and not service.index().refresh():
        detail, action = "no poster is embedded yet", "Begin with POST /api/v1/jobs, or on the page Now."
        raise Problem(409, "empty", "The collection is empty", detail, action)
    if len(parts.images) == 1 and not parts.texts and parts.weights[0] > 0:
        return _find_image(service, *parts.images[0], parts)
    if parts.check:
        raise invalid("pictures are compared with one image alone", "Leave `check` out.")
    vectors: list[SpacedVectors] = [service.producer.embed_image(data, WAIT_S, name) for name, data in parts.images]
    if parts.texts:
        of_texts = service.producer.embed_text(list(parts.texts), WAIT_S)
        vectors += [with_space(np.asarray(vector), of_texts.space or "") for vector in of_texts]
    names = [("image", name) for name, _ in parts.images] + [("text", text) for text in parts.texts]
    terms = [
        Term("image" if kind == "image" else "text", name, weight)
        for (kind, name), weight in zip(names, parts.weights, strict=True)
    ]
    vector = (
        combine(WeightedQuery(tuple(terms), "the weighted query"), vectors) if parts.weights != [1.0] else vectors[0]
    )
    return Found(vector.space or "", service.index().search(vector, parts.k))


def _find_image(service: Service, name: str, data: bytes, parts: Parts) -> Found:
    """Of one image, with a verdict; one with bars is tried without them as well, as `identify` does."""
    index = service.index()
    with tempfile.TemporaryDirectory(prefix="posters-query-") as folder:
        path = FilePath(folder, "image")
        path.write_bytes(data)
        with open_sources([str(path)], service.settings) as (source,):
            if source.without_bars is None and not parts.check:
                vector = service.producer.embed_image(data, WAIT_S, name)
                verdict, matches = index.identify(vector, parts.k)
                return Found(vector.space or "", matches, verdict)
            options = search.SearchOptions(parts.k, timeout_s=WAIT_S, check=CANDIDATES if parts.check else 0)
            with service.store() as store:
                info = find_space(store)
                lookup = partial(index.search, space=info.space.id)
                searched = search.Searched(service.producer, store, info, service.catalogue(), lookup)
                (result,) = search.identify(searched, [source], options)
    if result.failure:
        raise type(result.failure)(name, result.failure.word, result.failure.reason)
    return Found(info.space.id, result.matches, result.verdict, result.without_bars, result.comparisons)


def find_similar(service: Service, poster: str, k: int) -> Found:
    """The posters most similar to one of them."""
    with service.store() as store:
        space = find_space(store).space.id
        vector = store.get(space, [poster]).get(poster)
    if vector is None:
        raise not_found(f"no poster {poster!r} is embedded", "GET /api/v1/posters lists those that are.")
    matches = service.index().search(with_space(vector, space), k + 1)
    return Found(space, [match for match in matches if match.id != poster][:k])


def as_result(request: Request, service: Service, found: Found) -> Identified:
    """What is sent."""
    index, comparisons = service.index(), found.comparisons or {}
    verdict = models.Verdict(**found.verdict.as_entry()) if found.verdict else None
    return Identified(
        space=found.space,
        untrained=index.space is not None and index.space.weights.startswith("untrained"),
        searched=len(index),
        verdict=verdict,
        without_bars=found.without_bars,
        matches=[
            models.Match(
                rank=rank,
                score=round(match.score, 6),
                id=match.id,
                title=printable_json(title_of(match)),
                file=printable_json(str(match.about["file"])),
                about=encodable(dict(match.about)),
                picture=picture_url(request, match.id),
                check=asdict(comparisons[match.id]) if match.id in comparisons else None,
            )
            for rank, match in enumerate(found.matches, 1)
        ],
    )
