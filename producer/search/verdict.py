"""Verdicts: whether the best match of a query is its poster, by thresholds that `calibrate` measured for the space."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from producer.check.geometry import Comparison
from producer.host import program
from producer.search.nearest import Match
from producer.vectors.base import Calibration, SpaceInfo

CERTAIN: Final = "certain"
PERHAPS: Final = "perhaps"
NOT_FOUND: Final = "not found"
NOT_CALIBRATED: Final = "not calibrated"
# Matches among which the best other poster is sought: in front of it may be copies of the best one.
LEAD_MATCHES: Final = 25
GROWN: Final = 1.5  # times the vectors of the calibration: among more posters, more are near to anything


class Verdict(NamedTuple):
    """What is known of a query.

    Attributes:
        verdict: certain: the first match is its poster. perhaps: it may be. not found: none is. not calibrated: the
            space has no thresholds, so that scores mean nothing by themselves.
        reason: one sentence for a person.
        score: cosine of the best match; None in an empty space.
        lead: by which it is ahead of the best other poster; copies of one poster count as one.
        threshold: `score` and `lead` that make a match certain, and `floor`, below which nothing is found; None: not
            calibrated.
    """

    verdict: Literal["certain", "perhaps", "not found", "not calibrated"]
    reason: str
    score: float | None = None
    lead: float | None = None
    threshold: Mapping[str, float] | None = None

    def as_entry(self) -> dict[str, Any]:
        """As a JSON object."""
        rounded = {name: None if value is None else round(value, 6) for name, value in self._numbers().items()}
        return {"verdict": self.verdict, "reason": self.reason, **rounded, "threshold": self.threshold}

    def _numbers(self) -> dict[str, float | None]:
        return {"score": self.score, "lead": self.lead}


class Identification(NamedTuple):
    """A verdict, and the matches that it is about, best first."""

    verdict: Verdict
    matches: list[Match]


def lead(matches: Sequence[Match], copies: Collection[str]) -> float:
    """By how much the first match is ahead of the best that is not among its copies.

    Where all are copies, the lead over the last of them: less than the true one, never more.
    """
    others = [match.score for match in matches[1:] if match.id not in copies]
    return matches[0].score - (max(others) if others else matches[-1].score if len(matches) > 1 else 0.0)


def judge(
    matches: Sequence[Match],
    copies: Collection[str],
    info: SpaceInfo,
    comparisons: Mapping[str, Comparison] | None = None,
) -> Verdict:
    """The verdict on a query.

    Args:
        matches: the LEAD_MATCHES best, best first; those whose pictures were compared and are the same come first.
        copies: ids of the posters that are copies of the first match.
        info: the space that was searched.
        comparisons: by id, of the candidates that were compared with the query; None: none was.
    """
    calibration = info.calibration
    threshold = _threshold(calibration) if calibration else None
    if not matches:
        return Verdict(NOT_FOUND, "there are no posters to compare with", threshold=threshold)
    best, ahead = matches[0], lead(matches, copies)
    numbers = (best.score, ahead, threshold)
    compared = comparisons.get(best.id) if comparisons else None
    if compared and compared.same:
        return Verdict(CERTAIN, f"the same picture: {shown(compared)}", *numbers)
    checked = "" if comparisons is None else f"; none of the {len(comparisons)} pictures compared is the same"
    if calibration is None:
        way_out = f"run `{program()} calibrate`{'' if comparisons else ', or compare the pictures (`--check`)'}"
        reason = f"scores have no thresholds here: {way_out}{checked}"
        return Verdict(NOT_CALIBRATED, reason, *numbers)
    verdict, reason = _by_score(best.score, ahead, calibration)
    if verdict == CERTAIN and comparisons is not None:
        verdict = PERHAPS
    if info.count > GROWN * calibration.collection:
        reason += f"; calibrated with {calibration.collection:,} posters, now there are {info.count:,}: calibrate again"
    return Verdict(verdict, f"{reason}{checked}", *numbers)


def _by_score(score: float, ahead: float, by: Calibration) -> tuple[Literal["certain", "perhaps", "not found"], str]:
    if score < by.floor:
        return NOT_FOUND, f"score {score:.4f} is below {by.floor:.4f}, which 95 % of right posters reach"
    if score < by.score:
        return PERHAPS, f"score {score:.4f} is below {by.score:.4f}, where at most {by.rate:.3g} of claims are false"
    if ahead < by.lead:
        return PERHAPS, f"lead {ahead:.4f} over the next poster is below {by.lead:.4f}: they look alike"
    return CERTAIN, f"score {score:.4f} and lead {ahead:.4f} reach {by.score:.4f} and {by.lead:.4f}"


def shown(compared: Comparison) -> str:
    """How two pictures agree, in words: matching points, the part of the poster, mirrored or not."""
    text = f"{compared.points} points match"
    if compared.shown:
        left, top, right, bottom = (round(100 * edge) for edge in compared.shown)
        whole = left <= 2 and top <= 2 and right >= 98 and bottom >= 98
        text += ", all of it" if whole else f", {left} to {right} % across and {top} to {bottom} % down"
    return f"{text}, mirrored" if compared.mirrored else text


def _threshold(calibration: Calibration) -> dict[str, float]:
    values = {"score": calibration.score, "lead": calibration.lead, "floor": calibration.floor}
    return {name: round(value, 6) for name, value in values.items()}
