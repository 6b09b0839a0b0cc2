"""Every policy passes every check of the contract."""

from __future__ import annotations

from copy import deepcopy

import pytest

from headrace.policy import checks
from headrace.policy.base import Policy
from headrace.policy.neural_linear import NeuralLinear
from headrace.policy.registry import POLICIES, make

_POLICIES = {
    **{name: make(name, dim=12, contexts=0) for name in POLICIES},
    **{f"{name}, contexts": make(name, dim=12, contexts=3, alpha=0.2) for name in ("squarecb", "linucb", "lints")},
    "lints, optimistic": make("lints", dim=12, contexts=3, alpha=0.2, optimistic=True),
    # So small that the trunk is trained and the memory overwritten several times within a check.
    "neural_linear, trained": NeuralLinear(
        dim=12, contexts=3, alpha=0.2, memory=200, first_training=100, train_every=150, steps=8
    ),
}
_LINEAR = ("epsilon_greedy", "softmax", "squarecb", "linucb", "lints")
for _name in _LINEAR:
    _POLICIES[f"{_name}, fading"] = make(
        _name, dim=6, contexts=2, alpha=0.2, discount=0.999, change_detector=True, outer=True
    )
    _POLICIES[f"{_name}, discount"] = make(_name, dim=6, contexts=2, alpha=0.2, discount=0.999)
    _POLICIES[f"{_name}, change detector"] = make(_name, dim=6, contexts=2, alpha=0.2, change_detector=True)
_CHECKS = [
    pytest.param(policy, check, id=f"{name}: {check.__name__}")
    for name, policy in _POLICIES.items()
    for check in checks.yield_checks(policy)
]


@pytest.mark.parametrize(("policy", "check"), _CHECKS)
def test_contract(policy: Policy, check: checks.Check) -> None:
    check(deepcopy(policy))


def test_every_policy_is_known_by_its_name() -> None:
    for name in POLICIES:
        assert make(name, dim=4).name == name


def test_unknown_policy_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown policy 'linusb'; choose one of random, popular"):
        make("linusb", dim=4)
    with pytest.raises(ValueError, match="floor is 0"):
        make("random", dim=4, floor=0)
    with pytest.raises(ValueError, match="ridge is -1"):
        make("lints", dim=4, ridge=-1)
    with pytest.raises(ValueError, match="draws"):
        make("lints", dim=4, draws=0)
    with pytest.raises(ValueError, match="'co_buy'"):
        make("item_to_item", dim=4, scalars=("popularity",))


def test_a_broken_policy_is_caught() -> None:
    """The suite would notice: a policy that logs another propensity than it draws from."""

    class Lying(type(make("popular", dim=12))):  # type: ignore[misc]
        def decide(self, query, k):  # type: ignore[no-untyped-def]
            slates = super().decide(query, k)
            slates.propensities[:] = slates.propensities**2
            return slates

    with pytest.raises(AssertionError, match="another propensity"):
        checks.check_rescoring_gives_the_logged_propensities(Lying(dim=12))
