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
from headrace.policy.rl.dqn import DQN
from headrace.policy.rl.reinforce import Reinforce
from headrace.policy.rl.slateq import SlateQ

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
    if name in ("dqn", "slateq", "reinforce"):
        return _follower(name, o, shape)
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
    return LinTS(alpha=o.alpha, draws=o.draws, optimistic=o.optimistic, seed=o.seed, **shape)


def _follower(name: str, o: Options, shape: dict[str, Any]) -> Policy:
    """One that learns from what follows a slate."""
    following = shape | {
        "rl_discount": o.rl_discount, "rl_horizon_s": o.rl_horizon_s, "rl_n_step": o.rl_n_step,
        "rl_hidden": o.rl_hidden, "rl_rate": o.rl_rate, "rl_train_every": o.rl_train_every,
        "rl_replay": o.rl_replay, "rl_priority": o.rl_priority, "seed": o.seed,
    }  # fmt: skip
    if name == "dqn":
        return DQN(rl_conservative=o.rl_conservative, **following)
    if name == "slateq":
        return SlateQ(rl_slate=o.rl_slate, **following)
    return Reinforce(rl_slate=o.rl_slate, largest_weight=o.largest_weight, **following)
