"""Which items follow an item, and how strongly: the decayed weights of one kind of pair, at most `cap` an item."""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F32, F64, I64, U64, Arrays
from headrace.policy.keys import grown

_SHRINK = 5.0  # a pair seen once after an item seen once is no certainty: weight / (total + this)


class Pairs:
    """Rows are items of a KeyIndex. What a row holds depends on its own events and on keys, not on row numbers."""

    def __init__(self, *, cap: int, half_life_ms: int) -> None:
        self.cap, self._half_life = cap, half_life_ms
        self.neighbours = np.zeros((0, cap), np.int32)  # rows of the index, -1 where free; the free places are the last
        self.weights = np.zeros((0, cap), np.float32)
        self.totals = np.zeros(0)  # of all pairs ever, also those not held
        self.times = np.zeros(0, np.int64)  # ms: weights and totals are as of then; 0 for a row without pairs

    def grow(self, rows: int) -> None:
        self.neighbours = grown(self.neighbours, rows, fill=-1)
        self.weights = grown(self.weights, rows)
        self.totals = grown(self.totals, rows)
        self.times = grown(self.times, rows)

    def learn(self, of: I64, next_: I64, weights: F64, times: I64, keys: U64) -> None:
        """Pairs (P,): rows `of` and `next_`, and their weights as of `times`. `keys` are the index's, by row."""
        rows, inverse = np.unique(of, return_inverse=True)
        latest = self.times[rows]
        np.maximum.at(latest, inverse, times)
        decay = np.exp2((self.times[rows] - latest) / self._half_life)
        self.weights[rows] *= decay[:, None].astype(np.float32)
        self.totals[rows] *= decay
        self.times[rows] = latest
        weights = weights * np.exp2((times - latest[inverse]) / self._half_life)
        np.add.at(self.totals, of, weights)

        codes, inverse = np.unique(of * len(keys) + next_, return_inverse=True)
        sums = np.bincount(inverse, weights).astype(np.float32)
        of, next_ = np.divmod(codes, len(keys))
        same = self.neighbours[of] == next_[:, None]  # (P, cap)
        held = same.any(axis=1)
        self.weights[of[held], same[held].argmax(axis=1)] += sums[held]
        self._insert(of[~held], next_[~held], sums[~held], keys)

    def _insert(self, of: I64, next_: I64, weights: F32, keys: U64) -> None:
        """Takes in new neighbours; a row that would hold more than `cap` keeps the heaviest, ties by key."""
        order = np.lexsort((keys[next_], of))
        of, next_, weights = of[order], next_[order], weights[order]
        start = np.searchsorted(of, of)  # first place of each row's group
        place = (self.neighbours[of] >= 0).sum(axis=1) + np.arange(len(of)) - start
        fits = place < self.cap
        self.neighbours[of[fits], place[fits]] = next_[fits]
        self.weights[of[fits], place[fits]] = weights[fits]
        if fits.all():
            return
        full = np.unique(of[~fits])
        of = np.concatenate([np.repeat(full, self.cap), of[~fits]])
        next_ = np.concatenate([self.neighbours[full].ravel().astype(np.int64), next_[~fits]])
        weights = np.concatenate([self.weights[full].ravel(), weights[~fits]])
        order = np.lexsort((keys[next_], -weights, of))
        rank = np.arange(len(of)) - np.searchsorted(of[order], of[order])
        kept = order[rank < self.cap]
        self.neighbours[full] = next_[kept].reshape(-1, self.cap)
        self.weights[full] = weights[kept].reshape(-1, self.cap)

    def shares(self, rows: I64) -> F32:
        """How likely each neighbour is to follow, in [0, 1): weight / (total + 5), (..., cap). A row of -1 has none."""
        shares = self.weights[rows] / (self.totals[rows] + _SHRINK).astype(np.float32)[..., None]
        shares[rows < 0] = 0
        return shares

    def arrays(self, rows: I64, keys: U64, name: str) -> Arrays:
        """What is held of the rows, neighbours by key."""
        held = self.neighbours[rows] >= 0
        return {
            f"{name}.counts": held.sum(axis=1, dtype=np.int32),
            f"{name}.neighbours": keys[self.neighbours[rows][held]],
            f"{name}.weights": self.weights[rows][held],
            f"{name}.totals": self.totals[rows],
            f"{name}.times": self.times[rows],
        }

    def clear(self, rows: I64) -> None:
        self.neighbours[rows] = -1
        self.weights[rows], self.totals[rows], self.times[rows] = 0, 0, 0

    def restore(self, rows: I64, neighbours: I64, arrays: Arrays, name: str) -> None:
        """Sets cleared rows to what `arrays` saw; `neighbours` are the saved keys' rows."""
        held = np.arange(self.cap) < arrays[f"{name}.counts"][:, None]
        of, place = np.nonzero(held)
        self.neighbours[rows[of], place] = neighbours
        self.weights[rows[of], place] = arrays[f"{name}.weights"]
        self.totals[rows], self.times[rows] = arrays[f"{name}.totals"], arrays[f"{name}.times"]
