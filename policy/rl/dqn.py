"""Deep Q-learning over single items: double, dueling, n-step, prioritised, conservative where asked."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.policy.base import F32, Query
from headrace.policy.rl import network
from headrace.policy.rl.following import Following
from headrace.policy.slates import Choice, Greedy

_OTHERS = 8  # items of other steps that stand for what was not shown


class DQN(Following):
    """Greedy on Q(s, a) = V(s) + A(s, a); the floor is its ε, so propensities are exact.

    Each position shown is an action of its own: its reward is its own, what follows is the slate's. For slates of
    which one item at most is consumed, SlateQ is exact where this is an approximation.
    """

    name = "dqn"

    def __init__(self, *, rl_conservative: float = 0.0, **following: Any) -> None:
        super().__init__(**following)
        self._conservative = rl_conservative

    def _errors(self, training: Any, networks: Any, batch: Any) -> tuple[Any, Any]:
        loss: tuple[Any, Any] = training.dqn_errors(networks, batch, conservative=self._conservative, others=_OTHERS)
        return loss

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.empty(query.mask.shape, np.float32)
        served = self._networks["q"]
        for rows, prepared in self._features.chunks(query):
            scores[rows] = network.advantages(served, prepared) + network.values(served, prepared)[:, None]
        scores *= np.float32(self._scale or 1.0)
        return scores, Greedy(scores, query.mask)
