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

_FEW = 4
_AT_ONCE = 64  # decisions whose products are formed together


class Variants:
    """Scores w·φ of B decisions' items in h states each, without forming φ."""

    def __init__(self, features: FeatureMap, shown: Query, states: F32, scalars: F32) -> None:
        """`shown` holds items (B, k, d); `states` (B, h, d), `scalars` (B, h, k, m)."""
        self._features = features
        batch, h, _ = states.shape
        k = shown.items.shape[1]
        self.shape = (batch, h, k)
        self.unit = unit(states)
        self._contexts, self._items = shown.contexts, shown.items
        self._signals = np.empty((batch, features.signals, h * k), np.float32)
        similarity = np.matmul(self.unit, shown.items.transpose(0, 2, 1)).reshape(batch, -1)
        features.fill_signals(self._signals.transpose(0, 2, 1), scalars.reshape(batch, h * k, -1), similarity)

    def scores(self, weights: F32, of_state: F32 | None = None) -> F32:
        """Weight vectors (M, D) → (B, h, k, M); with `of_state` (B, h, M), what the states alone add."""
        f, blocks, m = self._features, self._features.blocks, len(weights)
        batch, h, k = self.shape
        of_item = np.broadcast_to(weights[:, blocks["item"]], (batch, m, f.dim))
        if f.outer:
            outer = weights[:, blocks["outer"]].reshape(m, f.contexts, f.dim).transpose(1, 0, 2)
            of_item = of_item + by_row(self._contexts, outer.reshape(f.contexts, -1)).reshape(-1, m, f.dim)
        always = np.matmul(self._items, of_item.transpose(0, 2, 1))
        always += (weights[:, blocks["one"]] + weights[:, blocks["place"]])[:, 0]
        if f.contexts and not f.outer:
            always += by_row(self._contexts, np.ascontiguousarray(weights[:, blocks["context"]].T))[:, None]
        scores = self._of_taste(weights[:, blocks["taste"]] * f.root)
        scores += np.matmul(self._signals.transpose(0, 2, 1), self._of_signals(weights))
        varied: F32 = scores.reshape(batch, h, k, m)
        varied += always[:, None] if of_state is None else always[:, None] + of_state[:, :, None]
        return varied

    def _of_taste(self, weights: F32) -> F32:
        """Σ w s ⊙ a for weights (M, d): (B, h · k, M). A few weigh the items; for many, all s ⊙ a are formed."""
        batch, h, k = self.shape
        if len(weights) < _FEW:
            weighed = [np.matmul(self.unit, (self._items * w).transpose(0, 2, 1)).reshape(batch, -1) for w in weights]
            return np.stack(weighed, axis=2)
        taste = self.unit[:, :, None, :] * self._items[:, None]
        found: F32 = np.matmul(taste.reshape(batch, h * k, -1), np.ascontiguousarray(weights.T))
        return found

    def _of_signals(self, weights: F32) -> F32:
        """What signals weigh in each decision (B, S, M), or in all (S, M)."""
        f, m = self._features, len(weights)
        own = np.ascontiguousarray(weights[:, f.blocks["signals"]].T)
        if not f.contexts:
            return own
        crossed = weights[:, f.blocks["context_signals"]].reshape(m, f.contexts, -1).transpose(1, 2, 0)
        folded = by_row(self._contexts, crossed.reshape(f.contexts, -1))
        of_signals = np.repeat(own[None], len(folded), axis=0)
        of_signals[:, f.with_context] += folded.reshape(len(folded), -1, m)
        return of_signals


def chunks(features: FeatureMap, shown: Query, states: F32, scalars: F32) -> Iterator[tuple[slice, Variants]]:
    """A few decisions at a time."""
    for start in range(0, len(states), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        yield rows, Variants(features, shown.take(rows), states[rows], scalars[rows])
