"""Verdicts: by score and lead, by pictures, and without a calibration."""

from dataclasses import replace

import numpy as np
import pytest

from producer import Index
from producer.check.geometry import Comparison
from producer.embedding import with_space
from producer.maintenance.spaces import find_space
from producer.search.nearest import Match
from producer.search.verdict import judge, lead
from producer.settings import load_settings
from producer.vectors import open_store
from producer.vectors.base import Calibration
from tests.support.filled_store import CALIBRATION, SPACE, fill, unit

SAME = Comparison(True, 41, False, (0.0, 0.0, 1.0, 0.5))
DIFFERENT = Comparison(False, 3)


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:{tmp_path / 'v.db'}")
    fill(store, [f"p{n}" for n in range(40)], unit(40))
    yield store
    store.close()


@pytest.fixture
def info(store):
    store.calibrate(SPACE.id, CALIBRATION)
    return find_space(store)


def matches(*scores):
    return [Match(f"p{n}", score) for n, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "copies", "verdict", "words"),
    [
        ((0.95, 0.8), (), "certain", "score 0.9500 and lead 0.1500 reach 0.9000 and 0.0500"),
        ((0.95, 0.94), (), "perhaps", "lead 0.0100 over the next poster is below 0.0500"),
        ((0.95, 0.94, 0.7), ("p1",), "certain", "lead 0.2500"),
        ((0.85, 0.3), (), "perhaps", "score 0.8500 is below 0.9000"),
        ((0.55, 0.3), (), "not found", "score 0.5500 is below 0.6000, which 95 % of right posters reach"),
    ],
)
def test_score_and_lead_decide(info, scores, copies, verdict, words):
    """Each verdict with its reason in words; copies of the best match are not in its way."""
    found = judge(matches(*scores), copies, info)
    assert (found.verdict, found.score) == (verdict, scores[0])
    assert words in found.reason
    assert found.threshold == {"score": 0.9, "lead": 0.05, "floor": 0.6}
    entry = found.as_entry()
    assert {"verdict", "reason", "score", "lead", "threshold"} == entry.keys()


def test_the_same_picture_is_certain_whatever_the_cosine(info):
    """With and without a calibration; and where pictures were compared and none is the same, nothing is certain."""
    for known in (info, replace(info, calibration=None)):
        found = judge(matches(0.1, 0.7), (), known, {"p0": SAME, "p1": DIFFERENT})
        assert (found.verdict, found.lead) == ("certain", pytest.approx(-0.6))
        assert found.reason == "the same picture: 41 points match, 0 to 100 % across and 0 to 50 % down"
    found = judge(matches(0.95, 0.7), (), info, {"p0": DIFFERENT, "p1": DIFFERENT})
    assert found.verdict == "perhaps"
    assert "none of the 2 pictures compared is the same" in found.reason


def test_without_a_calibration_nothing_is_judged(info):
    """It is said, and what to do."""
    found = judge(matches(0.95, 0.7), (), replace(info, calibration=None))
    assert (found.verdict, found.threshold) == ("not calibrated", None)
    assert "producer calibrate" in found.reason
    assert judge([], (), info).verdict == "not found"


def test_a_collection_that_has_grown_is_calibrated_again(info):
    """Among more posters, more are near to anything."""
    assert "calibrate again" not in judge(matches(0.95, 0.7), (), replace(info, count=450)).reason
    assert "calibrate again" in judge(matches(0.95, 0.7), (), replace(info, count=451)).reason


def test_the_lead_is_never_more_than_it_is():
    """Where all listed matches are copies, the last of them bounds it; a single poster leads by its score."""
    assert lead(matches(0.9, 0.8, 0.7), {"p1", "p2"}) == pytest.approx(0.2)
    assert lead(matches(0.9), ()) == 0.9


def test_an_index_judges_like_the_command(store, tmp_path):
    """Index.identify: one vector, verdict and matches; a calibration is seen without reloading the vectors."""
    settings = load_settings(store=f"sqlite:{tmp_path / 'v.db'}", catalogue="none")
    with Index.open(settings, refresh_s=None) as index:
        query = with_space(unit(40)[7], SPACE.id)
        assert index.identify(query).verdict.verdict == "not calibrated"
        store.calibrate(SPACE.id, replace(CALIBRATION, collection=40))
        held = index.vectors()[1]
        assert index.refresh()
        assert np.shares_memory(index.vectors()[1], held)
        found = index.identify(query, k=3)
        assert (found.verdict.verdict, found.matches[0].id, len(found.matches)) == ("certain", "p7", 3)
        copy = unit(1, seed=9)[0] * 1e-3 + np.asarray(query)
        store.put(SPACE, [store.rows(SPACE.id, ["p7"])["p7"]._replace(id="z")], copy[None] / np.linalg.norm(copy))
        index.refresh()
        found = index.identify(query)
        assert [match.id for match in found.matches[:2]] == ["p7", "z"]
        assert found.verdict.verdict == "certain", "the copy was taken for another poster"
        with pytest.raises(ValueError, match="one vector"):
            index.identify(with_space(unit(2), SPACE.id))


def test_an_empty_index_finds_nothing(tmp_path):
    """Instead of an error."""
    settings = load_settings(store=f"sqlite:{tmp_path / 'none.db'}", catalogue="none")
    with Index.open(settings, refresh_s=None) as index:
        assert index.identify(with_space(unit(1)[0], SPACE.id)).verdict.verdict == "not found"


def test_a_calibration_of_a_later_version_is_read():
    """Redis has no schema that would keep older programs out."""
    text = CALIBRATION.to_json().replace("{", '{"later": 1, ', 1)
    assert Calibration.from_json(text) == CALIBRATION
