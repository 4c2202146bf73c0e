"""Thresholds of score and lead for a rate of false claims: conformal risk control over posters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from producer.errors import ConfigurationError

Numbers = npt.NDArray[np.float64]
# Of the leads with the right poster left out: thresholds of lead that are tried. So few fit no chance of the sample.
LEAD_SHARES: Final = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99)
FLOOR_SHARE: Final = 0.05  # of right posters that score below the floor


class Outcome(NamedTuple):
    """What one query found.

    Attributes:
        score: cosine of the best match, the right poster in the collection.
        lead: of that match over the best other poster.
        right: it is the right poster, or a copy of it.
        own: cosine of the right poster.
        score_without: of the best match with the right poster left out.
        lead_without: its lead.
    """

    score: float
    lead: float
    right: bool
    own: float
    score_without: float
    lead_without: float


class Thresholds(NamedTuple):
    """See Calibration."""

    score: float
    lead: float
    floor: float


def require_posters(count: int, rate: float) -> None:
    """Raise ConfigurationError, with the ways out, where a sample of `count` posters is too small for a rate."""
    if (count + 1) * rate < 1:
        raise ConfigurationError(
            f"{count} different posters cannot show a rate of {rate:g}: it takes {math.ceil(1 / rate) - 1}. "
            f"Index more, or set --rate {math.ceil(100 / (count + 1)) / 100:g} or more"
        )


def choose(outcomes: Sequence[Sequence[Outcome]], rate: float) -> Thresholds:
    """The thresholds with the most right claims among those that keep false claims at or below the rate.

    A claim is false when a query is called certain with its poster left out. The bound holds for the mean over new
    posters of the same kind: of n posters, the mean share of false variants may be ((n + 1) * rate - 1) / n
    (Angelopoulos et al. 2022, "Conformal risk control", theorem 1).

    Args:
        outcomes: for each poster, those of its variants.
        rate: of false claims, between 0 and 1.

    Raises:
        ConfigurationError: the sample is too small for the rate.
    """
    count = len(outcomes)
    require_posters(count, rate)
    allowed = (count + 1) * rate - 1
    weights = np.array([1 / len(of_one) for of_one in outcomes for _ in of_one])
    flat = [outcome for of_one in outcomes for outcome in of_one]
    scores, leads, right = (np.array([outcome[at] for outcome in flat], np.float64) for at in range(3))
    scores_out, leads_out = (np.array([outcome[at] for outcome in flat], np.float64) for at in (4, 5))
    best = (-1.0, 0.0, 0.0)  # right claims, minus the lead, score
    for share in LEAD_SHARES:
        lead = max(0.0, float(np.quantile(leads_out, share)))
        score = _lowest_score(scores_out, np.where(leads_out >= lead, weights, 0.0), allowed)
        claims = float((weights * right * (scores >= score) * (leads >= lead)).sum())
        best = max(best, (claims, -lead, score))
    floor = float(np.quantile([outcome.own for outcome in flat], FLOOR_SHARE))
    return Thresholds(best[2], -best[1], min(floor, best[2]))


def _lowest_score(scores: Numbers, weights: Numbers, allowed: float) -> float:
    """The lowest threshold that leaves at most `allowed` of the weights at or above it."""
    order = np.argsort(-scores, kind="stable")
    above = np.cumsum(weights[order])
    over = int(np.searchsorted(above, allowed + 1e-9, side="right"))  # the first that would be one too many
    return float(np.nextafter(scores[order[over]], 2.0)) if over < len(order) else float(scores.min())
