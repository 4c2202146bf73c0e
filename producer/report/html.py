"""Pages of pictures: one file each that holds everything it shows, runs nothing and loads nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from producer.report.style import STYLE
from producer.vectors.base import SpaceInfo

# Even if a title got past the escaping, a browser would run and load nothing.
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Card:
    """A poster, or a query, as a page shows it.

    Attributes:
        title: what it is called.
        file: where it lies, as a person knows it.
        picture: a ``data:`` URL; None where there is no picture, and `missing` says why.
        score: cosine, for the bar; None: no bar.
        tag: a word or two before the title.
        notes: lines below the file.
        lead: whether it stands out.
    """

    title: str
    file: str
    picture: str | None
    missing: str = "no picture"
    score: float | None = None
    tag: str = ""
    notes: Sequence[str] = ()
    lead: bool = False


@dataclass(frozen=True)
class Block:
    """A query with its matches, or a group: a heading, a line, and cards."""

    title: str
    line: str
    cards: Sequence[Card]
    query: Card | None = None
    problem: str = ""


def page(title: str, info: SpaceInfo, facts: Iterable[str], blocks: Iterable[Block], note: str = "") -> bytes:
    """The whole page, UTF-8. Everything that is not ours is escaped."""
    told = [f"<b>{escape(info.space.model)}</b>", f"space {escape(info.space.id)}", *map(escape, facts)]
    body = "\n".join(_block(block) for block in blocks)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    warning = "These vectors come from untrained weights: near copies are found, and nothing else means anything."
    notes = [note] if note else []
    if info.space.weights.startswith("untrained"):
        notes.append(warning)
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="facts">{" · ".join(told)}</p>
{"".join(f'<p class="note">{escape(text)}</p>' for text in notes)}
</header>
<main>
{body}
</main>
<footer>{made}. A score is the cosine of two vectors: 1 is the same picture.</footer>
</body>
</html>
"""
    return text.encode("utf-8", "replace")


def _block(block: Block) -> str:
    cards = "\n".join(_card(card, "li") for card in block.cards)
    listed = f'<ol class="cards">\n{cards}\n</ol>' if block.cards else ""
    if block.problem:
        listed = f'<p class="note">{escape(block.problem)}</p>' + listed
    head = f'<div class="head"><h2>{escape(block.title)}</h2><p>{escape(block.line)}</p></div>'
    if block.query is not None:
        listed = f'<div class="ask"><div class="query">{_card(block.query, "div")}</div><div>{listed}</div></div>'
    kind = "block pair" if len(block.cards) == 2 and block.query is None else "block"  # two pairs fit side by side
    return f'<section class="{kind}">\n{head}\n{listed}\n</section>'


def _card(card: Card, element: str) -> str:
    if card.picture:
        art = f'<img src="{escape(card.picture)}" alt="{escape(card.title)}" decoding="async">'
    else:
        art = f'<span class="none">{escape(card.missing)}</span>'
    tag = f'<span class="tag">{escape(card.tag)}</span> ' if card.tag else ""
    notes = "".join(f'<p class="file">{_path(note)}</p>' for note in card.notes)
    score = ""
    if card.score is not None:
        share = max(0.0, min(1.0, card.score)) * 100
        score = f'<p class="score"><span class="bar"><i style="width:{share:.1f}%"></i></span>{card.score:.4f}</p>'
    text = f'<h3>{tag}{escape(card.title)}</h3><p class="file">{_path(card.file)}</p>{notes}{score}'
    kind = "card lead" if card.lead else "card"
    return f'<{element} class="{kind}"><div class="art">{art}</div><div class="text">{text}</div></{element}>'


def _path(file: str) -> str:
    """A path that may break where a reader expects it."""
    return escape(file).replace("/", "/<wbr>").replace("_", "_<wbr>")
