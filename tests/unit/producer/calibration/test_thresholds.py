"""Thresholds: the rate of false claims holds on posters that were not in the sample."""

import numpy as np
import pytest

from producer.calibration.thresholds import Outcome, choose
from producer.errors import ConfigurationError


def drawn(count, seed, variants=6):
    """Posters whose variants are alike: each poster has a level of its own, as real ones have."""
    random = np.random.default_rng(seed)
    posters = []
    for _ in range(count):
        level, likeness = random.normal(0.8, 0.06), random.normal(0.6, 0.08)
        of_one = []
        for _ in range(variants):
            own, other = level + random.normal(0, 0.03), likeness + random.normal(0, 0.03)
            lead, lead_without = abs(own - other), abs(random.normal(0, 0.05))
            of_one.append(Outcome(max(own, other), lead, own > other, own, other, lead_without))
        posters.append(of_one)
    return posters


def false_share(posters, thresholds):
    shares = [
        np.mean([o.score_without >= thresholds.score and o.lead_without >= thresholds.lead for o in of_one])
        for of_one in posters
    ]
    return np.mean(shares)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_new_posters_are_seldom_claimed_falsely(rate):
    """The mean over forty samples stays at or under the rate, on thousands of posters that are in none of them."""
    fresh = drawn(2000, seed=999)
    shares = [false_share(fresh, choose(drawn(300, seed), rate)) for seed in range(20)]
    assert np.mean(shares) <= rate * 1.1
    assert np.mean(shares) >= rate / 4, "the thresholds are far too strict"


def test_right_claims_are_as_many_as_the_rate_allows():
    """A higher rate never makes fewer; and the lead is used where it helps."""
    posters = drawn(300, seed=1)
    certain = []
    for rate in (0.01, 0.05, 0.2):
        by = choose(posters, rate)
        claims = [o.right and o.score >= by.score and o.lead >= by.lead for of_one in posters for o in of_one]
        certain.append(np.mean(claims))
    assert certain == sorted(certain)
    assert certain[0] > 0.2
    close = [[o._replace(score_without=o.score, lead_without=0.0) for o in of_one] for of_one in posters]
    assert choose(close, 0.01).score > choose(posters, 0.01).score


def test_the_floor_is_reached_by_nearly_all_right_posters():
    """95 % of them; it never exceeds the threshold."""
    posters = drawn(300, seed=2)
    by = choose(posters, 0.01)
    own = [o.own for of_one in posters for o in of_one]
    assert np.mean([value >= by.floor for value in own]) == pytest.approx(0.95, abs=0.01)
    assert by.floor <= by.score


def test_a_sample_too_small_for_the_rate_is_refused():
    """It says how many it takes, and which rate these can show; that rate then works."""
    with pytest.raises(ConfigurationError, match=r"it takes 99\. Index more, or set --rate 0\.04 or more"):
        choose(drawn(24, seed=0), 0.01)
    assert choose(drawn(24, seed=0), 0.04)
    assert choose(drawn(99, seed=0), 0.01)


def test_no_false_claim_is_allowed_where_the_sample_is_just_large_enough():
    """99 posters and 1 %: thresholds above all that was seen."""
    posters = drawn(99, seed=3)
    assert false_share(posters, choose(posters, 0.01)) == 0
