"""Calibrate a space: embed variants of a sample, search the collection with them, and choose thresholds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

import numpy as np

from producer.calibration.thresholds import Outcome, choose
from producer.embedding import Vectors
from producer.errors import ConfigurationError, UnreadablePoster
from producer.search.nearest import Match, nearest
from producer.search.verdict import LEAD_MATCHES, lead
from producer.vectors.base import Calibration, SpaceInfo, VectorStore

Embed = Callable[[Sequence[bytes]], Sequence[Vectors | UnreadablePoster]]
LIGHT: Final = ("quality 30", "240 pixels")  # variants that are copies to the eye
WORST: Final = 12  # confusions that are shown
MOST_COPIES: Final = 1000  # pairs that are listed


class Confusion(NamedTuple):
    """A query whose best match is a wrong poster."""

    poster: str
    variant: str
    found: str
    score: float
    own: float


@dataclass(frozen=True)
class Measured:
    """A calibration with what it was chosen from.

    Attributes:
        calibration: as it is stored.
        posters: ids of the sample, without copies of others in it.
        outcomes: for each of them, by variant.
        copies: pairs of posters that count as one, and their cosine: each of the sample, and its copies.
        confusions: the worst, highest score first.
        skipped: reasons, and how many posters of the sample were left out for each.
    """

    calibration: Calibration
    posters: Sequence[str]
    outcomes: Sequence[Mapping[str, Outcome]]
    copies: Sequence[tuple[str, str, float]]
    confusions: Sequence[Confusion]
    skipped: Mapping[str, int]


class VariantRow(NamedTuple):
    """How one variant fares.

    Attributes:
        variant: its name.
        queries: how many.
        first: share for which the right poster, or a copy of it, is the best match.
        certain: share for which it is certain.
        false: share for which a wrong one is certain when the right poster is left out.
        score: cosine of the right poster, at 5, 50 and 95 %.
        lead: of the best match over the best other poster.
        score_without: score of the best match with the right poster left out.
        lead_without: its lead.
    """

    variant: str
    queries: int
    first: float
    certain: float
    false: float
    score: list[float]
    lead: list[float]
    score_without: list[float]
    lead_without: list[float]


class Queries(NamedTuple):
    """A poster of the sample: its id, its stored vector, and the vectors of its variants by name."""

    poster: str
    own: Vectors
    variants: dict[str, Vectors]


def embedded(
    store: VectorStore,
    info: SpaceInfo,
    drawn: Iterable[tuple[str, dict[str, bytes]]],
    embed: Embed,
    skipped: Counter[str],
) -> list[Queries]:
    """Embed the variants of a sample; a variant that fails is counted and left out."""
    sample = []
    for poster, files in drawn:
        own = store.get(info.space.id, [poster]).get(poster)
        found = dict(zip(files, embed(list(files.values())), strict=True))
        vectors = {name: vector for name, vector in found.items() if not isinstance(vector, UnreadablePoster)}
        skipped["variant not embedded"] += len(found) - len(vectors)
        if own is not None and vectors:
            sample.append(Queries(poster, own, vectors))
    return sample


def calibrate(
    store: VectorStore,
    info: SpaceInfo,
    sample: Sequence[Queries],
    *,
    rate: float,
    seed: int,
    skipped: Mapping[str, int],
) -> Measured:
    """Search the space with all variants, once with and once without the right poster, and choose thresholds.

    Raises:
        ConfigurationError: the sample is empty, or too small for the rate.
    """
    if not sample:
        raise ConfigurationError("no poster of the sample could be read: is POSTERS_ROOT the right folder here?")
    copy = copy_threshold(sample)
    kept, copies = distinct(store, info, sample, copy)
    outcomes, confusions = search(store, info, kept, copy)
    thresholds = choose([list(of_one.values()) for of_one in outcomes], rate)
    flat = [outcome for of_one in outcomes for outcome in of_one.values()]
    calibration = Calibration(
        *thresholds,
        copy=copy,
        rate=rate,
        seed=seed,
        posters=len(kept),
        queries=len(flat),
        certain=sum(o.right and o.score >= thresholds.score and o.lead >= thresholds.lead for o in flat),
        false=sum(o.score_without >= thresholds.score and o.lead_without >= thresholds.lead for o in flat),
        collection=info.count,
        made=time.time(),
    )
    worst = sorted(confusions, key=lambda confusion: (-confusion.score, confusion.poster, confusion.variant))[:WORST]
    dropped = {"copy of another in the sample": len(sample) - len(kept)}
    reasons = {reason: number for reason, number in (dict(skipped) | dropped).items() if number}
    return Measured(calibration, [query.poster for query in kept], outcomes, copies[:MOST_COPIES], worst, reasons)


def copy_threshold(sample: Sequence[Queries]) -> float:
    """The cosine of a poster to a recompressed or smaller copy of itself: the median over the sample."""
    cosines = [float(query.variants[name] @ query.own) for query in sample for name in LIGHT if name in query.variants]
    return float(np.median(cosines)) if cosines else 1.0


def distinct(
    store: VectorStore, info: SpaceInfo, sample: Sequence[Queries], copy: float
) -> tuple[list[Queries], list[tuple[str, str, float]]]:
    """The sample without copies of posters before them in it; and every copy of one, anywhere in the space."""
    found = nearest(store, info.space.id, np.stack([np.asarray(query.own) for query in sample]), LEAD_MATCHES)
    kept: list[Queries] = []
    known: set[str] = set()
    pairs: dict[tuple[str, str], float] = {}
    for query, matches in zip(sample, found, strict=True):
        near = {match.id: match.score for match in matches if match.score >= copy and match.id != query.poster}
        for other, score in near.items():
            first, second = sorted((query.poster, other))
            pairs[first, second] = score
        if query.poster not in known and not near.keys() & {one.poster for one in kept}:
            kept.append(query)
            known |= near.keys()
    return kept, sorted((*pair, score) for pair, score in pairs.items())


def search(
    store: VectorStore, info: SpaceInfo, sample: Sequence[Queries], copy: float
) -> tuple[list[dict[str, Outcome]], list[Confusion]]:
    """What each variant of each poster finds, and the queries that find a wrong one."""
    queries = np.stack([np.asarray(vector) for query in sample for vector in query.variants.values()])
    found = iter(nearest(store, info.space.id, queries, LEAD_MATCHES + 1))
    outcomes: list[dict[str, Outcome]] = []
    confusions: list[Confusion] = []
    for query in sample:
        matches = {name: next(found) for name in query.variants}
        ids = list(dict.fromkeys(match.id for of_one in matches.values() for match in of_one))
        vectors = store.get(info.space.id, ids)
        own_copies = {name for name, vector in vectors.items() if float(vector @ query.own) >= copy} | {query.poster}
        of_poster: dict[str, Outcome] = {}
        for name, listed in matches.items():
            own = float(query.variants[name] @ query.own)
            others = [match for match in listed if match.id not in own_copies]
            if not listed or not others:  # a collection of one poster and its copies
                continue
            score, ahead = _first(listed, vectors, copy)
            is_right = listed[0].id in own_copies
            of_poster[name] = Outcome(score, ahead, is_right, own, *_first(others, vectors, copy))
            if not is_right:
                confusions.append(Confusion(query.poster, name, listed[0].id, score, own))
        if of_poster:
            outcomes.append(of_poster)
    return outcomes, confusions


def _first(matches: Sequence[Match], vectors: Mapping[str, Vectors], copy: float) -> tuple[float, float]:
    """Score and lead of the first match, as `judge` computes them."""
    listed = [match for match in matches if match.id in vectors]
    first = vectors[listed[0].id]
    copies = {match.id for match in listed if float(vectors[match.id] @ first) >= copy}
    return listed[0].score, lead(listed, copies)


def as_entry(measured: Measured, info: SpaceInfo) -> dict[str, object]:
    """The measurement as a JSON object."""
    return {
        "space": info.space.id,
        **asdict(measured.calibration),
        "variants": [row._asdict() for row in variant_rows(measured)],
        "copies": [{"posters": [first, second], "score": round(score, 6)} for first, second, score in measured.copies],
        "confusions": [confusion._asdict() for confusion in measured.confusions],
        "skipped": dict(measured.skipped),
    }


def variant_rows(measured: Measured) -> list[VariantRow]:
    """A row for each variant."""
    by = measured.calibration
    rows = []
    for name in dict.fromkeys(name for of_one in measured.outcomes for name in of_one):
        found = [of_one[name] for of_one in measured.outcomes if name in of_one]
        rows.append(
            VariantRow(
                name,
                len(found),
                _share(o.right for o in found),
                _share(o.right and o.score >= by.score and o.lead >= by.lead for o in found),
                _share(o.score_without >= by.score and o.lead_without >= by.lead for o in found),
                _spread([o.own for o in found]),
                _spread([o.lead for o in found]),
                _spread([o.score_without for o in found]),
                _spread([o.lead_without for o in found]),
            )
        )
    return rows


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 4)


def _spread(values: Sequence[float]) -> list[float]:
    return [round(float(value), 6) for value in np.quantile(values, (0.05, 0.5, 0.95))]
