"""SlateQ: a slate's long-term value out of its items' (Ie et al. 2019, arXiv 1905.12767)."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.policy.base import F32, F64, Bool, Query
from headrace.policy.rl import network
from headrace.policy.rl.following import Following
from headrace.policy.slates import Choice, Greedy

_LOGITS = 15.0  # beyond this a choice is certain
_ROUNDS = 6


class SlateQ(Following):
    """Q(s, A) = Σ_i P(i | s, A) Q(s, i), the null item among the i; the floor is its ε, so propensities are exact.

    P(i | s, A) = v_i / (1 + Σ_A v) is learned from what was consumed. A slate is served greedily by v_i (Q_i - λ): with
    λ the best slate's value that is the best slate itself (see `best_value`); with λ = 0 it is the paper's top-k.
    """

    name = "slateq"
    networks = ("q", "q_label", "choice")

    def __init__(self, *, rl_slate: int = 10, null_value: bool = True, optimal: bool = True, **following: Any) -> None:
        """`rl_slate` is the number of items a slate is optimised for.

        `null_value` False takes Q(s, ⊥) for 0 and `optimal` False serves by v·Q, both as published.
        """
        super().__init__(**following)
        self._slate, self._null_value, self._optimal = rl_slate, null_value, optimal

    def _errors(self, training: Any, networks: Any, batch: Any) -> tuple[Any, Any]:
        loss: tuple[Any, Any] = training.slateq_errors(networks, batch, size=self._slate, null_value=self._null_value)
        return loss

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.empty(query.mask.shape, np.float32)
        served, choice = self._networks["q"], self._networks["choice"]
        for rows, prepared in self._features.chunks(query):
            of_state = network.values(served, prepared)
            q = network.advantages(served, prepared) + of_state[:, None]
            logits = network.advantages(choice, prepared) + network.values(choice, prepared)[:, None]
            v = np.exp(np.clip(logits, -_LOGITS, _LOGITS))
            null = of_state if self._null_value else np.zeros_like(of_state)
            worth = np.float32(0)
            if self._optimal:
                best = best_value(v, q, null, query.mask[rows], self._slate)
                worth = best.astype(np.float32)[:, None]  # type: ignore[assignment]
            scores[rows] = v * (q - worth)
        scores *= np.float32(self._scale or 1.0)
        return scores, Greedy(scores, query.mask)


def best_value(v: F32, q: F32, null: F32, mask: Bool, size: int) -> F64:
    """λ = max over slates A of `size` items of (q_⊥ + Σ_A v q) / (1 + Σ_A v), a row (B,).

    v, q and mask (B, n), null (B,) is q_⊥. A ratio's maximum by Dinkelbach 1967 (Management Science 13): at the best λ
    the best slate is the top of v (q - λ); each round takes that top's value as the next λ. The paper solves the same
    problem as a linear program (section 5).
    """
    masses = np.where(mask, v, 0.0).astype(np.float64)
    values = np.where(mask, q, 0.0).astype(np.float64)
    worth = null.astype(np.float64)
    for _ in range(_ROUNDS):
        gains = np.where(mask, masses * (values - worth[:, None]), -np.inf)
        top = np.argsort(-gains, axis=1, kind="stable")[:, :size]
        mass = np.take_along_axis(masses, top, axis=1)
        gained = mass * np.take_along_axis(values, top, axis=1)
        # Running sums: what is masked adds exact zeros, and no batch changes their order.
        worth = (null + gained.cumsum(axis=1)[:, -1]) / (1 + mass.cumsum(axis=1)[:, -1])
    return worth
