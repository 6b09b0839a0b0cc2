"""A few slates in plain Python: the same draws as `slates.sample`, bit for bit, without an array call a position.

A stream of single events brings a handful of decisions at a time, and an array call costs the same for one as for a
hundred. tests/policy/test_few.py holds the two against each other.
"""

from __future__ import annotations

from bisect import bisect_left
from math import nextafter
from typing import Protocol

import numpy as np

from headrace.policy.base import F32, F64, Bool, Slates

FEW = 8  # rows up to which this is faster


class RowChoice(Protocol):
    """`slates.Choice` for one row."""

    def pick(self, u: float) -> int: ...
    def probability(self, index: int) -> float: ...
    def first(self) -> int: ...
    def remove(self, gone: int) -> None: ...


class GreedyRow:
    def __init__(self, scores: F32) -> None:
        """`scores` (n,), -inf for what is not there."""
        self._order: list[int] = np.argsort(-scores, kind="stable").tolist()
        self._gone: set[int] = set()
        self._at = 0

    def first(self) -> int:
        while self._at < len(self._order) - 1 and self._order[self._at] in self._gone:
            self._at += 1
        return self._order[self._at]

    def pick(self, u: float) -> int:
        return self.first()

    def probability(self, index: int) -> float:
        return float(index == self.first())

    def remove(self, gone: int) -> None:
        self._gone.add(gone)


class VotesRow:
    def __init__(self, scores: F32, top: list[int]) -> None:
        """`scores` (M, n), used up, and each draw's best candidate."""
        self._scores = scores
        self._top = top
        self._counts: dict[int, int] = {}
        for index in top:
            self._counts[index] = self._counts.get(index, 0) + 1

    def first(self) -> int:
        most = max(self._counts.values())
        return min(index for index, votes in self._counts.items() if votes == most)

    def pick(self, u: float) -> int:
        return self._top[int(u * len(self._top))]

    def probability(self, index: int) -> float:
        return self._counts.get(index, 0) / len(self._top)

    def remove(self, gone: int) -> None:
        self._scores[:, gone] = -np.inf
        if not self._counts.pop(gone, 0):
            return
        # Only the draws that had voted for what is gone vote again.
        again = [draw for draw, index in enumerate(self._top) if index == gone]
        for draw, index in zip(again, self._scores[again].argmax(axis=1).tolist(), strict=True):
            self._top[draw] = index
            self._counts[index] = self._counts.get(index, 0) + 1


class EvenRow:
    """Every candidate left is equally likely."""

    def __init__(self, mask: Bool) -> None:
        self._left: list[int] = np.flatnonzero(mask).tolist()

    def first(self) -> int:
        return self._left[0] if self._left else 0

    def pick(self, u: float) -> int:
        return self._left[min(int(u * len(self._left)), len(self._left) - 1)]

    def probability(self, index: int) -> float:
        return 1.0 / len(self._left)

    def remove(self, gone: int) -> None:
        del self._left[bisect_left(self._left, gone)]


class SoftmaxRow:
    def __init__(self, logits: F64) -> None:
        """`logits` (n,), -inf for what is not there; used up."""
        self._logits = logits
        self._weigh()

    def _weigh(self) -> None:
        largest = self._logits.max()
        self._weights = np.exp(self._logits - (largest if np.isfinite(largest) else 0.0))
        self._cdf = self._weights.cumsum()
        self._total = float(self._cdf[-1])

    def first(self) -> int:
        return int(self._weights.argmax())

    def pick(self, u: float) -> int:
        target = min(u * self._total, nextafter(self._total, 0.0))
        return min(int(self._cdf.searchsorted(target, side="right")), len(self._cdf) - 1)

    def probability(self, index: int) -> float:
        return float(self._weights[index]) / self._total

    def remove(self, gone: int) -> None:
        self._logits[gone] = -np.inf
        self._weigh()


class EpsilonGreedyRow:
    def __init__(self, greedy: GreedyRow, mask: Bool, epsilon: float) -> None:
        self._greedy, self._epsilon = greedy, epsilon
        self._left = LeftRow(mask)

    def first(self) -> int:
        return self._greedy.first()

    def pick(self, u: float) -> int:
        if u < 1 - self._epsilon:
            return self._greedy.first()
        n_left = len(self._left.order)
        return self._left.order[int(min(max((u - (1 - self._epsilon)) / self._epsilon * n_left, 0.0), n_left - 1))]

    def probability(self, index: int) -> float:
        return (1 - self._epsilon) * self._greedy.probability(index) + self._epsilon / len(self._left.order)

    def remove(self, gone: int) -> None:
        self._greedy.remove(gone)
        self._left.remove(gone)


class InverseGapRow:
    def __init__(self, scores: F64, gamma: float) -> None:
        """`scores` (n,), -inf for what is not there; used up."""
        self._scores, self._gamma = scores, gamma
        self._k = max(int(np.isfinite(scores).sum()), 1)
        self._weigh()

    def _weigh(self) -> None:
        self._best = int(self._scores.argmax())
        largest = self._scores[self._best]
        # What is not there has an infinite gap, hence no chance.
        self._others = 1 / (self._k + self._gamma * ((largest if np.isfinite(largest) else 0.0) - self._scores))
        self._others[self._best] = 0.0
        self._cdf = self._others.cumsum()
        self._of_best = max(1 - float(self._cdf[-1]), 1 / self._k)

    def first(self) -> int:
        return self._best

    def pick(self, u: float) -> int:
        below = int(self._cdf.searchsorted(u, side="right"))
        return below if below < len(self._cdf) else self._best

    def probability(self, index: int) -> float:
        return self._of_best if index == self._best else float(self._others[index])

    def remove(self, gone: int) -> None:
        self._scores[gone] = -np.inf
        self._k -= 1
        self._weigh()


class LeftRow:
    """The candidates left, in the order that `left.Left` has them."""

    def __init__(self, mask: Bool) -> None:
        self.order: list[int] = np.flatnonzero(mask).tolist()
        self._place = {candidate: at for at, candidate in enumerate(self.order)}

    def remove(self, gone: int) -> None:
        last = self.order.pop()
        at = self._place.pop(gone)
        if last != gone:
            self.order[at] = last
            self._place[last] = at


def sample_few(rows: list[RowChoice], mask: Bool, scores: F32, k: int, *, floor: float, draws: F64) -> Slates:
    """`slates.sample` for choices a row; `draws` (k, B) are its uniform numbers."""
    index = np.full((len(rows), k), -1, np.int64)
    propensities = np.zeros((len(rows), k))
    explored = np.zeros((len(rows), k), np.bool_)
    for i, choice in enumerate(rows):
        left = LeftRow(mask[i])
        for j, u in enumerate(draws[: len(left.order), i].tolist()):
            n_left = len(left.order)
            if u < 1 - floor:
                chosen = choice.pick(min(u / (1 - floor), _ALMOST_ONE))
            else:
                rank = int(max((u - (1 - floor)) / floor * n_left, 0.0))
                chosen = left.order[min(rank, n_left - 1)]
            index[i, j] = chosen
            propensities[i, j] = (1 - floor) * choice.probability(chosen) + floor / n_left
            explored[i, j] = chosen != choice.first()
            if n_left == 1 or j + 1 == k:
                break
            choice.remove(chosen)
            left.remove(chosen)
    shown = np.where(index >= 0, scores[np.arange(len(rows))[:, None], index], np.float32(0))
    return Slates(index, propensities, shown, explored)


_ALMOST_ONE = float(np.nextafter(1.0, 0.0))
