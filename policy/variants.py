"""Decisions as they might have been: the same items scored again in other states, with other scalars.

What belongs to an item stays as it is, so only what depends on the state is multiplied again. Each decision is a
product of its own, always of the same shape: who is in the batch cannot change a bit of a score.

B = decisions, h = variants of each, k = items, M = weight vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headrace.policy.base import F32, Query
from headrace.policy.features import FeatureMap, by_row, unit

_AT_ONCE = 16  # decisions whose products stay in the cache


class Variants:
    """Scores w·φ of B decisions' items in h states each, without forming φ."""

    def __init__(self, features: FeatureMap, shown: Query, states: F32, scalars: F32) -> None:
        """`shown` holds items (B, k, d); `states` (B, h, d), `scalars` (B, h, k, m)."""
        self._features = features
        batch, h, d = states.shape
        k = shown.items.shape[1]
        self.shape = (batch, h, k)
        self.unit = unit(states)
        self._contexts = shown.contexts
        self._items = np.ascontiguousarray(shown.items.transpose(0, 2, 1))
        self._taste = np.empty((batch, d, h * k), np.float32)
        by_state = self.unit.transpose(0, 2, 1)[..., None] * features.root
        np.multiply(by_state, self._items[:, :, None, :], out=self._taste.reshape(batch, d, h, k))
        self._signals = np.empty((batch, features.signals, h * k), np.float32)
        similarity = np.matmul(self.unit, self._items).reshape(batch, -1)
        features.fill_signals(self._signals.transpose(0, 2, 1), scalars.reshape(batch, h * k, -1), similarity)

    def scores(self, weights: F32) -> F32:
        """Weight vectors (M, D) → (B, M, h, k)."""
        f, blocks, m = self._features, self._features.blocks, len(weights)
        batch, h, k = self.shape
        of_item = np.broadcast_to(weights[:, blocks["item"]], (batch, m, f.dim))
        constant = np.broadcast_to(weights[:, blocks["one"]][:, 0] + weights[:, blocks["place"]][:, 0], (batch, m))
        of_signals = np.broadcast_to(weights[:, blocks["signals"]], (batch, m, f.signals))
        if f.contexts:
            crossed = weights[:, blocks["context_signals"]].reshape(m, f.contexts, -1).transpose(1, 0, 2)
            of_signals = of_signals.copy()
            folded = by_row(self._contexts, crossed.reshape(f.contexts, -1))
            of_signals[:, :, f.with_context] += folded.reshape(batch, m, -1)
            if not f.outer:
                constant = constant + by_row(self._contexts, np.ascontiguousarray(weights[:, blocks["context"]].T))
        if f.outer:
            outer = weights[:, blocks["outer"]].reshape(m, f.contexts, f.dim).transpose(1, 0, 2)
            of_item = of_item + by_row(self._contexts, outer.reshape(f.contexts, -1)).reshape(-1, m, f.dim)
        scores = np.matmul(np.ascontiguousarray(weights[:, blocks["taste"]]), self._taste)
        scores += np.matmul(of_signals, self._signals)
        varied: F32 = scores.reshape(batch, m, h, k)
        varied += (np.matmul(of_item, self._items) + constant[:, :, None])[:, :, None, :]
        return varied


def chunks(features: FeatureMap, shown: Query, states: F32, scalars: F32) -> Iterator[tuple[slice, Variants]]:
    """A few decisions at a time."""
    for start in range(0, len(states), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        yield rows, Variants(features, shown.take(rows), states[rows], scalars[rows])
