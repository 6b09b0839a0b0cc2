"""Slates without replacement, each position drawn from an explicit distribution.

At every position, with n_left candidates left and the policy's own distribution π over them,

    P(a) = (1 - floor) · π(a) + floor / n_left

One uniform number a position, inverse CDF: its first 1 - floor is laid out as π, the rest evenly over those left. The
order of the layout has no influence on the distribution, so each kind of π uses the order that is cheapest to invert.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, F64, I64, U64, Bool, Slates
from headrace.policy.few import FEW, EvenRow, GreedyRow, RowChoice, SoftmaxRow, VotesRow, sample_few
from headrace.policy.left import Left

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ALMOST_ONE = np.nextafter(1.0, 0.0)
_TINY = np.finfo(np.float64).tiny


def uniforms(streams: U64, draw: int | I64) -> F64:
    """Draw number `draw` of each stream, in [0, 1): a function of (stream, draw) alone. Shape of `streams`.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) is counter-based: output j mixes seed + (j + 1)·γ. The stream is
    mixed first, so that neighbouring streams do not overlap.
    """
    with np.errstate(over="ignore"):
        bits = _mix(_mix(streams) + np.asarray(draw + 1, np.uint64) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: U64) -> U64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Choice(Protocol):
    """π over the candidates left, one position after another. Of rows that have none left nothing is promised."""

    def pick(self, u: F64) -> I64:
        """The candidate at `u` (B,) of π's inverse CDF (B,)."""
        ...

    def probability(self, index: I64) -> F64:
        """π of one candidate a row (B,)."""
        ...

    def first(self) -> I64:
        """The most probable candidate of each row, ties to the lowest index (B,)."""
        ...

    def distribution(self) -> F64:
        """π as a whole (B, n)."""
        ...

    def remove(self, rows: I64, gone: I64) -> None:
        """Takes candidate `gone[i]` out of row `rows[i]`."""
        ...

    def by_row(self) -> list[RowChoice] | None:
        """Each row as plain Python, before anything is removed; None where whole batches are the only way."""
        ...

    def boost(self, factors: F32) -> None:
        """Multiplies scores above zero by `factors` (B, n) > 0 and divides those below."""
        ...

    def lower(self, by: F32) -> None:
        """Takes `by` (B, n) from the scores."""
        ...

    def drop(self, gone: Bool) -> None:
        """Takes the candidates of `gone` (B, n) out, some of which may be gone already."""
        ...


class Greedy:
    """All of π on the largest score; ties go to the lowest index."""

    def __init__(self, scores: F32, mask: Bool) -> None:
        self._scores: F32 = np.where(mask, scores, np.float32(-np.inf))  # (B, n)
        self._top: I64 = self._scores.argmax(axis=1)

    def pick(self, u: F64) -> I64:
        return self._top

    def probability(self, index: I64) -> F64:
        return np.equal(index, self._top).astype(np.float64)

    def first(self) -> I64:
        return self._top

    def distribution(self) -> F64:
        pi = np.zeros(self._scores.shape)
        pi[np.arange(len(pi)), self._top] = 1.0
        return pi

    def remove(self, rows: I64, gone: I64) -> None:
        self._scores[rows, gone] = -np.inf
        self._top = self._scores.argmax(axis=1)

    def boost(self, factors: F32) -> None:
        self._scores = boosted(self._scores, factors)
        self._top = self._scores.argmax(axis=1)

    def lower(self, by: F32) -> None:
        self._scores -= by
        self._top = self._scores.argmax(axis=1)

    def drop(self, gone: Bool) -> None:
        self._scores[gone] = -np.inf
        self._top = self._scores.argmax(axis=1)

    def by_row(self) -> list[RowChoice] | None:
        return list(self.rows())

    def rows(self) -> list[GreedyRow]:
        return [GreedyRow(scores) for scores in self._scores]


