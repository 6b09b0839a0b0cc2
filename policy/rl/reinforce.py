"""Top-K off-policy REINFORCE (Chen et al. 2019, arXiv 1812.02353) from logged propensities."""

from __future__ import annotations

from math import e
from typing import Any

import numpy as np

from headrace.policy.base import F32, Query
from headrace.policy.rl import network
from headrace.policy.rl.following import Following
from headrace.policy.slates import Choice, Softmax

_OTHERS = 8  # items of other steps that stand for the candidates of a slate of one


class Reinforce(Following):
    """π(a | s) = exp f(s, a) / Σ exp f(s, ·), which is also how slates are drawn: its propensities are its own.

    R is an item's reward and the discounted value of what followed; V(s), the mean R of a slate, is its baseline.
    """

    name = "reinforce"
    mean_later = True

    def __init__(self, *, rl_slate: int = 10, largest_weight: float = e**3, **following: Any) -> None:
        """`rl_slate` is K, `largest_weight` the cap c on π/β."""
        super().__init__(**following)
        self._slate, self._largest = rl_slate, largest_weight

    def _errors(self, training: Any, networks: Any, batch: Any) -> tuple[Any, Any]:
        loss: tuple[Any, Any] = training.reinforce_errors(
            networks, batch, size=self._slate, largest_weight=self._largest, others=_OTHERS
        )
        return loss

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.empty(query.mask.shape, np.float32)
        for rows, prepared in self._features.chunks(query):
            scores[rows] = network.advantages(self._networks["q"], prepared)
        return scores, Softmax(scores, query.mask)
