"""The commands ``identify`` and ``duplicates``."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from producer.cli.main import EX_OK, EX_SOME_FAILED, as_json, example, space_option
from producer.client import Producer
from producer.collection.catalogue import Catalogue, open_catalogue
from producer.errors import NoWorker, RedisUnreachable
from producer.export.atomic import write_atomically
from producer.maintenance.spaces import find_space, store_for_reading
from producer.output import emit, emit_json, emit_table, notify
from producer.report.pages import duplicates_page, identified_page
from producer.search.duplicates import Member, find_duplicates
from producer.search.identify import as_entry, as_rows
from producer.search.identify import identify as find_posters_like
from producer.search.nearest import metadata_of
from producer.settings import load_settings

page_path = click.Path(dir_okay=False, path_type=Path)
as_html = click.option("--html", type=page_path, help="Also write an HTML page with thumbnails.")


@example("python -m producer identify ~/Downloads/screenshot.png --html matches.html")
@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@click.option("-k", "k", type=click.IntRange(1, 1000), default=5, show_default=True, help="Matches for each image.")
@click.option("--local", is_flag=True, help="Load the model in this process instead of using a worker.")
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds to wait for each image.")
@as_html
@as_json
def identify(images: tuple[Path, ...], k: int, local: bool, timeout_s: float, html: Path | None, as_json: bool) -> None:
    """Which poster is this? Find the posters most similar to each IMAGE, from any folder.

    The images are not stored. Prints rank, score (cosine), title and file.
    """
    settings = load_settings()
    catalogue = open_catalogue(settings)
    if local:
        logging.basicConfig(level=logging.ERROR, format="%(message)s")  # open_clip warns about untrained weights
    # what libraries print must not get into --json
    with (
        closing(Producer(settings)) as producer,
        closing(store_for_reading(settings)) as store,
        redirect_stdout(sys.stderr),
    ):
        info = find_space(store)
        try:
            results = find_posters_like(producer, store, info, catalogue, images, k=k, local=local, timeout_s=timeout_s)
        except (NoWorker, RedisUnreachable) as error:
            raise type(error)(f"{str(error).rstrip('.')}. Or add --local to load the model in this process") from error
        if html:
            write_atomically(html, identified_page(settings, info, catalogue, results))
            notify(f"wrote {html}")
    if as_json:
        emit_json([as_entry(result, info) for result in results])
    for number, result in enumerate(results):
        if result.failure:
            notify(f"failed: {result.failure}")
        elif not as_json:
            if len(results) > 1:
                if number:
                    emit("")
                emit(str(result.image))
            emit_table(as_rows(result))
    if info.space.weights.startswith("untrained"):
        notify("note: these vectors come from UNTRAINED weights; only near copies are found")
    sys.exit(EX_SOME_FAILED if any(result.failure for result in results) else EX_OK)


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
@space_option
@as_html
@as_json
def duplicates(threshold: float, same_content: bool, space: str | None, html: Path | None, as_json: bool) -> None:
    """List groups of posters with the same content or a cosine above a threshold."""
    settings = load_settings()
    catalogue, minimum = open_catalogue(settings), None if same_content else threshold
    began = time.monotonic()
    with closing(store_for_reading(settings)) as store:
        info = find_space(store, space)
        pairs = 0 if same_content else info.count * (info.count - 1) // 2
        with tqdm(total=pairs, unit="pair", unit_scale=True, file=sys.stderr, disable=True if as_json else None) as bar:
            found = find_duplicates(store, info, minimum, bar.update)
    if html:
        with redirect_stdout(sys.stderr):
            write_atomically(html, duplicates_page(settings, info, catalogue, found, minimum))
        notify(f"wrote {html}")
    groups = [[_entry(member, catalogue) for member in group] for group in found.groups]
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


def _entry(member: Member, catalogue: Catalogue) -> dict[str, Any]:
    return member._asdict() | {"score": round(member.score, 6), "about": metadata_of(member.id, catalogue)}


def _relation(entry: dict[str, Any], first: dict[str, Any]) -> tuple[str, str, str]:
    """File, likeness to the group's first, title."""
    title = str(entry["about"].get("title", ""))
    how = "first" if entry is first else "same content" if entry["same_content"] else f"{entry['score']:.4f}"
    near = entry["near_to"]
    via = f"  (near to {near})" if not entry["same_content"] and near not in (first["id"], entry["id"]) else ""
    return str(entry["about"]["file"]), how, f"{title}{via}"
