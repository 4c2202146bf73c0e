"""Identify by description: the posters nearest to a text, or to a weighted sum of images and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from producer.embedding import SpacedVectors
from producer.errors import UnreadablePoster
from producer.search.identify import Identified, Searched, SearchOptions, embed_all, identify
from producer.search.nearest import nearest, with_metadata
from producer.search.query import Query, Term, combine
from producer.search.sources import Source


def identify_queries(
    searched: Searched, queries: Sequence[Query], sources: Mapping[str, Source], options: SearchOptions
) -> list[Identified]:
    """Images as `identify` does, with a verdict; everything else is ranked, and nothing is claimed.

    Args:
        sources: the images of all queries, by their names.

    Raises:
        as `identify`; TextUnavailable: a text is among them, and the model embeds none.
        ConfigurationError: the parts of a sum cancel each other out.
    """
    images = [sources[query.terms[0].value] for query in queries if query.is_image]
    others = [query for query in queries if not query.is_image]
    judged = iter(identify(searched, images, options) if images else ())
    ranked = _ranked(searched, others, sources, options)
    return [next(judged if query.is_image else ranked) for query in queries]


def _ranked(
    searched: Searched, queries: Sequence[Query], sources: Mapping[str, Source], options: SearchOptions
) -> Iterator[Identified]:
    """The posters nearest to each query, or why one of its parts has no vector."""
    made = _vectors(searched, {term.content for query in queries for term in query.terms}, sources, options)
    parts = [[made[term.content] for term in query.terms] for query in queries]
    failures = [next((each for each in some if isinstance(each, UnreadablePoster)), None) for some in parts]
    vectors = [
        combine(query, [each for each in some if not isinstance(each, UnreadablePoster)])
        for query, some, failure in zip(queries, parts, failures, strict=True)
        if failure is None
    ]
    space = searched.info.space.id
    matches = iter(nearest(searched.store, space, np.stack(list(vectors)), options.k) if vectors else ())
    for query, failure in zip(queries, failures, strict=True):
        found = () if failure else with_metadata(next(matches), searched.catalogue)
        yield Identified(query.label, found, failure, query=query)


def _vectors(
    searched: Searched, contents: set[Term], sources: Mapping[str, Source], options: SearchOptions
) -> dict[Term, SpacedVectors | UnreadablePoster]:
    """The vector of each image and text, each embedded once; of one that cannot be embedded, the reason."""
    found: dict[Term, SpacedVectors | UnreadablePoster] = {}
    images, texts = [], []
    for term in sorted(contents, key=lambda term: (term.kind, term.value)):
        if term.kind == "text":
            texts.append(term)
        elif failure := sources[term.value].failure:
            found[term] = failure
        else:
            images.append(term)
    paths = [path for term in images if (path := sources[term.value].path) is not None]
    made = embed_all(searched, paths, options, [term.value for term in texts])
    for term, vector in zip([*images, *texts], made, strict=True):
        if isinstance(vector, UnreadablePoster) and term.kind == "image":  # as the person named it
            vector = UnreadablePoster(term.value, vector.word, vector.reason)
        found[term] = vector
    return found
