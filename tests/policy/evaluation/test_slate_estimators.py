"""Slate estimators by hand, and by enumeration of every slate that could have been logged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.evaluation import slate_estimators as s

RATIOS = np.array([[2.0, 0.5], [1.0, 3.0]])
REWARDS = np.array([[1.0, 2.0], [0.0, 1.0]])
SHOWN = np.ones((2, 2), np.bool_)


def value(contributions):
    return contributions.sum(axis=1).mean()


def test_by_hand():
    assert value(s.iips(RATIOS, REWARDS, SHOWN)) == pytest.approx((2 * 1 + 0.5 * 2 + 0 + 3) / 2)
    assert value(s.rips(RATIOS, REWARDS, SHOWN)) == pytest.approx((2 * 1 + 1 * 2 + 0 + 3) / 2)
    assert value(s.sips(RATIOS, REWARDS, SHOWN)) == pytest.approx((1 * 3 + 3 * 1) / 2)
    # position 0: (2·1 + 1·0) / 3; position 1: (1·2 + 3·1) / 4
    assert value(s.snrips(RATIOS, REWARDS, SHOWN)) == pytest.approx(2 / 3 + 5 / 4)
    q, v = np.array([[1.0, 2.0], [0.5, 1.0]]), np.array([[2.0, 1.0], [2.0, 1.5]])
    # slate 0: 2 (1 - 1) + 1·2 + 1 (2 - 2) + 2·1 = 4; slate 1: 1 (0 - .5) + 1·2 + 3 (1 - 1) + 1·1.5 = 3
    assert value(s.cascade_dr(RATIOS, REWARDS, SHOWN, q=q, v=v)) == pytest.approx((4 + 3) / 2)


def test_a_position_that_was_not_shown_earns_nothing():
    shown = np.array([[True, False], [True, True]])
    assert value(s.rips(RATIOS, REWARDS, shown)) == pytest.approx((2 * 1 + 0 + 3) / 2)
    assert value(s.snrips(RATIOS, REWARDS, shown)) == pytest.approx(2 / 3 + 0.5 * 1)


ITEMS = 3
chances = st.lists(st.floats(0.05, 1), min_size=9, max_size=9)
models = st.lists(st.floats(-2, 2), min_size=24, max_size=24)


def conditional(raw):
    """π of the first item (3,), and of the second given the first (3, 3), without replacement."""
    table = np.array(raw).reshape(3, 3)
    first = table[0] / table[0].sum()
    second = table + 0.01
    np.fill_diagonal(second, 0)
    return first, second / second.sum(axis=1, keepdims=True)


@given(chances, chances, models)
@settings(max_examples=40)
def test_rips_and_cascade_dr_are_unbiased_where_rewards_depend_on_the_items_above(mu, pi, raw):
    (m1, m2), (p1, p2) = conditional(mu), conditional(pi)
    raw = np.array(raw)
    r1, r2 = raw[:3], raw[3:12].reshape(3, 3)  # rewards of the first place, and of the second below a first
    q1, q2 = raw[12:15], raw[15:24].reshape(3, 3)  # any model
    truth = sum(p1[a] * (r1[a] + sum(p2[a, b] * r2[a, b] for b in range(3))) for a in range(3))
    found = {"rips": 0.0, "cascade": 0.0, "sips": 0.0}
    one = np.ones((1, 2), np.bool_)
    for a, b in itertools.permutations(range(ITEMS), 2):
        chance = m1[a] * m2[a, b]
        ratios = np.array([[p1[a] / m1[a], p2[a, b] / m2[a, b]]])
        rewards = np.array([[r1[a], r2[a, b]]])
        q, v = np.array([[q1[a], q2[a, b]]]), np.array([[p1 @ q1, p2[a] @ q2[a]]])
        found["rips"] += chance * value(s.rips(ratios, rewards, one))
        found["sips"] += chance * value(s.sips(ratios, rewards, one))
        found["cascade"] += chance * value(s.cascade_dr(ratios, rewards, one, q=q, v=v))
    for name, estimate in found.items():
        assert estimate == pytest.approx(truth, abs=1e-9), name


def test_a_model_that_is_right_takes_all_of_the_cascades_variance():
    """With Q̂ exact and rewards without noise every slate says the same: the value."""
    rng = np.random.default_rng(1)
    (m1, m2), (p1, p2) = conditional(rng.uniform(0.1, 1, 9)), conditional(rng.uniform(0.1, 1, 9))
    r1, r2 = rng.uniform(0, 1, 3), rng.uniform(0, 1, (3, 3))
    onwards = r1 + (p2 * r2).sum(axis=1)
    seen = []
    for a, b in itertools.permutations(range(3), 2):
        ratios = np.array([[p1[a] / m1[a], p2[a, b] / m2[a, b]]])
        q, v = np.array([[onwards[a], r2[a, b]]]), np.array([[p1 @ onwards, p2[a] @ r2[a]]])
        rewards = np.array([[r1[a], r2[a, b]]])
        seen.append(s.cascade_dr(ratios, rewards, np.ones((1, 2), np.bool_), q=q, v=v).sum())
    assert seen == pytest.approx([p1 @ onwards] * 6)


def test_iips_is_unbiased_with_marginal_propensities_where_items_earn_by_themselves():
    rng = np.random.default_rng(2)
    (m1, m2), (p1, p2) = conditional(rng.uniform(0.1, 1, 9)), conditional(rng.uniform(0.1, 1, 9))
    earns = rng.uniform(0, 1, (2, 3))  # by position and item
    marginal_m, marginal_p = m1 @ m2, p1 @ p2
    truth = p1 @ earns[0] + marginal_p @ earns[1]
    found = 0.0
    for a, b in itertools.permutations(range(3), 2):
        ratios = np.array([[p1[a] / m1[a], marginal_p[b] / marginal_m[b]]])
        rewards = np.array([[earns[0, a], earns[1, b]]])
        found += m1[a] * m2[a, b] * value(s.iips(ratios, rewards, np.ones((1, 2), np.bool_)))
    assert found == pytest.approx(truth)
