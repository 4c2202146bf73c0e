"""The process that computes a map: reads the store twice, writes the map into a file, and its progress to stdout."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from producer.embedding import Vectors
from producer.errors import PosterError
from producer.export.atomic import write_atomically
from producer.maintenance.spaces import find_space
from producer.map.layout import LEAST, between_neighbors, lay_out, principal_components
from producer.map.poster_map import COMPONENTS_ALONE, PACMAP, PosterMap, load_map
from producer.output import emit_json
from producer.vectors import open_store
from producer.vectors.base import Row, SpaceInfo, VectorStore

SEED: Final = 0
LAID_OUT_MOST: Final = 30_000  # posters; the others are placed between them. Half a minute, as `lay_out` says
GROWN_SHARE: Final = 5  # once a fifth of a layout has come later, or is gone, it is computed anew
STEP_S: Final = 0.2  # between two lines of progress
NICE: Final = 10
Report = Callable[[str, int, int], object]  # stage, done, of how many


def main() -> None:
    """Do what one line of JSON on stdin asks for: store, store_mode, path of the map."""
    asked = json.loads(sys.stdin.readline())
    os.umask(0o077)  # the map holds ids, as the store does
    if hasattr(os, "nice"):
        os.nice(NICE)
    path = Path(asked["path"])
    try:
        with closing(open_store(asked["store"], asked["store_mode"])) as store:
            made = make_map(store, find_space(store), load_map(path), _reporting())
        write_atomically(path, made.to_bytes())
        emit_json({"stage": "done", "done": len(made.ids), "total": len(made.ids)})
    except (PosterError, MemoryError) as error:
        emit_json({"error": str(error) or "not enough memory"})
        sys.exit(1)


def make_map(
    store: VectorStore,
    info: SpaceInfo,
    before: PosterMap | None = None,
    report: Report = lambda stage, done, total: None,
) -> PosterMap:
    """The map of a space as it is now.

    The layout of `before` is kept while most of its posters are still there: what is new is placed in it, and people
    find again what they have seen. Memory: 300 MB at most, and 500 bytes a poster.
    """
    if before is not None and before.space == info.space.id:
        most = before.count_then // GROWN_SHARE
        is_picture_enough = before.method == PACMAP or info.count < LEAST
        made = _placed(store, info, before, most - before.later, report) if is_picture_enough else None
        if made is not None and before.count_then - (len(made.ids) - made.later) <= most:
            return made
    made = _placed(store, info, _laid_out(store, info, report), None, report)
    assert made is not None
    return replace(made, later=0)


def _placed(
    store: VectorStore, info: SpaceInfo, before: PosterMap, most: int | None, report: Report
) -> PosterMap | None:
    """The posters as they are now in the layout of `before`; None as soon as more than `most` are new."""
    version, known = store.version(info.space.id), {name: number for number, name in enumerate(before.ids)}
    ids: list[str] = []
    digests, positions, new = [], [], 0
    for rows, vectors in store.read(info.space.id):
        found = np.array([_hash(row.digest) for row in rows], np.uint64)
        at = np.array([known.get(row.id, -1) for row in rows])
        is_known = at >= 0
        is_known[is_known] = before.digests[at[is_known]] == found[is_known]
        new += int((~is_known).sum())
        if most is not None and new > most:
            return None
        placed = np.empty((len(rows), 2), np.float32)
        placed[is_known] = before.positions[at[is_known]]
        others = before.components.project(vectors[~is_known])
        placed[~is_known] = between_neighbors(others, before.anchors, before.anchor_positions)
        ids += [row.id for row in rows]
        digests.append(found)
        positions.append(placed)
        report("placing the posters", len(ids), info.count)
    return replace(
        before,
        version=version,
        made=time.time(),
        later=before.later + new,
        ids=ids,
        digests=np.concatenate([np.empty(0, np.uint64), *digests]),
        positions=np.concatenate([np.empty((0, 2), np.float32), *positions]),
    )


def _laid_out(store: VectorStore, info: SpaceInfo, report: Report) -> PosterMap:
    """A layout of the posters whose ids have the lowest hashes, as a map of them alone; its version is empty."""
    limit = 2**64 * LAID_OUT_MOST // max(info.count, LAID_OUT_MOST)
    chosen: list[tuple[int, Row]] = []
    parts: list[Vectors] = [np.empty((0, info.space.dimension), np.float32)]
    read = 0
    for rows, vectors in store.read(info.space.id):
        hashes = [_hash(row.id) for row in rows]
        picked = [number for number, one in enumerate(hashes) if one < limit]
        chosen += [(hashes[number], rows[number]) for number in picked]
        parts.append(vectors[picked])
        read += len(rows)
        report("reading the vectors", read, info.count)
    # in the order of their hashes, so that the same posters make the same map, in whatever order they were stored
    order = sorted(range(len(chosen)), key=lambda number: (chosen[number][0], chosen[number][1].id))
    laid_out = np.concatenate(parts)[order]
    components = principal_components(laid_out)
    anchors = components.project(laid_out)
    positions = lay_out(anchors, SEED, lambda done, total: report("laying out", done, total))
    made = time.time()
    return PosterMap(
        space=info.space.id,
        version="",
        method=PACMAP if len(anchors) >= LEAST else COMPONENTS_ALONE,
        made=made,
        laid_out=made,
        count_then=read,
        later=0,
        ids=[chosen[number][1].id for number in order],
        digests=np.array([_hash(chosen[number][1].digest) for number in order], np.uint64),
        positions=positions,
        components=components,
        anchors=anchors,
        anchor_positions=positions,
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _reporting() -> Report:
    last: list[Any] = ["", 0.0]

    def report(stage: str, done: int, total: int) -> None:
        if stage != last[0] or time.monotonic() - last[1] > STEP_S:
            last[:] = stage, time.monotonic()
            emit_json({"stage": stage, "done": done, "total": max(done, total)})

    return report


if __name__ == "__main__":
    main()
