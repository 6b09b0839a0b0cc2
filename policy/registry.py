"""Policies by name."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.policy.base import Policy
from headrace.policy.baselines import ItemToItem, Popular, Random
from headrace.policy.features import SCALARS
from headrace.policy.linear import LinTS, LinUCB
from headrace.policy.neural_linear import NeuralLinear

POLICIES = ("random", "popular", "item_to_item", "linucb", "lints", "neural_linear")


def make(
    name: str,
    *,
    dim: int,
    scalars: Sequence[str] = SCALARS,
    contexts: int = 0,
    floor: float = 0.1,
    alpha: float = 0.5,
    draws: int = 32,
    ridge: float = 1.0,
    seed: int = 0,
) -> Policy:
    """A new policy that has learned nothing.

    `dim` d of states and items, `scalars` the names of the scalar columns, `contexts` c. `floor` is the share of every
    position that is spread evenly, `alpha` LinUCB's width and Thompson sampling's scale (in neural_linear a multiple of
    the noise that it estimates itself), `draws` the posterior draws that vote, `ridge` the prior's precision.
    Raises ValueError for an unknown name or a value out of range.
    """
    if draws < 1 or not 0 <= alpha < float("inf") or seed < 0:
        raise ValueError("draws must be at least 1, alpha finite, alpha and seed at least 0")
    if name == "random":
        return Random(dim=dim, scalars=scalars, contexts=contexts, floor=floor)
    if name == "popular":
        return Popular(dim=dim, scalars=scalars, contexts=contexts, floor=floor)
    if name == "item_to_item":
        return ItemToItem(dim=dim, scalars=scalars, contexts=contexts, floor=floor)
    if name == "linucb":
        return LinUCB(dim=dim, scalars=scalars, contexts=contexts, floor=floor, alpha=alpha, ridge=ridge)
    if name not in ("lints", "neural_linear"):
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICIES)}")
    sampled: type[LinTS] | type[NeuralLinear] = LinTS if name == "lints" else NeuralLinear
    return sampled(
        dim=dim, scalars=scalars, contexts=contexts, floor=floor, alpha=alpha, ridge=ridge, draws=draws, seed=seed
    )
