"""The command ``calibrate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Final

import click
from tqdm import tqdm

from producer.calibration.calibrate import Embed, Measured, as_entry, calibrate, embedded, variant_rows
from producer.calibration.sample import Sample
from producer.calibration.thresholds import require_posters
from producer.cli.main import as_json, example
from producer.client import Producer
from producer.collection.catalogue import open_catalogue
from producer.embedding import Vectors
from producer.errors import NoWorker, UnreadablePoster
from producer.export.atomic import write_atomically
from producer.maintenance.spaces import find_space, require_same_space, store_for_reading
from producer.output import emit, emit_json, emit_table, notify
from producer.report.calibration import calibration_page
from producer.settings import Settings, load_settings

IN_FLIGHT: Final = 4  # variants that wait for the worker at once: it is never idle between two


@example("python -m producer calibrate --html calibration.html")
@click.command("calibrate")
@click.option("--posters", type=click.IntRange(1), default=300, show_default=True, help="Size of the sample.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of images without a poster here that may be called certain.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sample and its variants.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait for each variant.")
@click.option("--forget", is_flag=True, help="Drop the thresholds instead.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write an HTML page with curves.")
@as_json
def calibrate_command(
    posters: int, rate: float, seed: int, timeout_s: float, forget: bool, html: Path | None, as_json: bool
) -> None:
    """Measure how far `identify` can be relied on here, and set its thresholds.

    Makes variants of a sample of the collection as people send them (recompressed, cropped, screenshots, photographs
    …), embeds them by the worker, and searches with each, once with and once without its poster. Stores with the space
    the thresholds of score and lead that call at most the share --rate of the latter certain. The same seed gives the
    same sample and variants, and the same thresholds but for the last digits of the device.
    """
    settings = load_settings()
    if forget:
        _forget(settings, as_json=as_json)
        return
    with (
        closing(Producer(settings)) as producer,
        closing(store_for_reading(settings)) as store,
        redirect_stdout(sys.stderr),
    ):
        info = find_space(store)
        space = producer.space()
        if space is None:
            raise NoWorker("no worker is alive: calibrating takes one, start it first")
        require_same_space(space.id, info.space.id, "the worker")
        require_posters(min(posters, info.count), rate)
        sample = Sample(settings, open_catalogue(settings), seed)
        drawn = tqdm(
            sample.draw(store, info.space.id, posters),
            total=min(posters, info.count),
            unit="poster",
            file=sys.stderr,
            disable=True if as_json else None,
        )
        queries = embedded(store, info, drawn, _by_worker(producer, info.space.id, timeout_s), sample.skipped)
        measured = calibrate(store, info, queries, rate=rate, seed=seed, skipped=sample.skipped)
        store.calibrate(info.space.id, measured.calibration)
        if html:
            write_atomically(html, calibration_page(settings, info, sample, measured))
            notify(f"wrote {html}")
    if as_json:
        emit_json(as_entry(measured, info))
    else:
        _emit(measured)


def _forget(settings: Settings, *, as_json: bool) -> None:
    """Drop the thresholds of the space that is searched."""
    with closing(store_for_reading(settings)) as store:
        space = find_space(store).space.id
        store.calibrate(space, None)
    notify(f"{space} is not calibrated any more")
    if as_json:
        emit_json({"space": space, "calibrated": False})


def _by_worker(producer: Producer, space_id: str, timeout_s: float) -> Embed:
    def embed(files: Sequence[bytes]) -> Sequence[Vectors | UnreadablePoster]:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            return list(pool.map(one, files))

    def one(data: bytes) -> Vectors | UnreadablePoster:
        try:
            vector = producer.embed_image(data, timeout_s)
        except UnreadablePoster as error:
            return error
        require_same_space(vector.space or "", space_id, "the worker")  # it may have been replaced meanwhile
        return vector

    return embed


def _emit(measured: Measured) -> None:
    """The thresholds, and a table with a row for each variant."""
    by = measured.calibration
    emit(f"certain: score {by.score:.4f} and lead {by.lead:.4f}; not found: below {by.floor:.4f}")
    emit(
        f"of {by.queries:,} images of {by.posters:,} posters, {by.certain / by.queries:.1%} are certain; without their "
        f"posters, {by.false / by.queries:.2%} (at most {by.rate:.2%})"
    )
    titles = ("variant", "right is first", "certain", "score, 5 % to 95 %", "without its poster")
    rows = [
        (
            row.variant,
            f"{row.first:.1%}",
            f"{row.certain:.1%}",
            f"{row.score[0]:.4f} … {row.score[2]:.4f}",
            f"{row.score_without[0]:.4f} … {row.score_without[2]:.4f}",
        )
        for row in variant_rows(measured)
    ]
    emit_table([titles, *rows], right={1, 2})
    for first, second, score in measured.copies:
        notify(f"copies, which count as one poster: {first} and {second} ({score:.4f})")
    for reason, number in measured.skipped.items():
        notify(f"left out of the sample: {number} ({reason})")
