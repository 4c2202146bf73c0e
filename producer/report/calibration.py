"""The HTML page of a calibration: curves, a table, and the worst confusions as pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from producer.calibration.calibrate import Confusion, Measured, variant_rows
from producer.calibration.sample import Sample
from producer.calibration.thresholds import Outcome
from producer.report.pages import Card, Section, poster_file, render
from producer.report.thumbnails import image_urls
from producer.settings import Settings
from producer.vectors.base import SpaceInfo

WIDTH: Final = 320  # of a chart, in the units of its drawing
HEIGHT: Final = 200
POINTS: Final = 200  # of a curve: more than a screen shows
FALSE_SHOWN: Final = 5  # times the rate, on the axis of false claims
Numbers = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """A line of a chart; `points` as SVG writes them."""

    label: str
    points: str


class Mark(NamedTuple):
    """A vertical line at a threshold."""

    label: str
    x: float


class Chart(NamedTuple):
    """A drawing of curves: ticks are pairs of position and text."""

    title: str
    across: str
    curves: Sequence[Curve]
    marks: Sequence[Mark]
    ticks_x: Sequence[tuple[float, str]]
    ticks_y: Sequence[tuple[float, str]]


def calibration_page(settings: Settings, info: SpaceInfo, sample: Sample, measured: Measured) -> bytes:
    """The page as one file."""
    by = measured.calibration
    facts = [
        f"{by.posters:,} posters, {by.queries:,} images",
        f"certain from score {by.score:.4f} and lead {by.lead:.4f}",
        f"not found below {by.floor:.4f}",
        f"{by.certain / by.queries:.1%} certain, {by.false / by.queries:.2%} false (at most {by.rate:.2%})",
    ]
    flat = [outcome for of_one in measured.outcomes for outcome in of_one.values()]
    charts = [_claims(flat, measured), _distribution("Score", 3, 4, flat), _distribution("Lead", 1, 5, flat)]
    charts[1] = charts[1]._replace(marks=_marks(charts[1], {"certain": by.score, "floor": by.floor}, flat, 3, 4))
    charts[2] = charts[2]._replace(marks=_marks(charts[2], {"certain": by.lead}, flat, 1, 5))
    values = {"charts": charts, "rows": variant_rows(measured), "copies": measured.copies, "skipped": measured.skipped}
    sections = _confusions(settings, sample, measured.confusions)
    return render("How far identify can be relied on", info, facts, sections, more=values, page="calibration")


def _claims(flat: Sequence[Outcome], measured: Measured) -> Chart:
    """Right claims against false ones, for every threshold of score at the chosen lead."""
    by = measured.calibration
    ahead = np.array([o.lead >= by.lead for o in flat]), np.array([o.lead_without >= by.lead for o in flat])
    right = np.array([o.score if o.right else -2.0 for o in flat])[ahead[0]]
    wrong = np.array([o.score_without for o in flat])[ahead[1]]
    most = min(1.0, FALSE_SHOWN * by.rate)
    levels = np.unique(np.concatenate([[-1.0], wrong, right, [2.0]]))
    false = np.array([(wrong >= level).sum() for level in levels]) / len(flat)
    true = np.array([(right >= level).sum() for level in levels]) / len(flat)
    shown = false <= most
    points = _line(false[shown] / most, true[shown])
    ticks = [(WIDTH * step / 5, f"{most * step / 5:.1%}") for step in range(6)]
    mark = Mark(f"{by.rate:.1%} set", WIDTH * by.rate / most)
    return Chart("Right claims", "false claims", [Curve("right claims", points)], [mark], ticks, _percent())


def _distribution(name: str, with_poster: int, without: int, flat: Sequence[Outcome]) -> Chart:
    """The share of images that reach a value, with and without their posters in the collection."""
    low, high = _range(flat, with_poster, without)
    grid = np.linspace(low, high, POINTS)
    curves = []
    for label, at in (("its poster", with_poster), ("without its poster", without)):
        values = np.sort([outcome[at] for outcome in flat])
        share = 1 - np.searchsorted(values, grid) / len(values)
        curves.append(Curve(label, _line((grid - low) / (high - low), share)))
    ticks = [(WIDTH * step / 4, f"{low + (high - low) * step / 4:.3g}") for step in range(5)]
    return Chart(f"{name} reached", name.lower(), curves, [], ticks, _percent())


def _marks(chart: Chart, thresholds: dict[str, float], flat: Sequence[Outcome], first: int, second: int) -> list[Mark]:
    low, high = _range(flat, first, second)
    return [Mark(name, min(1.0, max(0.0, (value - low) / (high - low))) * WIDTH) for name, value in thresholds.items()]


def _range(flat: Sequence[Outcome], first: int, second: int) -> tuple[float, float]:
    values = [outcome[at] for outcome in flat for at in (first, second)]
    low, high = float(min(values)), float(max(values))
    return low, high if high > low else low + 1.0


def _line(across: Numbers, up: Numbers) -> str:
    return " ".join(f"{x * WIDTH:.1f},{(1 - y) * HEIGHT:.1f}" for x, y in zip(across, up, strict=True))


def _percent() -> list[tuple[float, str]]:
    return [(HEIGHT * (4 - step) / 4, f"{step / 4:.0%}") for step in range(5)]


def _confusions(settings: Settings, sample: Sample, confusions: Sequence[Confusion]) -> list[Section]:
    """Each with its picture, the poster it was taken for, and its own."""
    catalogue = sample.catalogue
    files = [poster_file(settings, poster, catalogue) for one in confusions for poster in (one.found, one.poster)]
    urls = iter(image_urls(settings, files))
    sections = []
    for one in confusions:
        made = (sample.variants(one.poster) or {}).get(one.variant)
        picture = f"data:image/jpeg;base64,{base64.b64encode(made).decode()}" if made else None
        cards = [
            Card(one.found, one.found, next(urls), score=one.score, tag="taken for"),
            Card(one.poster, one.poster, next(urls), score=one.own, tag="is", highlighted=True),
        ]
        query = Card(one.variant, f"of {one.poster}", picture)
        sections.append(Section(f"{one.poster}: {one.variant}", "taken for another poster", cards, query))
    return sections
