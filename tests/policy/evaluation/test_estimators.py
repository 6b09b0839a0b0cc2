"""Estimators against figures worked out by hand, and against what theory says of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.evaluation import estimators as e
from headrace.policy.evaluation.estimators import Rounds

R = np.array([1.0, 0.0, 2.0, 1.0])
W = np.array([0.5, 2.0, 1.0, 4.0])
Q = np.array([0.5, 0.5, 1.0, 0.0])
V = np.array([0.25, 0.5, 0.75, 1.0])
ALL = np.ones(4, np.bool_)
ROUNDS = Rounds(R, W, ALL, Q, V)


@pytest.mark.parametrize(
    ("estimate", "by_hand"),
    [
        (e.on_policy, 4 / 4),
        (e.ips, (0.5 + 0 + 2 + 4) / 4),
        (e.snips, 6.5 / 7.5),
        (e.dm, 2.5 / 4),
        # w (r - q) = 0.25, -1, 1, 4
        (e.dr, (2.5 + 4.25) / 4),
        (e.sndr, 2.5 / 4 + 4.25 / 7.5),
        (lambda r: e.switch_dr(r, 2.0), (2.5 + 0.25 - 1 + 1) / 4),
        (lambda r: e.switch_dr(r, 1.0), (2.5 + 0.25 + 1) / 4),
        # ŵ = w / (w² + 1) = 0.4, 0.4, 0.5, 4/17
        (lambda r: e.dros(r, 1.0), (2.5 + 0.4 * 0.5 - 0.4 * 0.5 + 0.5 * 1 + 4 / 17) / 4),
    ],
)
def test_by_hand(estimate, by_hand):
    assert estimate(ROUNDS).mean() == pytest.approx(by_hand, abs=1e-12)


def test_the_limits_of_the_tuned_ones():
    assert e.switch_dr(ROUNDS, np.inf) == pytest.approx(e.dr(ROUNDS))
    assert e.switch_dr(ROUNDS, 0.0) == pytest.approx(e.dm(ROUNDS))
    assert e.dros(ROUNDS, 0.0) == pytest.approx(e.dm(ROUNDS))
    assert e.dros(ROUNDS, np.inf) == pytest.approx(e.dr(ROUNDS))
    assert e.dros(ROUNDS, 1e12) == pytest.approx(e.dr(ROUNDS), abs=1e-9)


def test_a_position_that_was_not_shown_adds_nothing_and_is_not_weighed():
    shown = np.array([True, True, True, False])
    part = Rounds(R, W, shown, Q, V)
    kept = Rounds(R[:3], W[:3], ALL[:3], Q[:3], V[:3])
    for estimate in (e.ips, e.snips, e.dm, e.dr, e.sndr):
        assert estimate(part).mean() == pytest.approx(0.75 * estimate(kept).mean())


floats = st.floats(0, 10, allow_nan=False)
rows = st.lists(st.tuples(floats, st.floats(0.01, 50), floats, floats), min_size=1, max_size=30)


def rounds(values) -> Rounds:
    r, w, q, v = np.array(values).T
    return Rounds(r, w, np.ones(len(r), np.bool_), q, v)


@given(rows)
def test_where_the_target_is_the_log_every_weighted_estimate_is_the_mean(values):
    r = rounds(values)
    same = Rounds(r.rewards, np.ones(len(r.rewards)), r.shown, r.q, r.q)
    for estimate in (e.ips, e.snips, e.dr, e.sndr):
        assert estimate(same).mean() == pytest.approx(r.rewards.mean(), abs=1e-9)


@given(rows, st.floats(0.1, 10))
def test_self_normalised_estimates_do_not_know_the_scale_of_the_weights_and_stay_within_the_rewards(values, scale):
    r = rounds(values)
    value = e.snips(r).mean()
    scaled = Rounds(r.rewards, r.weights * scale, r.shown)
    assert e.snips(scaled).mean() == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert r.rewards.min() - 1e-9 <= value <= r.rewards.max() + 1e-9


@given(rows)
def test_a_model_that_is_right_makes_dr_the_direct_method(values):
    r = rounds(values)
    exact = Rounds(r.q, r.weights, r.shown, r.q, r.v)
    for estimate in (e.dr, e.sndr, lambda x: e.switch_dr(x, 1.0), lambda x: e.dros(x, 3.0)):
        assert estimate(exact) == pytest.approx(e.dm(exact), abs=1e-9)


@given(
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
@settings(max_examples=50)
def test_ips_and_dr_are_unbiased_over_every_log_that_could_have_been(mu, pi, reward, model):
    """Two rounds, three actions: the expectation over all nine logs is the target's value, whatever the model says."""
    mu, pi = np.array(mu) / sum(mu), (np.array(pi) + 0.01) / (sum(pi) + 0.03)
    reward, model = np.array(reward), np.array(model)
    truth, found = float(pi @ reward), {"ips": 0.0, "dr": 0.0}
    for log in itertools.product(range(3), repeat=2):
        actions = np.array(log)
        chance = mu[actions].prod()
        seen = Rounds(
            reward[actions], e.weights(pi[actions], mu[actions]), ALL[:2], model[actions], np.full(2, pi @ model)
        )
        found["ips"] += chance * e.ips(seen).mean()
        found["dr"] += chance * e.dr(seen).mean()
    assert found["ips"] == pytest.approx(truth, abs=1e-9)
    assert found["dr"] == pytest.approx(truth, abs=1e-9)


def test_the_influence_values_have_the_spread_of_the_estimate():
    """Of 4,000 logs drawn again, the estimates spread as one log's contributions say (within 6 %)."""
    rng = np.random.default_rng(3)
    estimates, errors = [], []
    for _ in range(4_000):
        w = rng.gamma(2.0, 0.5, 200)
        r = rng.normal(1.0 + 0.5 * w, 1.0)
        c = e.snips(Rounds(r, w, np.ones(200, np.bool_)))
        estimates.append(c.mean())
        errors.append(c.std() / np.sqrt(200))
    assert np.std(estimates) == pytest.approx(np.mean(errors), rel=0.06)


def test_tuning_listens_to_the_weights():
    """With tame weights nothing is cut; a weight that throws the estimate about is, where the model is good."""
    rng = np.random.default_rng(0)
    n = 2_000
    q = rng.uniform(0, 1, n)
    tame = Rounds(q + rng.normal(0, 0.1, n), rng.uniform(0.9, 1.1, n), np.ones(n, np.bool_), q * 0.2, q * 0.2)
    assert e.best_tau(tame) >= tame.weights.max()
    wild = Rounds(q + rng.normal(0, 1, n), np.where(rng.random(n) < 0.02, 200.0, 0.5), np.ones(n, np.bool_), q, q)
    assert e.best_tau(wild) < 200
    assert e.dros(wild, e.best_lambda(wild)).std() < 0.6 * e.dr(wild).std()


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="not in \\(0, 1\\]"):
        e.weights(np.array([0.5]), np.array([0.0]))
    with pytest.raises(ValueError, match="not in \\(0, 1\\]"):
        e.weights(np.array([0.5]), np.array([1.2]))
    with pytest.raises(ValueError, match="target"):
        e.weights(np.array([1.5]), np.array([0.5]))
    with pytest.raises(ValueError, match="needs a reward model"):
        e.dr(Rounds(R, W, ALL))
