"""Shares of the shown places: kept over every window, whatever the policy would show by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.rules.exposure import CREDIT, Exposure, Share


def shown(exposure, share, natural, slates, *, k=10, seed=1):
    """Places given to the group by slate: what a policy gives by itself, held to the plan."""
    rng = np.random.default_rng(seed)
    placed = []
    for wanted in rng.binomial(k, natural, slates):
        plan = exposure.plan("home", share, k)
        placed.append(int(min(max(wanted, plan.least), plan.most)))
        exposure.settle("home", share, k, plan, placed[-1])
    return np.array(placed)


@pytest.mark.parametrize("natural", [0.0, 0.05, 0.19, 0.2])
def test_a_least_share_is_kept_over_every_window_and_hardly_exceeded(natural):
    placed = shown(Exposure(), Share("new", 0.2, None, 1_000), natural, 5_000)
    shares = np.convolve(placed, np.ones(1_000), "valid") / 10_000
    assert shares.min() >= 0.2 - 2 * CREDIT - 0.001
    assert shares.max() <= 0.21


def test_a_policy_that_shows_more_by_itself_owes_nothing():
    placed = shown(Exposure(), Share("new", 0.2, None, 1_000), 0.5, 2_000)
    assert placed.mean() == pytest.approx(0.5 * 10, abs=0.1)


@pytest.mark.parametrize("natural", [0.3, 0.9])
def test_a_most_share_is_kept(natural):
    placed = shown(Exposure(), Share("brand", None, 0.25, 1_000), natural, 5_000)
    shares = np.convolve(placed, np.ones(1_000), "valid") / 10_000
    assert shares.max() <= 0.25 + 2 * CREDIT + 0.001
    assert shares.min() >= 0.24


@pytest.mark.parametrize("k", [1, 2])
def test_a_share_of_few_places_is_paid_too(k):
    """Less than a place of credit would never become a whole one."""
    assert shown(Exposure(), Share("new", 0.05, None, 100), 0.0, 4_000, k=k).sum() == pytest.approx(200 * k, abs=2)
    assert shown(Exposure(), Share("brand", None, 0.05, 100), 1.0, 4_000, k=k).sum() == pytest.approx(200 * k, abs=2)


def test_a_share_is_one_of_the_places_that_were_filled():
    """A slate that nobody got, or a short one, owes nothing for the places that it has not."""
    share, exposure = Share("r", 0.2, 0.2, 10_000), Exposure()
    for size in (0, 0, 5, 0):
        plan = exposure.plan("home", share, 10)
        exposure.settle("home", share, 10, plan, min(plan.least, size), size=size)
    assert list(exposure.accounts.values()) == pytest.approx([1 - 2, 1 - 2])
    assert exposure.plan("home", share, 5).least == 0


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=60), st.floats(0, 1), st.floats(0, 1))
def test_a_plan_is_possible_and_debts_are_bounded(slates, one, other):
    least, most = sorted((one, other))
    share, exposure = Share("r", least, most, 100), Exposure()
    for k, placed in slates:
        plan = exposure.plan("p", share, k)
        assert 0 <= plan.least <= plan.most <= k
        exposure.settle("p", share, k, plan, min(placed, k))
        assert all(abs(account) <= CREDIT * 100 * 20 + 1 for account in exposure.accounts.values())


def test_accounts_of_rules_that_are_gone_are_forgotten():
    exposure = Exposure()
    exposure.plan("home", Share("a", 0.2, 0.5, 100), 10)
    exposure.plan("home", Share("b", 0.2, None, 100), 10)
    exposure.keep([("home", Share("b", 0.2, None, 100))])
    assert list(exposure.accounts) == ["home\0b\0least"]


def test_a_step_that_fails_leaves_no_trace():
    exposure = Exposure({"home\0a\0least": 0.5})
    copy = exposure.copy()
    copy.plan("home", Share("a", 0.2, None, 100), 10)
    assert exposure.accounts == {"home\0a\0least": 0.5}