class Votes:
    """Each of M posterior draws votes for its best candidate left: π(a) = votes for a / M.

    This makes Thompson sampling explicit: a draw taken at random and followed greedily chooses exactly so.
    """

    def __init__(self, scores: F32, mask: Bool) -> None:
        """`scores` (B, M, n), contiguous: each draw's score of each candidate. The array is used up."""
        rows, self._draws, self._n = scores.shape
        if not mask.all():
            np.copyto(scores, np.float32(-np.inf), where=~mask[:, None, :])
        self._scores = scores.reshape(-1, self._n)  # (B·M, n)
        self._by_row = scores
        self._start: I64 = np.arange(rows) * self._n
        self._top: I64 = self._scores.argmax(axis=1).reshape(rows, self._draws)  # (B, M)
        flat = (self._top + self._start[:, None]).ravel()
        self._counts: I64 = np.bincount(flat, minlength=rows * self._n)  # (B·n,)

    def pick(self, u: F64) -> I64:
        picked: I64 = self._top[np.arange(len(u)), (u * self._draws).astype(np.int64)]
        return picked

    def probability(self, index: I64) -> F64:
        votes: I64 = self._counts[self._start + index]
        pi: F64 = votes / self._draws
        return pi

    def first(self) -> I64:
        first: I64 = self._counts.reshape(-1, self._n).argmax(axis=1)
        return first

    def distribution(self) -> F64:
        pi: F64 = self._counts.reshape(-1, self._n) / self._draws
        return pi

    def remove(self, rows: I64, gone: I64) -> None:
        self._by_row[rows, :, gone] = -np.inf
        self._counts[self._start[rows] + gone] = 0
        left = np.full(len(self._top), -1)
        left[rows] = gone
        self._vote_again(self._top == left[:, None])

    def boost(self, factors: F32) -> None:
        self._by_row = boosted(self._by_row, factors[:, None, :])
        self._scores = self._by_row.reshape(-1, self._n)
        self._vote()

    def lower(self, by: F32) -> None:
        self._by_row -= by[:, None, :]
        self._vote()

    def _vote(self) -> None:
        """All draws vote again."""
        self._top = self._scores.argmax(axis=1).reshape(self._top.shape)
        flat = (self._top + self._start[:, None]).ravel()
        self._counts = np.bincount(flat, minlength=len(self._counts))

    def drop(self, gone: Bool) -> None:
        flat = np.flatnonzero(gone)
        self._by_row[flat // self._n, :, flat % self._n] = -np.inf
        self._counts[flat] = 0
        self._vote_again(gone.ravel()[self._top + self._start[:, None]])

    def _vote_again(self, voters: Bool) -> None:
        """Of draws (B, M) those whose candidate has gone."""
        again = np.flatnonzero(voters)
        top = self._scores.take(again, axis=0).argmax(axis=1)
        self._top.ravel()[again] = top
        np.add.at(self._counts, self._start[again // self._draws] + top, 1)

    def by_row(self) -> list[RowChoice] | None:
        return [VotesRow(scores, top) for scores, top in zip(self._by_row, self._top.tolist(), strict=True)]


class Softmax:
    """Boltzmann: π(a) = exp(l_a) / Σ exp(l); equal logits make it uniform."""

    def __init__(self, logits: F32, mask: Bool, *, temperature: float = 1.0) -> None:
        """`logits` (B, n) are scores divided by `temperature`."""
        self._temperature = temperature
        self._logits = np.where(mask, logits.astype(np.float64), -np.inf)  # (B, n)
        self._weigh()

    def _weigh(self) -> None:
        largest = self._logits.max(axis=1, keepdims=True)
        self._weights: F64 = np.exp(self._logits - np.where(np.isfinite(largest), largest, 0.0))
        # A running sum adds exact zeros for what is masked: padding cannot change a bit, a pairwise sum's shape could.
        self._cdf: F64 = self._weights.cumsum(axis=1)
        self._total: F64 = np.where(self._cdf[:, -1] > 0, self._cdf[:, -1], 1.0)

    def pick(self, u: F64) -> I64:
        target = np.minimum(u * self._total, np.nextafter(self._total, 0.0))
        below: I64 = (self._cdf <= target[:, None]).sum(axis=1)
        return below.clip(max=self._cdf.shape[1] - 1)

    def probability(self, index: I64) -> F64:
        weights: F64 = self._weights[np.arange(len(index)), index]
        return weights / self._total

    def first(self) -> I64:
        first: I64 = self._weights.argmax(axis=1)
        return first

    def distribution(self) -> F64:
        return self._weights / self._total[:, None]

    def remove(self, rows: I64, gone: I64) -> None:
        self._logits[rows, gone] = -np.inf
        self._weigh()

    def boost(self, factors: F32) -> None:
        self._logits = boosted(self._logits, factors.astype(np.float64))
        self._weigh()

    def lower(self, by: F32) -> None:
        self._logits -= by / self._temperature
        self._weigh()

    def drop(self, gone: Bool) -> None:
        self._logits[gone] = -np.inf
        self._weigh()

    def by_row(self) -> list[RowChoice] | None:
        if ((self._weights == 1) | (self._weights == 0)).all():
            return [EvenRow(weights > 0) for weights in self._weights]
        return [SoftmaxRow(logits) for logits in self._logits]


class Mixture:
    """share · first + (1 - share) · second at every position, given what stands above it."""

    def __init__(self, first: Choice, second: Choice, share: float | F64) -> None:
        """`share` in [0, 1], one for all rows or (B,). Both choices are used up. Raises ValueError for others."""
        self._of_first: F64 = np.asarray(share, np.float64)
        if not ((self._of_first >= 0) & (self._of_first <= 1)).all():
            raise ValueError(f"a mixture's share is {share}: choose one between 0 and 1")
        self._first, self._second = first, second

    def pick(self, u: F64) -> I64:
        share = self._of_first
        first = np.minimum(u / np.maximum(share, _TINY), _ALMOST_ONE)
        second = ((u - share) / np.maximum(1 - share, _TINY)).clip(0.0, _ALMOST_ONE)
        return np.where(u < share, self._first.pick(first), self._second.pick(second))

    def probability(self, index: I64) -> F64:
        share = self._of_first
        probability: F64 = share * self._first.probability(index) + (1 - share) * self._second.probability(index)
        return probability

    def first(self) -> I64:
        first: I64 = self.distribution().argmax(axis=1)
        return first

    def distribution(self) -> F64:
        share = self._of_first[..., None]
        pi: F64 = share * self._first.distribution() + (1 - share) * self._second.distribution()
        return pi

    def remove(self, rows: I64, gone: I64) -> None:
        self._first.remove(rows, gone)
        self._second.remove(rows, gone)

    def boost(self, factors: F32) -> None:
        self._first.boost(factors)
        self._second.boost(factors)

    def lower(self, by: F32) -> None:
        self._first.lower(by)
        self._second.lower(by)

    def drop(self, gone: Bool) -> None:
        self._first.drop(gone)
        self._second.drop(gone)

    def by_row(self) -> list[RowChoice] | None:
        return None


def boosted(scores: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """Scores above zero times their factor, those below divided by it; `factors` broadcast to the scores' shape."""
    # The larger of product and quotient for factors from 1 on, the smaller one for those below: without a branch.
    signs = np.where(factors < 1, -1, 1).astype(factors.dtype)
    signed = factors * signs
    raised: NDArray[Any] = scores * signed
    np.maximum(raised, scores / signed, out=raised)
    raised *= signs
    return raised


def sample(choice: Choice, mask: Bool, scores: F32, k: int, *, floor: float, streams: U64) -> Slates:
    """Draws k positions a row. Uses the choice up.

    `mask` (B, n) and `scores` (B, n) are those of the candidates; draw j of a row's stream decides its position j.
    """
    draws = uniforms(streams[None, :], np.arange(k)[:, None])
    if len(mask) <= FEW and (few := choice.by_row()) is not None:
        return sample_few(few, mask, scores, k, floor=floor, draws=draws)
    rows = np.arange(len(mask))
    left = Left(mask)
    index = np.full((len(mask), k), -1, np.int64)
    propensities = np.zeros((len(mask), k))
    explored = np.zeros((len(mask), k), np.bool_)
    for j in range(min(k, int(left.count.max(initial=0)))):
        alive = rows[left.count[rows] > 0]
        n_left = np.maximum(left.count, 1)
        u = draws[j]
        by_policy = choice.pick(np.minimum(u / (1 - floor), _ALMOST_ONE))
        rank = np.maximum((u - (1 - floor)) / floor * n_left, 0).astype(np.int64)
        chosen = np.where(u < 1 - floor, by_policy, left.nth(np.minimum(rank, n_left - 1)))
        index[alive, j] = gone = chosen[alive]
        propensities[alive, j] = ((1 - floor) * choice.probability(chosen) + floor / n_left)[alive]
        explored[alive, j] = (chosen != choice.first())[alive]
        if j + 1 < k:
            choice.remove(alive, gone)
            left.remove(alive, gone)
    shown = np.where(index >= 0, scores[rows[:, None], index], np.float32(0))
    return Slates(index, propensities, shown, explored)


def rescore(choice: Choice, mask: Bool, slates: I64, *, floor: float) -> F64:
    """P(a) of every candidate at every position of the given slates (B, k, n). Uses the choice up.

    From a row's first -1 on all are 0. Raises ValueError where a slate names a candidate twice, or one not there.
    """
    left = mask.copy()
    alive = np.arange(len(mask))
    probabilities = np.zeros((*slates.shape, mask.shape[1]))
    for j in range(slates.shape[1]):
        alive = alive[slates[alive, j] >= 0]
        gone = slates[alive, j]
        if (gone >= mask.shape[1]).any() or not left[alive, gone].all():
            raise ValueError(f"position {j} of a slate holds a candidate that is not left: check its indices")
        even = floor / np.maximum(left.sum(axis=1, keepdims=True), 1)
        probabilities[alive, j] = (((1 - floor) * choice.distribution() + even) * left)[alive]
        left[alive, gone] = False
        choice.remove(alive, gone)
    return probabilities


def check_floor(floor: float) -> float:
    """Returns `floor`. Raises ValueError unless 0 < floor < 1: without it a propensity can be 0."""
    if not 0 < floor < 1:
        raise ValueError(f"floor is {floor}: choose one between 0 and 1")
    return floor
