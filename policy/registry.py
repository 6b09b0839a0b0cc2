"""Policies by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.policy.actor import Actor
from headrace.policy.base import Policy
from headrace.policy.baselines import ItemToItem, Popular, Random
from headrace.policy.features import SCALARS
from headrace.policy.linear import LinTS, LinUCB
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
    if name == "linucb":
        return LinUCB(alpha=o.alpha, ridge=o.ridge, **shape)
    sampled: type[LinTS] | type[NeuralLinear] = LinTS if name == "lints" else NeuralLinear
    return sampled(alpha=o.alpha, ridge=o.ridge, draws=o.draws, seed=o.seed, **shape)
