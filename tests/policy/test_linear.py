from __future__ import annotations

import numpy as np
import pytest

from headrace.policy.base import F64, Policy, Query
from headrace.policy.checks import make_examples, make_query
from headrace.policy.linear import LinTS, LinUCB
from headrace.policy.ridge import Ridge

RANDOM = np.random.default_rng(1)


def batches(size: int, lengths: list[int]) -> list[tuple[F64, F64]]:
    return [(RANDOM.standard_normal((n, size)), RANDOM.standard_normal(n)) for n in lengths]


@pytest.mark.parametrize("lengths", [[1] * 60, [3, 1, 5], [40, 2, 40], [500]])
def test_ridge_is_the_closed_form(lengths: list[int]) -> None:
    """However the examples are grouped: rank 1, rank N, afresh."""
    ridge = Ridge(20, ridge=2.0)
    data = batches(20, lengths)
    for x, r in data:
        ridge.learn(x, r, np.ones(len(r), np.bool_))
    x, r = np.vstack([x for x, _ in data]), np.concatenate([r for _, r in data])
    a = 2 * np.eye(20) + x.T @ x
    assert np.allclose(ridge.covariance, np.linalg.inv(a), atol=1e-10)
    assert np.allclose(ridge.theta, np.linalg.solve(a, x.T @ r), atol=1e-10)
    assert np.allclose(ridge.root() @ ridge.root().T, ridge.covariance, atol=1e-12)


def test_a_correction_only_moves_the_moment() -> None:
    ridge = Ridge(5, ridge=1.0)
    x, r = batches(5, [10])[0]
    ridge.learn(x, r, np.ones(10, np.bool_))
    covariance, moment = ridge.covariance.copy(), ridge.moment.copy()
    ridge.learn(x[:2], np.array([1.0, -0.5]), np.zeros(2, np.bool_))
    assert np.array_equal(ridge.covariance, covariance)
    assert np.allclose(ridge.moment, moment + x[0] - 0.5 * x[1])


def test_rank_one_updates_hardly_drift() -> None:
    ridge = Ridge(30, ridge=1.0, refactor_every=2_000)
    one = np.ones(1, np.bool_)
    for _ in range(1_999):
        ridge.learn(RANDOM.standard_normal((1, 30)), np.zeros(1), one)
    assert ridge.since == 1_999 and ridge.refactored == 0 and 0 < ridge.drift() < 1e-10
    ridge.learn(RANDOM.standard_normal((1, 30)), np.zeros(1), one)
    assert ridge.since == 0


def test_drift_is_found_and_ended() -> None:
    ridge = Ridge(30, ridge=1.0)
    one = np.ones(1, np.bool_)
    for i in range(1_000):
        if i == 500:
            ridge._root *= 1.001  # type: ignore[operator]
            assert ridge.drift() > 1e-3
        ridge.learn(RANDOM.standard_normal((1, 30)), np.zeros(1), one)
    assert ridge.refactored == 1 and ridge.since < 500 and ridge.drift() < 1e-10


def scores_of(policy: Policy, query: Query) -> F64:
    return policy.distributions(query, np.full((len(query.states), 1), -1))[1]


def test_linucb_is_theta_x_plus_alpha_widths() -> None:
    policy = LinUCB(dim=6, contexts=2, alpha=0.7)
    policy.learn(make_examples(policy, n=30))
    query = make_query(policy)
    x = policy._features.joint(query.states[:, None], query.contexts[:, None], query.items, query.scalars)
    x = x.astype(np.float64)
    width = np.sqrt(np.einsum("bnd,de,bne->bn", x, policy.regression.covariance, x))
    assert np.allclose(scores_of(policy, query), x @ policy.regression.theta + 0.7 * width, atol=1e-4)


def test_without_exploration_all_are_greedy_ridge() -> None:
    """α = 0: LinUCB, Thompson sampling and θᵀx are one."""
    ucb, ts = LinUCB(dim=6, alpha=0.0), LinTS(dim=6, alpha=0.0, draws=3)
    for policy in (ucb, ts):
        policy.learn(make_examples(policy, n=30))
    query = make_query(ucb)
    slates = ucb.decide(query, 4)
    assert np.array_equal(slates.index, ts.decide(query, 4).index)
    assert np.allclose(ucb.distributions(query, slates.index)[0], ts.distributions(query, slates.index)[0])


def test_draws_are_from_the_posterior() -> None:
    policy = LinTS(dim=4, alpha=0.5, draws=4_000, seed=3)
    policy.learn(make_examples(policy, n=100))
    draws = policy.serving()["weights"][1:].astype(np.float64)
    directions = RANDOM.standard_normal((10, draws.shape[1]))
    projected = draws @ directions.T
    mean, variance = (
        directions @ policy.regression.theta,
        0.25 * np.einsum("id,de,ie->i", directions, policy.regression.covariance, directions),
    )
    assert np.all(np.abs(projected.mean(axis=0) - mean) < 5 * np.sqrt(variance / 4_000))
    assert np.allclose(projected.var(axis=0), variance, rtol=0.15)


def test_seed_and_examples_name_the_draws() -> None:
    def draws(seed: int, n: int) -> F64:
        policy = LinTS(dim=4, seed=seed)
        policy.learn(make_examples(policy, n=n))
        return policy.serving()["weights"]

    assert np.array_equal(draws(1, 10), draws(1, 10))
    assert not np.array_equal(draws(1, 10), draws(2, 10))


def test_huge_numbers_are_refused() -> None:
    policy = LinUCB(dim=4)
    examples = make_examples(policy, n=3)
    examples.rewards[1] = 1e9
    with pytest.raises(ValueError, match="reward is beyond"):
        policy.learn(examples)
    assert policy.learned == 0 and not policy.regression.moment.any()


def test_an_optimistic_draw_is_as_far_above_the_estimate() -> None:
    """Each vote goes to the largest θᵀx + |wᵀx - θᵀx|, worked out one candidate and one draw at a time."""
    policy = LinTS(dim=6, scalars=("popularity",), alpha=0.5, draws=64, optimistic=True, floor=0.1)
    policy.learn(make_examples(policy, n=80))
    query = make_query(policy, rows=20, n=7)
    pi = policy.distributions(query, np.where(query.mask, 1, 0).argmax(axis=1)[:, None])[0][:, 0]
    weights = policy.serving()["weights"].astype(np.float64)
    for row in range(20):
        x = policy._features.joint(query.states[row], query.contexts[row], query.items[row], query.scalars[row], None)
        mean, draws = x @ weights[0], x @ weights[1:].T
        bounds = np.where(query.mask[row][:, None], mean[:, None] + np.abs(draws - mean[:, None]), -np.inf)
        votes = np.bincount(bounds.argmax(axis=0), minlength=7) / 64
        expected = 0.9 * votes + 0.1 * query.mask[row] / query.mask[row].sum()
        assert np.allclose(pi[row], expected, atol=1e-9)
