"""Sums by bucket: what they estimate, and that they survive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.evaluation.ledger import Ledger


def make_ledger(users: int = 400, *, seed: int = 0, buckets: int = 64) -> Ledger:
    """Users of unequal activity and unequal readiness, in the arm `a`."""
    random = np.random.default_rng(seed)
    ledger = Ledger(["a", "b"], buckets=buckets)
    decisions = 1 + random.poisson(4, users)
    rewards = random.binomial(decisions, random.beta(1, 4, users))
    ledger.add("a", random.integers(0, buckets, users), decisions.astype(np.float64), rewards.astype(np.float64))
    return ledger


def test_one_by_one_is_many_at_once() -> None:
    one, many = Ledger(["a", "b"], buckets=8), Ledger(["a", "b"], buckets=8)
    buckets, rewards = np.array([1, 1, 5]), np.array([0.0, 2.5, -1.0])
    for bucket, reward in zip(buckets.tolist(), rewards.tolist(), strict=True):
        one.shown("b", bucket)
        one.rewarded("b", bucket, reward)
    many.add("b", buckets, np.ones(3), rewards)
    for name, array in one.arrays().items():
        assert np.array_equal(array, many.arrays()[name])
    assert one.value("b").mean == pytest.approx(0.5)
    assert one.value("a").variance == np.inf


def test_variance_is_that_of_the_mean_over_worlds() -> None:
    """The delta method against 3,000 worlds drawn again; users of one world hang together, so 2 n p q would not do."""
    values = [make_ledger(seed=seed).value("a") for seed in range(3_000)]
    spread = np.var([value.mean for value in values])
    assert np.mean([value.variance for value in values]) == pytest.approx(spread, rel=0.12)  # 4.6 standard errors
    naive = np.mean([value.mean * (1 - value.mean) / value.decisions for value in values])
    assert spread > 1.3 * naive


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 5), st.floats(-5, 5)), min_size=2, max_size=30),
    st.floats(0.01, 100),
)
def test_scales_with_the_unit_of_reward(rows: list[tuple[int, int, float]], unit: float) -> None:
    plain, scaled = Ledger(["a"], buckets=8), Ledger(["a"], buckets=8)
    for bucket, decisions, reward in rows:
        plain.shown("a", bucket, decisions)
        scaled.shown("a", bucket, decisions)
        plain.rewarded("a", bucket, reward)
        scaled.rewarded("a", bucket, reward * unit)
    before, after = plain.value("a"), scaled.value("a")
    assert after.mean == pytest.approx(before.mean * unit, rel=1e-9, abs=1e-9)
    assert after.variance == pytest.approx(before.variance * unit**2, rel=1e-9, abs=1e-9)
    assert after.decisions == before.decisions == sum(decisions for _, decisions, _ in rows)


def test_users_spread_over_buckets_the_same_everywhere() -> None:
    ledger = Ledger(["a"], buckets=64)
    assert [ledger.bucket(user) for user in ("u1", "u2", "ü")] == [49, 52, 5]
    counts = np.bincount([ledger.bucket(f"user-{i}") for i in range(64_000)], minlength=64)
    assert np.square(counts - 1_000).sum() / 1_000 < 63 + 6 * np.sqrt(2 * 63)


def test_restores_and_refuses() -> None:
    ledger, other = make_ledger(), Ledger(["a", "b"], buckets=64)
    other.restore(ledger.arrays())
    assert other.value("a") == ledger.value("a")
    other.shown("a", 0)
    assert other.value("a") != ledger.value("a")  # copies
    for wrong, message in (
        (Ledger(["a", "c"], buckets=64), "of the arms a, b, this one of a, c"),
        (Ledger(["a", "b"], buckets=8), "another shape"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.restore(ledger.arrays())
    with pytest.raises(ValueError, match="lacks 'rewards'"):
        other.restore({name: array for name, array in ledger.arrays().items() if name != "rewards"})
    with pytest.raises(ValueError, match="does not know the arm 'x'"):
        ledger.shown("x", 0)
    with pytest.raises(ValueError, match="is nan"):
        ledger.rewarded("a", 0, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        ledger.add("a", np.zeros(1, np.int64), np.ones(1), np.array([np.inf]))
    for arms, buckets in (([], 8), (["a", "a"], 8), (["a"], 1)):
        with pytest.raises(ValueError, match=r"name at least one|at least 2"):
            Ledger(arms, buckets=buckets)


def test_variance_is_the_formula_written_out() -> None:
    ledger = Ledger(["a"], buckets=8)
    n, r = np.array([2.0, 3.0, 1.0]), np.array([1.0, 3.0, 0.0])
    ledger.add("a", np.array([0, 4, 7]), n, r)
    left = r - r.sum() / n.sum() * n
    # G counts the buckets that hold a decision.
    assert ledger.value("a").variance == pytest.approx(3 / 2 * (left**2).sum() / n.sum() ** 2)


def test_rewards_of_any_size_have_a_number_of_clusters() -> None:
    for unit in (1e-158, 1.0, 1e90):
        ledger = Ledger(["a"], buckets=8)
        ledger.add("a", np.array([0, 1]), np.ones(2), np.array([0.0, unit]))
        assert ledger.value("a").clusters == pytest.approx(2.0)
