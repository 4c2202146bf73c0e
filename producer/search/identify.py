"""Identify images: find the most similar posters, and say whether one is theirs. Nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from producer.check.geometry import Comparison
from producer.check.pictures import PictureCheck
from producer.client import Producer
from producer.collection.catalogue import Catalogue
from producer.embedding import SpacedVectors, Vectors, with_space
from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.host import engine_required
from producer.maintenance.spaces import require_same_space
from producer.requests.codec import MAX_IMAGE_BYTES
from producer.search.nearest import Match, nearest, title_of, with_metadata
from producer.search.query import Query
from producer.search.sources import Source
from producer.search.verdict import CERTAIN, LEAD_MATCHES, NOT_FOUND, PERHAPS, Verdict, judge
from producer.settings import Settings
from producer.vectors.base import SpaceInfo, VectorStore

# The better of two views of an image is the one with the better verdict, then the one with the higher score.
_BETTER: Final = (NOT_FOUND, PERHAPS, CERTAIN)
Search = Callable[[Vectors, int], Sequence[Sequence[Match]]]  # as `nearest`: the k best matches of each vector


@dataclass(frozen=True)
class Identified:
    """An image with its most similar posters, best first, or the reason why it could not be embedded.

    Attributes:
        image: as it was named: a path, an address, or ``-``.
        path: of the file that was searched with, while it exists.
        without_bars: the bars around the picture were left out.
        comparisons: by id, of the candidates whose pictures were compared with the image.
        query: of a text or a sum, which has no verdict; `image` is its label.
    """

    image: str
    matches: Sequence[Match]
    failure: UnreadablePoster | None = None
    verdict: Verdict | None = None
    path: Path | None = None
    without_bars: bool = False
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    query: Query | None = None


@dataclass(frozen=True)
class Searched:
    """What is searched, and who embeds the queries.

    Attributes:
        producer: asks a worker, and has the settings.
        store: has the vectors.
        info: the space.
        catalogue: has the metadata.
        search: has the space in memory; None: the store is read.
    """

    producer: Producer
    store: VectorStore
    info: SpaceInfo
    catalogue: Catalogue
    search: Search | None = None


@dataclass(frozen=True)
class SearchOptions:
    """Options for each image.

    Attributes:
        k: matches.
        local: embed in this process, not by a worker.
        timeout_s: to wait for a worker's answer to one image.
        check: how many of the best matches to compare with the image, picture by picture; 0: none.
    """

    k: int = 5
    local: bool = False
    timeout_s: float = 30.0
    check: int = 0


def identify(searched: Searched, sources: Sequence[Source], options: SearchOptions) -> list[Identified]:
    """Embed the images, by a worker or in this process, search the space, and judge.

    A worker gets the bytes of an image through Redis, never its path: it reads nothing outside its posters root. Of an
    image with bars, the picture between them is tried as well, and the better result counts.

    Raises:
        NoWorker: no worker is alive.
        EmbedTimeout: no answer within `timeout_s` for an image.
        SpaceMismatch: the model makes vectors of another space than the one that is searched.
        ConfigurationError: pictures are to be compared, and what that takes is not installed.
    """
    views = [
        (number, path)
        for number, source in enumerate(sources)
        for path in (source.path, source.without_bars)
        if path is not None
    ]
    store, info, catalogue = searched.store, searched.info, searched.catalogue
    check = PictureCheck(searched.producer.settings, catalogue) if options.check else None
    made = embed_all(searched, [path for _, path in views], options)
    found = [vector for vector in made if not isinstance(vector, UnreadablePoster)]
    most = max(options.k, options.check, LEAD_MATCHES)
    search = searched.search or partial(nearest, store, info.space.id)
    matches = iter(search(np.stack(list(found)), most) if found else ())
    results: list[list[Identified]] = [[] for _ in sources]
    for (number, path), vector in zip(views, made, strict=True):
        name = sources[number].name
        if isinstance(vector, UnreadablePoster):
            results[number].append(Identified(name, (), UnreadablePoster(name, vector.word, vector.reason)))
            continue
        bare = path == sources[number].without_bars
        results[number].append(
            _judged(Identified(name, next(matches), path=path, without_bars=bare), store, info, check, options)
        )
    best = [
        max(tried, key=_rank) if tried else Identified(source.name, (), source.failure)
        for source, tried in zip(sources, results, strict=True)
    ]
    return [replace(result, matches=with_metadata(result.matches, catalogue)) for result in best]


def _rank(result: Identified) -> tuple[int, float]:
    if result.verdict is None:
        return -1, 0.0
    kind = result.verdict.verdict
    return _BETTER.index(kind) if kind in _BETTER else 0, result.verdict.score or 0.0


def _judged(
    found: Identified, store: VectorStore, info: SpaceInfo, check: PictureCheck | None, options: SearchOptions
) -> Identified:
    """The result with its verdict and the matches that are shown; those that show the same picture come first."""
    matches, comparisons = list(found.matches), None
    if check is not None and found.path is not None and matches:
        comparisons = check.candidates(found.path, [match.id for match in matches[: options.check]])
        same = [match for match in matches if match.id in comparisons and comparisons[match.id].same]
        same.sort(key=lambda match: -comparisons[match.id].points)
        matches = same + [match for match in matches if match not in same]
    verdict = judge(matches, copies_of_first(matches, store, info), info, comparisons)
    return replace(found, matches=matches[: options.k], verdict=verdict, comparisons=comparisons or {})


def copies_of_first(matches: Sequence[Match], store: VectorStore, info: SpaceInfo) -> set[str]:
    """Ids of the matches that are copies of the first one, which count as the same poster; none without calibration."""
    if info.calibration is None or len(matches) < 2:
        return set()
    vectors = store.get(info.space.id, [match.id for match in matches])
    first = vectors.get(matches[0].id)
    if first is None:  # it went since it was found
        return set()
    return {name for name, vector in vectors.items() if float(vector @ first) >= info.calibration.copy}


def embed_all(
    searched: Searched, paths: Sequence[Path], options: SearchOptions, texts: Sequence[str] = ()
) -> list[SpacedVectors | UnreadablePoster]:
    """The vectors of images, then of texts, in the space that is searched; or why one has none."""
    producer, info = searched.producer, searched.info
    who = "the model that the settings name" if options.local else "the worker"
    if options.local:
        made = embed_locally(producer.settings, paths, texts)
    else:
        if (space := producer.space()) is not None:
            require_same_space(space.id, info.space.id, who)
        made = [_embed(producer, path, options.timeout_s) for path in paths]
        made += [_embed_text(producer, text, options.timeout_s) for text in texts]
    for vector in made:
        if not isinstance(vector, UnreadablePoster):
            require_same_space(vector.space or "", info.space.id, who)
    return made


def embed_locally(
    settings: Settings, images: Sequence[Path], texts: Sequence[str] = ()
) -> list[SpacedVectors | UnreadablePoster]:
    """Embed image files, then texts, with a model loaded in this process: for each its vector, or why it has none.

    Raises:
        ConfigurationError: the engine is not installed here, or the model cannot be loaded.
    """
    with engine_required():
        from worker.clip_embedder import CLIPEmbedder

    with closing(CLIPEmbedder.from_settings(settings)) as embedder:
        result = embedder.embed_paths(images)
        described = embedder.embed_texts(texts) if texts else None
    found: dict[int, SpacedVectors | UnreadablePoster] = dict(result.failures)
    for vector, index in zip(result.vectors, result.indices, strict=True):
        found[index] = with_space(vector, embedder.space.id)
    for row, vector in enumerate(described.vectors if described else ()):
        failure = described.failures.get(row) if described else None
        found[len(images) + row] = failure or with_space(vector, embedder.space.id)
    return [found[index] for index in range(len(images) + len(texts))]


def as_entry(result: Identified, info: SpaceInfo) -> dict[str, Any]:
    """The result for one image as a JSON object."""
    named: dict[str, Any] = {"image": result.image}
    if result.query:
        named = {"query": result.image, "terms": [asdict(term) for term in result.query.terms]}
    entry = named | {"space": info.space.id}
    if result.verdict:
        entry |= result.verdict.as_entry() | {"without_bars": result.without_bars}
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
        | ({"check": asdict(result.comparisons[match.id])} if match.id in result.comparisons else {})
        for rank, match in enumerate(result.matches, 1)
    ]
    return entry | {"matches": matches}


def as_line(result: Identified) -> str:
    """The verdict as a line of text."""
    if result.verdict is None:
        return ""
    view = " (searched without the bars around it)" if result.without_bars else ""
    return f"{result.verdict.verdict}: {result.verdict.reason}{view}"


def as_rows(result: Identified) -> list[tuple[str, str, str, str]]:
    """The result for one image as rows of a table: rank, score, title, file."""
    return [
        (f"{rank:>3}", f"{match.score:.4f}", title_of(match), str(match.about["file"]))
        for rank, match in enumerate(result.matches, 1)
    ]


def _embed(producer: Producer, image: Path, timeout_s: float) -> SpacedVectors | UnreadablePoster:
    try:
        content = read_file(image, max_bytes=min(MAX_IMAGE_BYTES, producer.settings.max_file_bytes))
        return producer.embed_image(content.data, timeout_s, str(image))
    except UnreadablePoster as error:
        return UnreadablePoster(str(image), error.word, error.reason)


def _embed_text(producer: Producer, text: str, timeout_s: float) -> SpacedVectors | UnreadablePoster:
    try:
        return producer.embed_text(text, timeout_s)
    except UnreadablePoster as error:
        return error
