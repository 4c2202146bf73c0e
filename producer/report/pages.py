"""HTML pages: query images with the posters that look like them, and groups of duplicates."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from producer.collection.catalogue import Catalogue
from producer.report.thumbnails import File, image_urls
from producer.search.duplicates import Duplicates, Member
from producer.search.identify import Identified
from producer.search.nearest import metadata_of, title_of
from producer.settings import Settings
from producer.vectors.base import SpaceInfo

if TYPE_CHECKING:
    import jinja2

GONE: Final = "no such image under the posters root any more"
MAX_FACTS_CHARACTERS: Final = 120
MAX_PICTURES: Final = 1000  # of about 20 kB: a page that every browser opens


@dataclass(frozen=True)
class Card:
    """A poster or a query image on a page.

    Attributes:
        picture: a ``data:`` URL; None: `placeholder` says why there is none.
        score: cosine, drawn as a bar; None: no bar.
        tag: a word or two before the title.
        notes: lines below the file.
    """

    title: str
    file: str
    picture: str | None
    placeholder: str = "no picture"
    score: float | None = None
    tag: str = ""
    notes: Sequence[str] = ()
    highlighted: bool = False


@dataclass(frozen=True)
class Section:
    """A query image with its matches, or a group of duplicates."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    query: Card | None = None
    problem: str = ""


def render(title: str, info: SpaceInfo, facts: Sequence[str], sections: Sequence[Section], note: str = "") -> bytes:
    """The page as one UTF-8 file that holds its pictures and styles; all values are escaped, lone surrogates are ?."""
    created = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    values = {"title": title, "info": info, "facts": facts, "sections": sections, "note": note, "created": created}
    return _page_template().render(values).encode("utf-8", "replace")


@cache
def _page_template() -> jinja2.Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # 50 ms that no other command needs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = PackageLoader("producer.report", "")
    return environment.get_template("templates/page.html")


def identified_page(settings: Settings, info: SpaceInfo, catalogue: Catalogue, results: Sequence[Identified]) -> bytes:
    """Each image beside its matches."""
    files: list[File | None] = [(None, str(result.image.absolute())) for result in results]
    files += [_file(settings, match.id, catalogue) for result in results for match in result.matches]
    urls = iter(image_urls(settings, files))
    queries = [Card(result.image.name, "your image", next(urls), "cannot be shown") for result in results]
    sections = []
    for result, query in zip(results, queries, strict=True):
        cards = [
            Card(
                title_of(match) or match.id,
                str(match.about["file"]),
                next(urls),
                GONE,
                match.score,
                str(rank),
                _facts(match.about),
                highlighted=rank == 1,
            )
            for rank, match in enumerate(result.matches, 1)
        ]
        title = cards[0].title if cards else result.image.name
        problem = f"{result.failure.word}: {result.failure.reason}" if result.failure else ""
        sections.append(
            Section(title, f"is the best match for {result.image.name}" if cards else "", cards, query, problem)
        )
    title = "Which poster is this?" if len(results) == 1 else "Which posters are these?"
    return render(title, info, [f"{info.count:,} posters searched"], sections)


def duplicates_page(
    settings: Settings, info: SpaceInfo, catalogue: Catalogue, found: Duplicates, threshold: float | None
) -> bytes:
    """Each group as a row, its first poster highlighted."""
    shown: list[Sequence[Member]] = []
    pictures_left = MAX_PICTURES
    for group in found.groups:
        pictures_left -= len(group)
        if pictures_left < 0 and shown:
            break
        shown.append(group[:MAX_PICTURES])
    urls = iter(image_urls(settings, [_file(settings, member.id, catalogue) for group in shown for member in group]))
    sections = []
    for group in shown:
        cards = [_member(member, group[0], metadata_of(member.id, catalogue), next(urls)) for member in group]
        sections.append(Section(cards[0].title, f"{len(group)} posters", cards))
    left = len(found.groups) - len(shown)
    note = f"{left:,} more groups are not shown: `python -m producer duplicates --json` lists all." if left else ""
    how = "same content" if threshold is None else f"same content, or a cosine of {threshold:g} or more"
    inside = sum(len(group) for group in found.groups)
    facts = [f"{found.posters:,} posters compared", f"{len(found.groups):,} groups with {inside:,} posters", how]
    return render("Duplicate posters", info, facts, sections, note)


def _member(member: Member, first: Member, metadata: Mapping[str, Any], picture: str | None) -> Card:
    tag = "first" if member is first else "same content" if member.same_content else ""
    notes = [f"{member.bytes / 1000:,.0f} kB", *_facts(metadata)]
    if not member.same_content and member.near_to not in (first.id, member.id):
        notes.append(f"near to {member.near_to}")
    title = str(metadata.get("title", "")) or member.id
    score = None if member is first else member.score
    return Card(title, str(metadata["file"]), picture, GONE, score, tag, notes, highlighted=member is first)


def _file(settings: Settings, poster: str, catalogue: Catalogue) -> File | None:
    """The file of a poster; None when it does not exist.

    Without a catalogue entry, an id is the file's path after NFC, with non-UTF-8 bytes as ``%XX``; the possible
    originals are tried in turn.
    """
    root = settings.root
    return next(((root, name) for name in _names(poster, catalogue) if os.path.isfile(root / name)), None)


def _facts(metadata: Mapping[str, Any]) -> list[str]:
    """The catalogue's scalar values, such as a year, on one line."""
    facts = {key: value for key, value in metadata.items() if key not in ("file", "id", "title")}
    line = ", ".join(f"{key} {value}" for key, value in facts.items() if isinstance(value, str | int | float))
    return [line[:MAX_FACTS_CHARACTERS]] if line else []


def _names(poster: str, catalogue: Catalogue) -> Iterator[str]:
    entry = catalogue.by_id([poster]).get(poster)
    if entry is not None:
        yield entry.file
        return
    if os.path.isabs(poster) or ".." in Path(poster).parts:
        return  # an id from a catalogue, not a path below the root
    yield poster
    yield unicodedata.normalize("NFD", poster)  # as macOS writes names
    if "%" in poster:  # as poster_id writes a byte that is not UTF-8
        yield re.sub("%([89A-F][0-9A-F])", lambda found: chr(0xDC00 + int(found[1], 16)), poster)
