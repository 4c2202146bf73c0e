"""How far `identify` can be relied on: ``python -m bench.identify`` prints the table of docs/identify.md.

Draws a collection, and as many foreign posters in the same manner; embeds them, calibrates on one half of the
collection, and measures false claims on the other; then compares pictures. Without weights, the model is untrained:
what the table says of scores is that of random weights, and only the rates of false claims hold with any.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TypeVar

import click
import cv2
import numpy as np

from bench.machine import processor
from examples.draw_posters import draw_many
from producer.calibration.calibrate import Queries, calibrate, distinct, embedded, search
from producer.calibration.sample import Sample
from producer.check.pictures import PictureCheck
from producer.collection.catalogue import Catalogue
from producer.embedding import Vectors
from producer.errors import UnreadablePoster
from producer.files import read_file
from producer.maintenance.spaces import find_space
from producer.search.nearest import nearest
from producer.settings import Settings, load_settings
from producer.vectors import open_store
from producer.vectors.base import Calibration, Row, SpaceInfo, VectorStore
from worker.clip_embedder import CLIPEmbedder

Item = TypeVar("Item")
# What `--check` is to name: 95 % of each.
CHECKED = ("quality 30", "240 pixels", "crop 5 %", "crop 20 %", "crop 40 %", "screenshot", "photograph")
TIMED = 10  # foreign images, and candidates of each


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: python -m bench.identify")
@click.option("--posters", default=300, show_default=True, help="Posters in the collection; as many foreign ones.")
@click.option("--rate", default=0.01, show_default=True, help="Of false claims.")
@click.option("--candidates", default=0, help="That --check compares [default: all posters].")
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--pretrained", default="untrained", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the drawn posters here, and use those there.")
def main(posters: int, rate: float, candidates: int, model: str, pretrained: str, folder: Path | None) -> None:
    """Measure verdicts and picture checks on drawn posters."""
    logging.getLogger().setLevel(logging.ERROR)
    cv2.setNumThreads(1)  # the times are those of one core
    with tempfile.TemporaryDirectory(prefix="posters-bench-") as temporary:
        top = folder or Path(temporary)
        for name, seed in (("collection", 0), ("foreign", 1)):
            if len(list((top / name).glob("*.jpg"))) < posters:
                draw_many(top / name, posters, seed)
        settings = load_settings(
            root=top / "collection",
            catalogue="none",
            store=f"sqlite:{temporary}/v.db",
            model_name=model,
            pretrained=pretrained,
        )
        with closing(CLIPEmbedder.from_settings(settings)) as embedder, closing(open_store(settings.store)) as store:
            Bench(settings, store, embedder, Path(temporary)).run(top / "foreign", posters, rate, candidates or posters)


class Bench:
    """One collection in a store, and what is measured on it."""

    def __init__(self, settings: Settings, store: VectorStore, embedder: CLIPEmbedder, folder: Path) -> None:
        self._settings, self._store, self._embedder, self._folder = settings, store, embedder, folder
        self._files: dict[str, dict[str, bytes]] = {}

    def run(self, foreign: Path, posters: int, rate: float, candidates: int) -> None:
        """Print the table."""
        info = self._index(posters)
        sample = Sample(self._settings, Catalogue(None))
        drawn = self._kept(_progress(sample.draw(self._store, info.space.id, posters), posters, "posters embedded"))
        queries = embedded(self._store, info, drawn, self._embed, sample.skipped)
        half = len(queries) // 2
        measured = calibrate(self._store, info, queries[:half], rate=rate, seed=0, skipped={})
        print(f"{processor()}; {info.space.model}, {info.count} posters, of which {half} calibrated")
        self._print_held_out(info, queries[half:], measured.calibration)
        self._print_checked(info, queries, foreign, candidates)

    def _kept(self, drawn: Iterable[tuple[str, dict[str, bytes]]]) -> Iterator[tuple[str, dict[str, bytes]]]:
        for poster, files in drawn:
            self._files[poster] = {name: files[name] for name in CHECKED}
            yield poster, files

    def _index(self, posters: int) -> SpaceInfo:
        root = self._settings.root
        paths = sorted(root.glob("*.jpg"))[:posters]
        vectors = self._embedder.embed_paths(paths).vectors
        self._store.put(self._embedder.space, [Row.of(path.name, read_file(path)) for path in paths], vectors)
        return find_space(self._store)

    def _embed(self, files: Sequence[bytes]) -> list[Vectors | UnreadablePoster]:
        paths = [self._folder / f"{number}.jpg" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        return list(self._embedder.embed_paths(paths).vectors)

    def _print_held_out(self, info: SpaceInfo, queries: Sequence[Queries], by: Calibration) -> None:
        """Claims on posters that were not calibrated with."""
        kept, _ = distinct(self._store, info, queries, by.copy)
        outcomes, _ = search(self._store, info, kept, by.copy)
        flat = [outcome for of_one in outcomes for outcome in of_one.values()]
        right = np.mean([o.right for o in flat])
        certain = np.mean([o.right and o.score >= by.score and o.lead >= by.lead for o in flat])
        shares = np.array(
            [
                np.mean([o.score_without >= by.score and o.lead_without >= by.lead for o in of_one.values()])
                for of_one in outcomes
            ]
        )
        error = shares.std() / len(shares) ** 0.5
        print(f"thresholds: score {by.score:.4f}, lead {by.lead:.4f}; copies from {by.copy:.4f}")
        print(
            f"held out: {len(outcomes)} posters, {len(flat)} images; right one first {right:.1%}, certain {certain:.1%}"
        )
        print(f"without their posters: {shares.mean():.2%} certain, standard error {error:.2%}; set {by.rate:.1%}")

    def _print_checked(self, info: SpaceInfo, queries: Sequence[Queries], foreign: Path, candidates: int) -> None:
        check = Remembering(self._settings, Catalogue(None))
        right: Counter[str] = Counter()
        wrong: Counter[str] = Counter()
        reached: Counter[str] = Counter()
        for query in _progress(queries, len(queries), "posters checked"):
            matrix = np.stack([np.asarray(query.variants[name]) for name in CHECKED])
            for name, matches in zip(CHECKED, nearest(self._store, info.space.id, matrix, candidates), strict=True):
                ids = [match.id for match in matches]
                named = self._named(check, self._files[query.poster][name], ids)
                reached[name] += query.poster in ids
                right[name] += named == query.poster
                wrong[name] += named not in (None, query.poster)
        print(
            f"--check, {candidates} candidates, {len(queries)} posters: among the candidates, named, another one named"
        )
        for name in CHECKED:
            print(f"  {name:11} {reached[name] / len(queries):6.1%} {right[name] / len(queries):6.1%} {wrong[name]:4}")
        self._print_foreign(check, info, foreign, candidates)

    def _print_foreign(self, check: PictureCheck, info: SpaceInfo, foreign: Path, candidates: int) -> None:
        known = {read_file(path).digest for path in self._settings.root.glob("*.jpg")}
        distinct = {read_file(path).digest: path for path in sorted(foreign.glob("*.jpg"))[: info.count]}
        paths = [path for digest, path in distinct.items() if digest not in known]
        found = nearest(self._store, info.space.id, self._embedder.embed_paths(paths).vectors, candidates)
        named = []
        for path, matches in _progress(zip(paths, found, strict=True), len(paths), "foreign images"):
            if name := self._named(check, path.read_bytes(), [match.id for match in matches]):
                named.append(f"{path.name} as {name}")
        print(f"  {len(paths)} foreign images: {len(named)} named {' '.join(named)}")
        fresh, timed, began = PictureCheck(self._settings, Catalogue(None)), paths[:TIMED], time.thread_time()
        for path, matches in zip(timed, found, strict=False):
            self._named(fresh, path.read_bytes(), [match.id for match in matches[:TIMED]])
        each_ms = 1000 * (time.thread_time() - began) / sum(len(matches[:TIMED]) for matches in found[:TIMED])
        print(f"  {each_ms:.0f} ms of one core for each candidate of a foreign image, its file read and decoded")

    def _named(self, check: PictureCheck, data: bytes, ids: Sequence[str]) -> str | None:
        """The poster that `identify --check` puts first, if one shows the same picture."""
        path = self._folder / "query.jpg"
        path.write_bytes(data)
        same = {name: found for name, found in check.candidates(path, ids).items() if found.same}
        return max(same, key=lambda name: same[name].points) if same else None


def _progress(items: Iterable[Item], count: int, what: str) -> Iterator[Item]:
    """The items, with a line on stderr for every 50."""
    for number, item in enumerate(items):
        if number % 50 == 0:
            print(f"{number} of {count} {what}", file=sys.stderr, flush=True)
        yield item


class Remembering(PictureCheck):
    """Reads each poster once: thousands of queries are compared with the same ones."""

    features_of = cache(PictureCheck.features_of)


if __name__ == "__main__":
    main(prog_name="python -m bench.identify")
