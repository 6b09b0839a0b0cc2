"""The share of rewards that has come: recovered from a log whose late part is missing; weights of fake negatives."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.policy import delays

HOUR = 3_600_000


def test_the_delays_are_recovered_though_the_log_ends_in_the_midst() -> None:
    """A year of decisions at an even pace, exponential delays of 10 h on average; known is what came until now."""
    random = np.random.default_rng(0)
    ages = random.integers(0, 60 * HOUR, 200_000)
    mine = ages[random.random(len(ages)) < 0.3]
    took = random.exponential(10 * HOUR, len(mine)).astype(np.int64)
    came = took <= mine
    share = delays.shares(took[came], mine[came], ages)
    for hours in (1, 4, 10, 20):
        at = np.searchsorted(delays.EDGES_MS, hours * HOUR)
        truth = 1 - np.exp(-delays.EDGES_MS[at] / (10 * HOUR))
        naive = (took[came] <= delays.EDGES_MS[at]).mean()
        assert abs(share[at] - truth) < 0.01
        assert abs(share[at] - truth) < abs(naive - truth) / 2, "no better than the delays that have come"


def test_without_outcomes_nothing_is_held_to_be_outstanding() -> None:
    none = np.zeros(0, np.int64)
    assert (delays.shares(none, none, np.arange(100)) == 1).all()
    assert (delays.shares(none, none, none) == 1).all()
    assert (delays.multipliers(np.ones(46))[1:] == 1).all()


def test_multipliers_fall_to_one_and_are_bounded() -> None:
    share = np.clip(np.arange(46) / 30, 0, 1)
    factors = delays.multipliers(share)
    assert len(factors) == delays.STAGES
    assert (np.diff(factors) <= 0).all() and factors[0] == delays.LARGEST and factors[-1] == 1


def test_a_stage_is_a_number_of_ends_passed() -> None:
    assert [delays.stage(ms) for ms in (-5, 0, 999, 1_000, 1_413, 1_414, 10**12)] == [0, 0, 0, 1, 1, 2, 46]


def test_what_has_come_over_its_share_is_the_reward_on_average() -> None:
    """The whole of it: told rewards times multipliers, over decisions of every age."""
    random = np.random.default_rng(1)
    ages = random.integers(0, 200 * HOUR, 100_000)
    took = random.lognormal(np.log(5 * HOUR), 1.0, len(ages)).astype(np.int64)
    came = took <= ages
    share = delays.shares(took[came], ages[came], ages)
    factors = delays.multipliers(share)
    stages = np.array([delays.stage(a) for a in ages.tolist()])
    told = np.where(came, factors[stages], 0.0)
    assert abs(told.mean() - 1) < 0.02 < 1 - came.mean()


def test_fake_negative_weights_recover_the_rate() -> None:
    """Every example a negative at once, conversions again as positives: the weighted mean is p (Ktena et al. 2019)."""
    p = np.array([0.01, 0.2, 0.7])
    positive, negative = delays.fake_negative_weights(p)
    np.testing.assert_allclose(p * positive / (p * positive + negative), p)
    np.testing.assert_allclose(delays.fake_negative_calibration(p / (1 + p)), p)
    with pytest.raises(ValueError, match="between 0 and 1"):
        delays.fake_negative_weights(np.array([1.2]))
