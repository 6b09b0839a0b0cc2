"""The contract of the mixture, and the promise of its budget."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from headrace.policy import checks
from headrace.policy.checks import make_query
from headrace.policy.conservative import Budget, Conservative
from headrace.policy.evaluation.gate import boundary
from headrace.policy.registry import make


def make_conservative(*, most: float = 1.0, earned: tuple[int, int] = (300, 200)) -> Conservative:
    """lints beside popular, both of which had 500 decisions; `earned` of them brought a reward."""
    budget = Budget()
    parts = np.repeat([1.0, 0.0], 500)
    budget.observed(parts, np.concatenate([np.arange(500) < won for won in earned]).astype(np.float64))
    return Conservative(make("lints", dim=12), make("popular", dim=12), budget=budget, most=most)


@pytest.mark.parametrize("check", list(checks.yield_checks(make_conservative())), ids=lambda check: check.__name__)
def test_contract(check: checks.Check) -> None:
    policy = make_conservative(most=0.95)
    assert policy.share == 0.95
    check(deepcopy(policy))


@pytest.mark.parametrize("check", [checks.check_frequencies_match_propensities, checks.check_propensities_sum_to_one])
def test_contract_at_a_small_share(check: checks.Check) -> None:
    policy = make_conservative(earned=(0, 200))
    assert 0 <= policy.share < 0.05  # 500 decisions that earned nothing are more than 5 % of 1,000
    check(policy)


def test_mixes_exactly_and_knows_its_part() -> None:
    policy = make_conservative(most=0.3)
    policy.policy.learn(checks.make_examples(policy, n=200))
    query = make_query(policy, rows=40, n=8)
    slates = policy.decide(query, 3)
    mixed, _ = policy.distributions(query, slates.index)
    own, _ = policy.policy.distributions(query, slates.index)
    safe, _ = policy.baseline.distributions(query, slates.index)
    assert np.allclose(mixed, 0.3 * own + 0.7 * safe, atol=1e-12)
    # Σ_a P(a) · part(a) is the share at every position, whatever was shown above.
    parts = np.divide(0.3 * own, mixed, out=np.zeros_like(own), where=mixed > 0)
    assert np.allclose((mixed * parts).sum(axis=2), 0.3)
    shown = np.take_along_axis(parts, slates.index[:, :, None], axis=2)[:, :, 0]
    assert np.allclose(policy.parts(query, slates), shown, atol=1e-12)


def test_parts_of_short_slates_are_0_where_nothing_is_shown() -> None:
    policy = make_conservative(most=0.5)
    query = make_query(policy, rows=3, n=4)
    slates = policy.decide(query, 6)
    parts = policy.parts(query, slates)
    assert ((parts > 0) == (slates.index >= 0)).all()
    before = policy.budget.arrays()["sums"]
    policy.observed(query, slates, np.ones(slates.index.shape))
    added = policy.budget.arrays()["sums"] - before
    assert np.isclose(added[0] + added[3], (slates.index >= 0).sum())


def test_a_worthless_policy_gets_the_share_that_may_be_lost() -> None:
    random, budget, taken = np.random.default_rng(0), Budget(loss=0.05), 0
    for step in range(400):
        own = random.random(50) < budget.share(50)
        taken += own.sum()
        budget.observed(own.astype(np.float64), np.where(own, 0.0, 0.2))
        assert taken <= 0.05 * 50 * (step + 1) + 10  # what one batch may draw too many
    assert taken >= 0.04 * 400 * 50
    budget.observed(np.ones(100), np.zeros(100))  # it took too much: it gives it back
    assert budget.share(50) == 0
    assert budget.decisions() < 0


@pytest.mark.parametrize("seed", range(5))
def test_a_better_policy_gets_everything_and_the_promise_holds(seed: int) -> None:
    random = np.random.default_rng(seed)
    budget, earned, shares = Budget(), 0.0, []
    for step in range(600):
        value = (0.08, 0.2) if step < 100 else (0.3, 0.2)  # it has learned after 2,000 decisions
        shares.append(budget.share(20))
        own = random.random(20) < shares[-1]
        means = np.where(own, *value)
        earned += means.sum()
        assert step < 5 or earned >= 0.95 * 20 * (step + 1) * value[1]
        budget.observed(own.astype(np.float64), (random.random(20) < means).astype(np.float64))
    assert np.mean(shares[:100]) < 0.1
    assert np.mean(shares[-20:]) > 0.95


def test_corrections_count_without_a_new_decision() -> None:
    at_once, later = Budget(), Budget()
    parts, rewards = np.array([1.0, 0.0, 0.4]), np.array([1.0, 2.0, 0.0])
    at_once.observed(parts, rewards)
    later.observed(parts, np.zeros(3))
    later.corrected(parts, rewards)
    assert np.array_equal(at_once.arrays()["sums"], later.arrays()["sums"])


def test_restores_as_a_whole_or_not_at_all() -> None:
    policy, other = make_conservative(), make_conservative(earned=(10, 200))
    policy.learn(checks.make_examples(policy, n=30))
    arrays, meta = policy.snapshot()
    other.restore(arrays, meta)
    assert checks.bits(other) == checks.bits(policy)
    assert other.share == policy.share
    fresh = make_conservative(earned=(10, 200))
    before = checks.bits(fresh)
    with pytest.raises(ValueError, match="policy"):
        fresh.restore(arrays, meta | {"baseline.policy": "random"})  # the last that is looked at
    assert checks.bits(fresh) == before


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="differ in dim"):
        Conservative(make("lints", dim=12), make("popular", dim=8))
    with pytest.raises(ValueError, match="most"):
        Conservative(make("lints", dim=4), make("popular", dim=4), most=2)
    for wrong in ({"loss": 0.0}, {"error": 0.5}, {"planned": 0}):
        with pytest.raises(ValueError, match="loss must lie"):
            Budget(**wrong)
    budget = Budget()
    for parts, rewards in (([2.0], [0.0]), ([0.5], [np.nan])):
        with pytest.raises(ValueError, match="rewards must be finite"):
            budget.observed(np.array(parts), np.array(rewards))
    assert not budget.arrays()["sums"].any()
    with pytest.raises(ValueError, match="at least one"):
        budget.share(0)
    with pytest.raises(ValueError, match="budget is missing"):
        budget.restore({})


def test_a_query_with_a_bad_number_is_refused_by_either() -> None:
    policy = make_conservative(earned=(0, 200))
    query = make_query(policy, rows=2)
    scalars = query.scalars.copy()
    scalars[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        policy.decide(replace(query, scalars=scalars), 2)


def test_the_budget_is_the_condition_written_out() -> None:
    """Kazerouni et al. 2017, equation 3, with what is not known of both, the baseline's part scaled by c."""
    random = np.random.default_rng(0)
    budget, mine, theirs = Budget(loss=0.1), random.random(3_000) + 0.5, random.random(400) * 4
    budget.observed(np.ones(3_000), mine)
    budget.observed(np.zeros(400), theirs)
    value, c = theirs.mean(), 0.9 * 3_000 - 0.1 * 400
    unsure = np.sqrt((mine**2).sum() + c**2 * (theirs**2).sum() / 400**2)
    far = boundary(3_400, error=budget.error, planned=budget.planned) * unsure
    assert mine.sum() > far
    assert budget.decisions() == pytest.approx((mine.sum() - far) / value - c)
