"""HTML pages: query images with the posters that look like them, and groups of duplicates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from producer.check.geometry import Comparison
from producer.collection.catalogue import Catalogue
from producer.collection.resolve import existing_file
from producer.report.thumbnails import File, image_urls
from producer.search.duplicates import Duplicates, Member
from producer.search.identify import Identified
from producer.search.nearest import Match, metadata_of, title_of
from producer.search.verdict import Verdict, shown
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
    verdict: Verdict | None = None


def render(
    title: str,
    info: SpaceInfo,
    facts: Sequence[str],
    sections: Sequence[Section],
    note: str = "",
    *,
    page: str = "page",
    more: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """The page as one UTF-8 file that holds its pictures and styles; all values are escaped, lone surrogates are ?.

    `page`: the template's name; `more`: values that it takes beside those of every page.
    """
    created = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    values = {"title": title, "info": info, "facts": facts, "sections": sections, "note": note, "created": created}
    return _page_template(page).render({**values, **more}).encode("utf-8", "replace")


@cache
def _page_template(page: str) -> jinja2.Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # 50 ms that no other command needs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = PackageLoader("producer.report", "")
    return environment.get_template(f"templates/{page}.html")


def identified_page(settings: Settings, info: SpaceInfo, catalogue: Catalogue, results: Sequence[Identified]) -> bytes:
    """Each image beside its matches."""
    files: list[File | None] = [(None, str(result.path.absolute())) if result.path else None for result in results]
    files += [poster_file(settings, match.id, catalogue) for result in results for match in result.matches]
    urls = iter(image_urls(settings, files))
    names = [result.image if result.query else result.image.rpartition("/")[2] or result.image for result in results]
    queries = [
        Card(name, _what(result), next(urls), "" if result.query else "cannot be shown")
        for name, result in zip(names, results, strict=True)
    ]
    sections = []
    for name, result, query in zip(names, results, queries, strict=True):
        cards = [_match(rank, match, result, next(urls)) for rank, match in enumerate(result.matches, 1)]
        title = cards[0].title if cards else name
        problem = f"{result.failure.word}: {result.failure.reason}" if result.failure else ""
        subtitle = f"is the best match for {name}" if cards else ""
        sections.append(Section(title, subtitle, cards, query, problem, result.verdict))
    title = "Which poster is this?" if len(results) == 1 else "Which posters are these?"
    return render(title, info, [f"{info.count:,} posters searched"], sections)


def _what(result: Identified) -> str:
    if result.query:
        return "your description"
    return "your image" + (", without its bars" if result.without_bars else "")


def _match(rank: int, match: Match, result: Identified, picture: str | None) -> Card:
    compared = result.comparisons.get(match.id)
    notes = _facts(match.about) + ([f"same picture: {shown(compared)}"] if compared and compared.same else [])
    title, file = title_of(match) or match.id, str(match.about["file"])
    return Card(title, file, picture, GONE, match.score, str(rank), notes, highlighted=rank == 1)


def duplicates_page(
    settings: Settings,
    info: SpaceInfo,
    catalogue: Catalogue,
    found: Duplicates,
    threshold: float | None,
    checked: Mapping[str, Comparison] = MappingProxyType({}),
) -> bytes:
    """Each group as a row, its first poster highlighted; `checked`: posters compared with the first of their group."""
    shown: list[Sequence[Member]] = []
    pictures_left = MAX_PICTURES
    for group in found.groups:
        pictures_left -= len(group)
        if pictures_left < 0 and shown:
            break
        shown.append(group[:MAX_PICTURES])
    urls = iter(
        image_urls(settings, [poster_file(settings, member.id, catalogue) for group in shown for member in group])
    )
    sections = []
    for group in shown:
        cards = [
            _member(member, group[0], metadata_of(member.id, catalogue), next(urls), checked.get(member.id))
            for member in group
        ]
        sections.append(Section(cards[0].title, f"{len(group)} posters", cards))
    left = len(found.groups) - len(shown)
    note = f"{left:,} more groups are not shown: `python -m producer duplicates --json` lists all." if left else ""
    how = "same content" if threshold is None else f"same content, or a cosine of {threshold:g} or more"
    inside = sum(len(group) for group in found.groups)
    facts = [f"{found.posters:,} posters compared", f"{len(found.groups):,} groups with {inside:,} posters", how]
    return render("Duplicate posters", info, facts, sections, note)


def _member(
    member: Member, first: Member, metadata: Mapping[str, Any], picture: str | None, checked: Comparison | None
) -> Card:
    tag = "first" if member is first else "same content" if member.same_content else ""
    notes = [f"{member.bytes / 1000:,.0f} kB", *_facts(metadata)]
    if not member.same_content and member.near_to not in (first.id, member.id):
        notes.append(f"near to {member.near_to}")
    if checked:
        notes.append(f"same picture: {shown(checked)}" if checked.same else "similar picture")
    title = str(metadata.get("title", "")) or member.id
    score = None if member is first else member.score
    return Card(title, str(metadata["file"]), picture, GONE, score, tag, notes, highlighted=member is first)


def poster_file(settings: Settings, poster: str, catalogue: Catalogue) -> File | None:
    """The file of a poster; None when it does not exist."""
    name = existing_file(settings.root, poster, catalogue)
    return None if name is None else (settings.root, name)


def _facts(metadata: Mapping[str, Any]) -> list[str]:
    """The catalogue's scalar values, such as a year, on one line."""
    facts = {key: value for key, value in metadata.items() if key not in ("file", "id", "title")}
    line = ", ".join(f"{key} {value}" for key, value in facts.items() if isinstance(value, str | int | float))
    return [line[:MAX_FACTS_CHARACTERS]] if line else []
