"""Kinds of π with a formula for every probability: ε-greedy and inverse gap weighting. See slates.Choice."""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F32, F64, I64, Bool
from headrace.policy.few import EpsilonGreedyRow, InverseGapRow, RowChoice
from headrace.policy.left import Left
from headrace.policy.slates import Greedy, boosted


class EpsilonGreedy:
    """1 - ε on the largest score, ties to the lowest index, and ε evenly over all that are left, the best included."""

    def __init__(self, scores: F32, mask: Bool, *, epsilon: float) -> None:
        self._greedy, self._mask, self._epsilon = Greedy(scores, mask), mask, epsilon
        self._left = Left(mask)

    def pick(self, u: F64) -> I64:
        n_left = np.maximum(self._left.count, 1)
        rank = np.maximum((u - (1 - self._epsilon)) / (self._epsilon or 1.0) * n_left, 0)  # with ε = 0 never used
        even = self._left.nth(np.minimum(rank, n_left - 1).astype(np.int64))
        return np.where(u < 1 - self._epsilon, self._greedy.first(), even)

    def probability(self, index: I64) -> F64:
        greedy = (1 - self._epsilon) * self._greedy.probability(index)
        probability: F64 = greedy + self._epsilon / np.maximum(self._left.count, 1)
        return probability

    def first(self) -> I64:
        return self._greedy.first()

    def distribution(self) -> F64:
        even = self._epsilon / np.maximum(self._left.count, 1)
        pi: F64 = (1 - self._epsilon) * self._greedy.distribution() + even[:, None] * self._left.there()
        return pi

    def remove(self, rows: I64, gone: I64) -> None:
        self._greedy.remove(rows, gone)
        self._left.remove(rows, gone)

    def boost(self, factors: F32) -> None:
        self._greedy.boost(factors)

    def lower(self, by: F32) -> None:
        self._greedy.lower(by)

    def drop(self, gone: Bool) -> None:
        self._greedy.drop(gone)
        self._left.drop(gone)

    def by_row(self) -> list[RowChoice] | None:
        rows = zip(self._greedy.rows(), self._mask, strict=True)
        return [EpsilonGreedyRow(greedy, mask, self._epsilon) for greedy, mask in rows]


class InverseGap:
    """SquareCB's π(a) = 1 / (K + γ (f* - f_a)), the rest on the best (Foster & Rakhlin 2020, arXiv 2002.04926, alg. 1).

    K candidates are left, f* is the largest score among them, ties to the lowest index.
    """

    def __init__(self, scores: F32, mask: Bool, *, gamma: float) -> None:
        """Raises ValueError unless γ > 0."""
        if not (np.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma is {gamma}: choose one above 0")
        self._scores: F64 = np.where(mask, scores.astype(np.float64), -np.inf)  # (B, n)
        self._gamma, self._rows = gamma, np.arange(len(mask))
        self._weigh()

    def _weigh(self) -> None:
        self._k = np.maximum((self._scores > -np.inf).sum(axis=1), 1)
        self._best: I64 = self._scores.argmax(axis=1)
        largest = self._scores[self._rows, self._best]
        # What is not there has an infinite gap, hence no chance.
        self._others: F64 = np.where(largest > -np.inf, largest, 0.0)[:, None] - self._scores
        self._others *= self._gamma
        self._others += self._k[:, None]
        np.reciprocal(self._others, out=self._others)
        self._others[self._rows, self._best] = 0.0
        self._cdf: F64 = self._others.cumsum(axis=1)  # a running sum: see Softmax
        # 1 / K at least: what rounding takes must not make another candidate the most probable one.
        self._of_best = np.maximum(1 - self._cdf[:, -1], 1 / self._k)

    def pick(self, u: F64) -> I64:
        """First the others, in their order, then the best."""
        below = (self._cdf <= u[:, None]).sum(axis=1)
        return np.where(below < self._cdf.shape[1], below, self._best)

    def probability(self, index: I64) -> F64:
        return np.where(index == self._best, self._of_best, self._others[self._rows, index])

    def first(self) -> I64:
        return self._best

    def distribution(self) -> F64:
        pi = self._others.copy()
        pi[self._rows, self._best] = self._of_best
        return pi

    def remove(self, rows: I64, gone: I64) -> None:
        self._scores[rows, gone] = -np.inf
        self._weigh()

    def boost(self, factors: F32) -> None:
        self._scores = boosted(self._scores, factors.astype(np.float64))
        self._weigh()

    def lower(self, by: F32) -> None:
        self._scores -= by
        self._weigh()

    def drop(self, gone: Bool) -> None:
        self._scores[gone] = -np.inf
        self._weigh()

    def by_row(self) -> list[RowChoice] | None:
        return [InverseGapRow(scores, self._gamma) for scores in self._scores]
