"""The commands ``identify`` and ``duplicates``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from producer.check.geometry import Comparison
from producer.check.pictures import PictureCheck
from producer.cli.main import EX_NOT_CERTAIN, EX_OK, EX_SOME_FAILED, as_json, example, space_option
from producer.client import Producer
from producer.collection.catalogue import Catalogue, open_catalogue
from producer.errors import NoWorker, RedisUnreachable
from producer.export.atomic import write_atomically
from producer.maintenance.spaces import find_space, store_for_reading
from producer.output import emit, emit_json, emit_table, notify
from producer.report.pages import duplicates_page, identified_page
from producer.search.described import identify_queries
from producer.search.duplicates import Member, find_duplicates
from producer.search.identify import Identified, Searched, SearchOptions, as_entry, as_line, as_rows
from producer.search.nearest import metadata_of
from producer.search.query import image_names, parse
from producer.search.sources import open_sources
from producer.search.verdict import CERTAIN
from producer.settings import Settings, load_settings

page_path = click.Path(dir_okay=False, path_type=Path)
candidates_option = click.option(
    "--candidates",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="How many of the best matches --check compares; about 0.1 s each.",
)
as_html = click.option("--html", type=page_path, help="Also write an HTML page with thumbnails.")


@example("python -m producer identify ~/Downloads/screenshot.png --html matches.html")
@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE…]")
@click.option("--text", "texts", multiple=True, help="Find posters by a description; may be repeated.")
@click.option("-k", "k", type=click.IntRange(1, 1000), default=5, show_default=True, help="Matches for each query.")
@click.option("--check", is_flag=True, help="Compare the pictures of the best matches with the image, point by point.")
@candidates_option
@click.option("--local", is_flag=True, help="Load the model in this process instead of using a worker.")
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds to wait for each image.")
@as_html
@as_json
def identify(
    images: tuple[str, ...],
    texts: tuple[str, ...],
    html: Path | None,
    as_json: bool,
    check: bool,
    candidates: int,
    **more: Any,
) -> None:
    """Which poster is this? Say whether each IMAGE shows one of the posters, and which.

    IMAGE is a file in any folder, an address (http, https), or - for standard input. It is not stored. Prints a
    verdict (certain, perhaps, not found; not calibrated before `calibrate` has run) with its reason; then rank, score
    (cosine), title and file of the most similar posters.

    Images and texts can be added and subtracted, each with a weight before a colon: identify shot.png + "2:in the rain"
    - crowd.png. In such a sum what names neither a file nor an address is a text, and text:WORDS always is. Texts and
    sums are ranked without a verdict.

    Exit status: 0 all are certain; 1 an image could not be read; 4 one is not certain.
    """
    queries = parse(images, texts)
    if not queries:
        raise click.UsageError("name an image, or describe a poster with --text")
    settings = load_settings()
    catalogue = open_catalogue(settings)
    options = SearchOptions(check=candidates if check else 0, **more)
    if options.local:
        logging.basicConfig(level=logging.ERROR, format="%(message)s")  # open_clip warns about untrained weights
    # what libraries print must not get into --json
    with (
        closing(Producer(settings)) as producer,
        closing(store_for_reading(settings)) as store,
        redirect_stdout(sys.stderr),
        open_sources(image_names(queries), settings) as sources,
    ):
        info = find_space(store)
        try:
            by_name = {source.name: source for source in sources}
            results = identify_queries(Searched(producer, store, info, catalogue), queries, by_name, options)
        except (NoWorker, RedisUnreachable) as error:
            raise type(error)(f"{str(error).rstrip('.')}. Or add --local to load the model in this process") from error
        if html:
            write_atomically(html, identified_page(settings, info, catalogue, results))
            notify(f"wrote {html}")
    if as_json:
        emit_json([as_entry(result, info) for result in results])
    else:
        _emit_identified(results)
    for result in results:
        if result.failure:
            notify(f"failed: {result.failure}")
    if info.space.weights.startswith("untrained"):
        notify("note: these vectors come from UNTRAINED weights; only near copies are found")
    if any(result.failure for result in results):
        sys.exit(EX_SOME_FAILED)
    is_certain = all(result.verdict.verdict == CERTAIN for result in results if result.verdict)
    sys.exit(EX_OK if is_certain else EX_NOT_CERTAIN)


def _emit_identified(results: Sequence[Identified]) -> None:
    """A verdict and a table for each image; of several, each below its name."""
    shown = [result for result in results if not result.failure]
    for number, result in enumerate(shown):
        if len(results) > 1:
            if number:
                emit("")
            emit(result.image)
        if result.verdict:
            emit(as_line(result))
        emit_table(as_rows(result))


@example("python -m producer duplicates --threshold 0.95 --html duplicates.html")
@click.command()
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.97,
    show_default=True,
    help="Lowest cosine of two posters that count as the same.",
)
@click.option("--same-content", is_flag=True, help="Only files with identical bytes; compares no vectors.")
@click.option("--check", is_flag=True, help="Compare pictures: tell the same picture from one that is similar.")
@space_option
@as_html
@as_json
def duplicates(
    threshold: float, same_content: bool, check: bool, space: str | None, html: Path | None, as_json: bool
) -> None:
    """List groups of posters with the same content or a cosine above a threshold.

    With --check, each poster is compared with the first of its group, point by point: about 0.1 s each.
    """
    settings = load_settings()
    catalogue, minimum = open_catalogue(settings), None if same_content else threshold
    began = time.monotonic()
    with closing(store_for_reading(settings)) as store:
        info = find_space(store, space)
        pairs = 0 if same_content else info.count * (info.count - 1) // 2
        with tqdm(total=pairs, unit="pair", unit_scale=True, file=sys.stderr, disable=True if as_json else None) as bar:
            found = find_duplicates(store, info, minimum, bar.update)
    checked = _check_groups(settings, catalogue, found.groups, quiet=as_json) if check else {}
    if html:
        with redirect_stdout(sys.stderr):
            write_atomically(html, duplicates_page(settings, info, catalogue, found, minimum, checked))
        notify(f"wrote {html}")
    groups = [[_entry(member, catalogue, checked.get(member.id)) for member in group] for group in found.groups]
    if as_json:
        about = {"space": info.space.id, "threshold": minimum, "posters": found.posters}
        emit_json(about | {"groups": groups})
    for number, group in enumerate(groups, 1) if not as_json else ():
        if number > 1:
            emit("")
        emit(f"group {number}: {len(group)} posters")
        emit_table(("", *_relation(entry, group[0])) for entry in group)
    inside = sum(map(len, groups))
    notify(f"{len(groups)} group(s) with {inside} of {found.posters} posters, {time.monotonic() - began:.1f} s")


def _check_groups(
    settings: Settings, catalogue: Catalogue, groups: Sequence[Sequence[Member]], *, quiet: bool
) -> dict[str, Comparison]:
    """Each poster compared with the first of its group; those with the same bytes need no comparison."""
    pictures = PictureCheck(settings, catalogue)
    others = {group[0].id: [member.id for member in group[1:] if not member.same_content] for group in groups}
    total, found = sum(map(len, others.values())), {}
    with tqdm(total=total, unit="picture", file=sys.stderr, disable=True if quiet else None) as bar:
        for first, ids in others.items():
            found.update(pictures.with_poster(first, ids))
            bar.update(len(ids))
    return found


def _entry(member: Member, catalogue: Catalogue, checked: Comparison | None) -> dict[str, Any]:
    entry = member._asdict() | {"score": round(member.score, 6), "about": metadata_of(member.id, catalogue)}
    return entry | ({"check": asdict(checked)} if checked else {})


def _relation(entry: dict[str, Any], first: dict[str, Any]) -> tuple[str, str, str]:
    """File, likeness to the group's first, title."""
    title = str(entry["about"].get("title", ""))
    how = "first" if entry is first else "same content" if entry["same_content"] else f"{entry['score']:.4f}"
    if "check" in entry:
        how += "  same picture" if entry["check"]["same"] else "  similar picture"
    near = entry["near_to"]
    via = f"  (near to {near})" if not entry["same_content"] and near not in (first["id"], entry["id"]) else ""
    return str(entry["about"]["file"]), how, f"{title}{via}"
