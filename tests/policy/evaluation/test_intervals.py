"""Intervals: by hand where there is a hand's figure, by coverage where it is a promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.evaluation import intervals as iv


def test_sums_by_user_in_the_order_they_came():
    sums = iv.by_user(np.array([1.0, 2.0, 3.0, 4.0]), np.array([9, 2, 9, 5]))
    assert sums.sums[:, 0].tolist() == [4.0, 2.0, 4.0]
    assert sums.counts.tolist() == [2.0, 1.0, 1.0]
    assert sums.means.tolist() == [2.5]


def test_the_standard_error_is_the_textbooks_where_every_user_comes_once():
    x = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    sums = iv.by_user(x, np.arange(5))
    assert sums.errors[0] == pytest.approx(x.std(ddof=1) / np.sqrt(5))


def test_users_whose_decisions_repeat_each_other_are_one_observation_each():
    x = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    ten_times = iv.by_user(np.repeat(x, 10), np.repeat(np.arange(5), 10))
    assert ten_times.errors[0] == pytest.approx(iv.by_user(x, np.arange(5)).errors[0])
    low, high = (getattr(iv.bootstrap(ten_times)[0], end) for end in ("low", "high"))
    once = iv.bootstrap(iv.by_user(x, np.arange(5)))[0]
    assert (low, high) == pytest.approx((once.low, once.high))


def test_grouped_users_keep_the_estimate():
    rng = np.random.default_rng(0)
    sums = iv.by_user(rng.exponential(size=900), rng.integers(0, 300, 900))
    grouped = sums.grouped(40)
    assert len(grouped.counts) == 40
    assert grouped.means == pytest.approx(sums.means)
    assert grouped.errors == pytest.approx(sums.errors, rel=0.4)


def test_the_bootstrap_is_the_same_in_every_run_and_has_no_width_where_nothing_varies():
    rng = np.random.default_rng(0)
    sums = iv.by_user(rng.exponential(size=(300, 2)), np.arange(300))
    first, again = iv.bootstrap(sums), iv.bootstrap(sums)
    assert first == again
    for interval, mean in zip(first, sums.means, strict=True):
        assert interval.low < mean < interval.high
    flat = iv.bootstrap(iv.by_user(np.full(10, 2.0), np.arange(10)))[0]
    assert (flat.low, flat.high) == (2.0, 2.0)


def clustered(rng, users=150):
    """Rewards 0/1 with a taste of the user's own, logged with weights; the target's value is known."""
    size = rng.integers(1, 6, users)
    who = np.repeat(np.arange(users), size)
    good = rng.random(len(who)) < 0.25  # the logged action is the good one
    w = np.where(good, 0.75 / 0.25, 0.25 / 0.75)
    taste = rng.uniform(-0.1, 0.1, users)[who]
    r = (rng.random(len(who)) < np.where(good, 0.5, 0.2) + taste).astype(float)
    return r[:, None], w[:, None], np.ones((len(who), 1)), who


TRUTH = 0.75 * 0.5 + 0.25 * 0.2


def covered(runs, interval):
    rng = np.random.default_rng(7)
    return sum(found.low <= TRUTH <= found.high for found in (interval(*clustered(rng)) for _ in range(runs)))


def test_the_bootstrap_covers():
    def interval(r, w, shown, who):
        return iv.bootstrap(iv.by_user((r * w)[:, 0], who), draws=300)[0]

    assert covered(300, interval) >= 300 * 0.90  # at a coverage of .95 fewer than that has a chance of 10⁻⁴


def test_the_empirical_bernstein_interval_covers_and_narrows():
    def interval(r, w, shown, who):
        data = iv.bounded_below(r, w, shown, who, least=0.0, most=1.0, cap=5.0)
        return iv.empirical_bernstein(data, width=5.0)

    assert covered(200, interval) >= 198
    rng = np.random.default_rng(1)
    few, many = interval(*clustered(rng, 200)), interval(*clustered(rng, 20_000))
    assert many.high - many.low < 0.25 * (few.high - few.low)


def test_the_anytime_interval_holds_at_every_moment_at_once():
    """Whoever looks after every user: in 200 runs of 150 users the truth is refused in few, at any time."""
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(200):
        data = iv.bounded_below(*clustered(rng), least=0.0, most=1.0)
        edge = np.log(2 / 0.05)
        low = iv.log_capital(data.below, data.counts, data.least, TRUTH).max() >= edge
        high = iv.log_capital(-data.above, data.counts, -data.most, -TRUTH).max() >= edge
        refused += low or high
    assert refused <= 22  # promised are 10 of 200 at most; more than 22 then has a chance of 3·10⁻⁴


def test_the_anytime_interval_is_an_interval_and_narrows():
    rng = np.random.default_rng(1)

    def interval(users):
        return iv.anytime(iv.bounded_below(*clustered(rng, users), least=0.0, most=1.0))

    few, many = interval(300), interval(30_000)
    assert 0 <= few.low < TRUTH < few.high <= 1
    assert many.high - many.low < 0.3 * (few.high - few.low)


@given(st.lists(st.floats(0.0, 5.0), min_size=2, max_size=40), st.floats(0.01, 3.0))
@settings(max_examples=60)
def test_capital_never_falls_below_nothing(sums, m):
    """Whatever comes, half of the capital is kept at each bet: its logarithm is finite."""
    capital = iv.log_capital(np.array(sums), np.ones(len(sums)), np.zeros(len(sums)), m)
    assert np.isfinite(capital).all()


def test_cutting_weights_moves_the_ends_outwards_only():
    rng = np.random.default_rng(5)
    data = clustered(rng, 2_000)
    whole = iv.bounded_below(*data, least=0.0, most=1.0)
    cut = iv.bounded_below(*data, least=0.0, most=1.0, cap=1.5)
    assert cut.below.sum() < whole.below.sum()
    assert cut.above.sum() > whole.above.sum()


def test_rewards_below_zero_are_allowed_for():
    """Shifted rewards shift the interval with them."""
    rng = np.random.default_rng(5)
    r, w, shown, who = clustered(rng, 3_000)
    plain = iv.anytime(iv.bounded_below(r, w, shown, who, least=0.0, most=1.0))
    shifted = iv.anytime(iv.bounded_below(r - 1, w, shown, who, least=-1.0, most=0.0))
    assert (shifted.low, shifted.high) == pytest.approx((plain.low - 1, plain.high - 1), abs=1e-6)
    with pytest.raises(ValueError, match="a reward is not in"):
        iv.bounded_below(r, w, shown, who, least=0.5, most=1.0)


def test_diagnostics_by_hand():
    w, shown = np.array([[1.0], [3.0], [0.0], [2.0]]), np.ones((4, 1))
    found = iv.diagnose(w, shown, np.arange(4))
    assert found.ess == pytest.approx(36 / 14)
    assert found.share == pytest.approx(36 / 14 / 4)
    assert found.largest == 3.0
    assert found.calibration == pytest.approx(1.5)
    assert found.calibration_error == pytest.approx(w.std(ddof=1) / 2)
    even = iv.diagnose(np.ones((5, 3)), np.ones((5, 3)), np.arange(5))
    assert (even.ess, even.share, even.calibration) == (5.0, 1.0, 1.0)


def test_empirical_bernstein_is_maurers_and_pontils():
    """Theorem 4, for users who come once each: mean ± (√(2 V ln(2/δ) / G) + 7 R ln(2/δ) / (3 (G - 1)))."""
    x = np.random.default_rng(0).random(400)
    data = iv.bounded_below(x[:, None], np.ones((400, 1)), np.ones((400, 1)), np.arange(400), least=0.0, most=1.0)
    log_term = np.log(2 / 0.025)
    far = np.sqrt(2 * x.var(ddof=1) * log_term / 400) + 7 * log_term / (3 * 399)
    found = iv.empirical_bernstein(data, width=1.0)
    assert (found.low, found.high) == pytest.approx((x.mean() - far, x.mean() + far), abs=1e-6)


def test_no_bet_can_lose_everything():
    """After a run of good luck the worst that can happen costs at most half of the capital."""
    sums = np.concatenate([np.full(50, 1.0), np.zeros(50)])
    capital = iv.log_capital(sums, np.ones(100), np.zeros(100), 0.9)
    assert np.isfinite(capital).all()
    assert np.diff(capital).min() >= np.log(0.5) - 1e-12 and np.diff(capital).min() < -0.01
