"""Examination weights: recovered from random slates, whatever their curve; bounded; none without data."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.policy import positions

POWER_LAW = (1.0 + np.arange(10)) ** -0.7
FOLD = np.array([1, 0.92, 0.85, 0.5, 0.45, 0.42, 0.4, 0.38, 0.37, 0.36])


@pytest.mark.parametrize("curve", [POWER_LAW, FOLD], ids=["power law", "fold"])
def test_weights_are_recovered(curve: np.ndarray) -> None:
    """20,000 clicks at the first position: a standard error of 1 %, so that 5 % is five of them at the last."""
    shown = np.linspace(200_000, 150_000, 10).astype(np.int64)
    rewarded = np.random.default_rng(0).binomial(shown, 0.1 * curve)
    np.testing.assert_allclose(positions.examination(shown, rewarded), curve, rtol=0.05)


def test_few_counts_stay_near_a_power_law() -> None:
    """Five clicks more than the 14 to be expected are 36 % too many; they move the estimate by 13 %."""
    shown = np.full(10, 1_000)
    rewarded = np.round(60 * POWER_LAW).astype(np.int64)
    rewarded[7] += 5
    np.testing.assert_allclose(positions.examination(shown, rewarded), POWER_LAW, rtol=0.15)


def test_without_enough_rewards_every_position_counts_alike() -> None:
    shown, few = np.full(10, 500), np.full(10, positions.LEAST // 10 - 1)
    assert (positions.examination(shown, few) == 1).all()
    assert (positions.examination(np.zeros(10, np.int64), np.zeros(10, np.int64)) == 1).all()


def test_weights_are_bounded_and_positions_never_shown_follow_the_law() -> None:
    shown = np.concatenate([np.full(5, 10_000), np.zeros(95, np.int64)])
    rewarded = np.concatenate([[4_000, 900, 300, 150, 90], np.zeros(95, np.int64)])
    theta = positions.examination(shown, rewarded)
    assert theta[0] == 1 and (theta >= positions.SMALLEST).all() and (theta <= 1).all()
    assert (np.diff(theta[5:]) <= 0).all()
