"""Policies that learn nothing themselves: honest controls. They read score columns of `features.SCALARS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.policy.base import F32, Query
from headrace.policy.ranking import Ranking
from headrace.policy.slates import Choice, Greedy, Softmax


class Random(Ranking):
    """Every candidate left is equally likely."""

    name = "random"
    learns = False

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.zeros(query.mask.shape, np.float32)
        return scores, Softmax(scores, query.mask)


class _Columns(Ranking):
    """Greedy on a weighted sum of score columns."""

    learns = False
    weights: dict[str, float]

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self._weights = _column_weights(self.weights, self.scalars, self.name)

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        scores = np.zeros(query.mask.shape, np.float32)
        for column, weight in self._weights:
            scores += query.scalars[:, :, column] * weight
        return scores, Greedy(scores, query.mask)

    def lowered(self, shown: Query, scores: F32, states: F32, scalars: F32) -> F32:
        lower = np.zeros(scalars.shape[:3], np.float32)
        for column, weight in self._weights:
            lower += (shown.scalars[:, None, :, column] - scalars[..., column]) * weight
        return lower


class Popular(_Columns):
    """What most do, whoever asks."""

    name = "popular"
    weights = {"popularity": 1.0}  # noqa: RUF012


class ItemToItem(_Columns):
    """Also bought, also viewed; what is popular decides among the rest."""

    name = "item_to_item"
    weights = {"co_buy": 1.0, "co_view": 1.0, "popularity": 0.01}  # noqa: RUF012


def _column_weights(weights: dict[str, float], scalars: Sequence[str], name: str) -> list[tuple[int, np.float32]]:
    missing = sorted(set(weights) - set(scalars))
    if missing:
        raise ValueError(f"{name} reads the scalar {missing[0]!r}: pass it in `scalars`")
    return [(scalars.index(column), np.float32(weight)) for column, weight in weights.items()]
