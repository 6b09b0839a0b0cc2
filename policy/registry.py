"""Policies by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.policy.actor import Actor
from headrace.policy.base import Policy
from headrace.policy.baselines import ItemToItem, Popular, Random
from headrace.policy.features import SCALARS
from headrace.policy.linear import EpsilonGreedyPolicy, LinTS, LinUCB, SoftmaxPolicy, SquareCB
from headrace.policy.names import LEARNED, POLICIES
from headrace.policy.neural_linear import NeuralLinear
from headrace.policy.options import Options

__all__ = ["LEARNED", "POLICIES", "make"]


def make(name: str, *, dim: int, scalars: Sequence[str] = SCALARS, contexts: int = 0, **options: Any) -> Policy:
    """A new policy that has learned nothing.

    `dim` d of states and items, `scalars` the names of the scalar columns, `contexts` c; `options` are fields of
    `options.Options`. Raises ValueError for an unknown name or a value out of range.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICIES)}")
    o = Options(**options)
    shape: dict[str, Any] = {"dim": dim, "scalars": scalars, "contexts": contexts, "floor": o.floor}
    if name == "random":
        return Random(**shape)
    if name == "popular":
        return Popular(**shape)
    if name == "item_to_item":
        return ItemToItem(**shape)
    if name == "actor":
        return Actor(**shape)
    if name == "neural_linear":
        if o.discount < 1 or o.change_detector:
            raise ValueError(
                "neural_linear has neither discount nor change_detector, as it trains on its memory again: choose a"
                " linear policy, or leave both off"
            )
        return NeuralLinear(alpha=o.alpha, ridge=o.ridge, draws=o.draws, seed=o.seed, outer=o.outer, **shape)
    shape |= {"ridge": o.ridge, "discount": o.discount, "change_detector": o.change_detector, "outer": o.outer}
    if name == "epsilon_greedy":
        return EpsilonGreedyPolicy(epsilon=o.epsilon, **shape)
    if name == "softmax":
        return SoftmaxPolicy(temperature=o.temperature, **shape)
    if name == "squarecb":
        return SquareCB(gamma_scale=o.gamma_scale, gamma_exponent=o.gamma_exponent, **shape)
    if name == "linucb":
        return LinUCB(alpha=o.alpha, **shape)
    return LinTS(alpha=o.alpha, draws=o.draws, seed=o.seed, **shape)
