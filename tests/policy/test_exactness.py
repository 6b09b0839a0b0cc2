"""Propensities are exact, position by position; benchmarks/exactness.py does the same with many more draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace.policy.checks import learned, make_query, take
from headrace.policy.choices import EpsilonGreedy, InverseGap
from headrace.policy.registry import make
from headrace.policy.slates import Choice, Greedy, Mixture, Softmax, Votes, rescore

DECISIONS, REDRAWS = 10, 2_000
POLICIES = ("random", "epsilon_greedy", "softmax", "squarecb", "linucb", "lints", "neural_linear")


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_logged_is_drawn_as_often_as_its_propensity_says(name: str) -> None:
    """χ² of all positions of all decisions together, each given the logged items above it. The streams are fixed."""
    policy = make(name, dim=4, floor=0.2, draws=16, seed=1)
    if policy.learns:
        policy = learned(policy, batches=1, n=30)
    query = make_query(policy, rows=DECISIONS, n=6, seed=3)
    logged = policy.decide(query, 3)
    probabilities, _ = policy.distributions(query, logged.index)
    chi2 = freedom = 0.0
    for row in range(DECISIONS):
        again = take(query, np.full(REDRAWS, row))
        streams = np.arange(REDRAWS, dtype=np.uint64) + np.uint64(row * REDRAWS)
        drawn = policy.decide(replace(again, streams=streams), 3).index
        for j in range(3):
            expected = len(drawn) * probabilities[row, j]
            counts = np.bincount(drawn[:, j], minlength=6)
            assert not counts[expected == 0].any()
            enough = expected >= 5
            chi2 += (np.square(counts - expected)[enough] / expected[enough]).sum()
            freedom += enough.sum() - 1
            drawn = drawn[drawn[:, j] == logged.index[row, j]]
    assert freedom > 50
    assert abs(chi2 - freedom) < 6 * np.sqrt(2 * freedom), f"χ² = {chi2:.1f} with {freedom:.0f} degrees of freedom"


@pytest.mark.parametrize("floor", [0.05, 0.3])
@pytest.mark.parametrize("kind", ["greedy", "votes", "softmax", "epsilon", "gap", "mixture"])
def test_the_floor_keeps_the_effective_sample_of_the_uniform_policy(kind: str, floor: float) -> None:
    """1 / E[w²] ≥ floor at every position, whatever the policy: docs/policies.md."""
    random = np.random.default_rng(5)
    scores, mask = (3 * random.standard_normal((40, 9))).astype(np.float32), np.ones((40, 9), np.bool_)
    draws = random.standard_normal((40, 8, 9)).astype(np.float32)
    choices: dict[str, Choice] = {
        "greedy": Greedy(scores, mask),
        "votes": Votes(draws.copy(), mask),
        "softmax": Softmax(10 * scores, mask),
        "epsilon": EpsilonGreedy(scores, mask, epsilon=0.0),
        "gap": InverseGap(scores, mask, gamma=1e6),
        "mixture": Mixture(Greedy(scores, mask), Votes(draws.copy(), mask), 0.9),
    }
    slates = np.argsort(-scores, axis=1)[:, :5]
    for j, p in enumerate(rescore(choices[kind], mask, slates, floor=floor).transpose(1, 0, 2)):
        left = 9 - j
        squared = np.divide(1 / left**2, p, out=np.zeros_like(p), where=p > 0).sum(axis=1)  # E[w²], w = (1 / left) / p
        assert (1 / squared >= floor).all(), j
