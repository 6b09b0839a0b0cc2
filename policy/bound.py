"""Slates within constraints: the draws of slates.py, each position from what constraints.py leaves it.

At every position, with `allowed` what the position may hold,

    P(a) = (1 - floor) · π(a | allowed) + floor / |allowed|

Where all that is left is allowed, π is the policy's own over it. Where a pin, a quota or an item kept for a later pin
leaves less, π is renormalised over that; where π has nothing there, all of it goes to the largest score.
`rescore_bound` walks the same way over given slates: what was logged and what is computed again are the same numbers.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F32, F64, I64, U64, Bool, Query, Slates
from headrace.policy.constraints import Constraints
from headrace.policy.features import by_candidate, unit
from headrace.policy.slates import Choice, boosted, uniforms

_ALMOST_ONE = np.nextafter(1.0, 0.0)
_LEAST_MASS = 1e-9  # of π on what is allowed: below it π says nothing about it


class Bound:
    """A batch of decisions on its way down the positions. Uses the choice up."""

    def __init__(self, choice: Choice, query: Query, scores: F32, k: int, constraints: Constraints) -> None:
        """`query` is padded; constraints may be of fewer candidates. Raises ValueError where they are of other rows."""
        self.choice, self.k = choice, k
        self._places: I64 = np.full(len(scores), k) if constraints.places is None else constraints.places
        self.scores = scores  # the policy's own
        self.left = query.mask.copy()  # (B, n)
        rows, n = self.left.shape
        self._rows = np.arange(rows)
        self._wide = n
        self._ranks = scores  # by which the best of what is allowed is known
        if constraints.boosts is not None:
            factors = np.ones((rows, n), np.float32)
            factors[:, : constraints.boosts.shape[1]] = constraints.boosts
            choice.boost(factors)
            self._ranks = boosted(scores, factors)
        self._start_caps(constraints)
        self._pins = [(pin.position, self._padded(pin.members, False)) for pin in constraints.pins]
        self._pins = [(position, members) for position, members in self._pins if position < k and members.any()]
        owing = [quota for quota in constraints.quotas if quota.least.any()]
        self._quotas = [(self._padded(quota.members, False), quota.least.copy()) for quota in owing]
        self._owed = sum((quota.least for quota in owing), np.zeros(rows, np.int64))  # at most: (B,)
        self._penalty = self._start_penalty(query, constraints.penalty)
        if (self._most == 0).any():
            gone = ((self._groups >= 0) & (self._most == 0)[:, :, None]).any(axis=0) & self.left
            self.left &= ~gone
            choice.drop(gone)
        self.count = self.left.sum(axis=1)  # (B,) of what is left

    def _padded(self, columns: np.ndarray, fill: int) -> np.ndarray:
        if len(columns) != len(self.left):
            raise ValueError(f"constraints of {len(columns)} decisions, the query has {len(self.left)}")
        if columns.shape == self.left.shape:
            return columns
        out = np.full(self.left.shape, fill, columns.dtype)
        out[:, : columns.shape[1]] = columns
        return out

    def _start_caps(self, constraints: Constraints) -> None:
        """Groups (C, B, n) and most (C, B) of the caps that can bind: a group has more members than it may have places.
        Groups of what is placed (k, C, B), -2 for none."""
        rows, n = self.left.shape
        binding = [cap for cap in constraints.caps if ((cap.groups >= 0).sum(axis=1) > cap.most).any()]
        self._groups = np.empty((len(binding), rows, n), np.int32)
        self._most = np.zeros((len(binding), rows), np.int64)
        for at, cap in enumerate(binding):
            self._groups[at] = self._padded(cap.groups, -1)
            self._most[at] = np.minimum(cap.most, self.k)
        self._placed = np.full((self.k, len(binding), rows), -2, np.int32)

    def _start_penalty(self, query: Query, penalty: F32 | None) -> tuple[F32, F32, F32] | None:
        """λ times the scores' spread (B, 1), item directions (B, d, n), the largest cosine so far (B, n)."""
        if penalty is None or not penalty.any():
            return None
        largest = np.where(self.left, self._ranks, -np.inf).max(axis=1, initial=-np.inf)
        smallest = np.where(self.left, self._ranks, np.inf).min(axis=1, initial=np.inf)
        spread = np.where(np.isfinite(largest), largest - smallest, 0.0)
        directions = np.ascontiguousarray(unit(query.items).transpose(0, 2, 1))
        weight: F32 = (penalty * spread).astype(np.float32)[:, None]
        return weight, directions, np.zeros(self.left.shape, np.float32)

    # -- a position ---------------------------------------------------------------------------------------------------

    def allowed(self, j: int) -> tuple[Bool, I64]:
        """What position j may hold (B, n), and the rows where that is less than what is left."""
        self._pins = [pin for pin in self._pins if pin[0] >= j]
        quotas = self._may_owe(j)
        if not (self._pins or quotas):
            return self.left, self._rows[:0]
        allowed = self.left.copy()
        binding = np.zeros(len(self.left), np.bool_)
        pinned = np.zeros(len(self.left), np.bool_)
        later = []
        for position, members in self._pins:
            inside = members & self.left
            if position == j:
                here = inside.any(axis=1) & ~pinned
                allowed[here] = inside[here]
                pinned |= here
            elif position > j:
                later.append(inside)
        for inside in later:  # as many as later pins may need of it are kept for them
            wanted = sum((inside & other).any(axis=1).astype(np.int64) for other in later)
            kept = (inside.sum(axis=1) <= wanted) & inside.any(axis=1)
            rest = allowed & ~inside
            kept &= rest.any(axis=1)
            allowed[kept] = rest[kept]
            binding |= kept
        if quotas:
            binding |= self._bind_quotas(j, allowed, pinned, later)
        return allowed, np.flatnonzero(binding | pinned)

    def _may_owe(self, j: int) -> bool:
        """Whether a quota may bind at position j: all that is owed, found or not, against the places free for it."""
        if not self._quotas:
            return False
        places = np.minimum(self._places - j, self.count) - len(self._pins)
        return bool((self._owed >= np.maximum(places, 1)).any())

    def _bind_quotas(self, j: int, allowed: Bool, pinned: Bool, later: list[Bool]) -> Bool:
        """Where the places still free are no more than the members still owed, only members are drawn."""
        owed = np.zeros(len(self.left), np.int64)
        wanted = np.zeros_like(self.left)
        for members, least in self._quotas:
            inside = members & self.left
            owed += np.minimum(least, inside.sum(axis=1))
            wanted |= inside & (least > 0)[:, None]
        places = np.minimum(self._places - j, self.count)
        for inside in later:
            places -= inside.any(axis=1)
        wanted &= allowed
        binding: Bool = (owed >= places) & (owed > 0) & wanted.any(axis=1) & ~pinned
        allowed[binding] = wanted[binding]
        return binding

    def within(self, allowed: Bool, rows: I64) -> F64:
        """π over what is allowed (len(rows), n), summing to 1; rows with nothing allowed are zeros."""
        p = self.choice.distribution()[rows] * allowed[rows]
        total = p.cumsum(axis=1)[:, -1]  # a running sum: padding changes no bit
        none = total <= _LEAST_MASS
        p /= np.where(none, 1.0, total)[:, None]
        if none.any():
            at = rows[none]
            best = np.where(allowed[at], self._ranks[at], -np.inf).argmax(axis=1)
            p[none] = 0.0
            p[np.flatnonzero(none), best] = allowed[at, best]
        return p

    def place(self, j: int, alive: I64, chosen: I64) -> None:
        """Position j of the rows `alive` holds `chosen`."""
        for members, least in self._quotas:
            pays = members[alive, chosen] & (least[alive] > 0)
            least[alive] -= pays
            self._owed[alive] -= pays
        self.left[alive, chosen] = False
        self.count[alive] -= 1
        gone = self._ended(j, alive, chosen) if len(self._groups) else None
        if gone is None:
            self.choice.remove(alive, chosen)
        else:
            gone[alive, chosen] = True
            self.choice.drop(gone)
        if self._penalty is not None:
            weight, directions, nearest = self._penalty
            above = directions[alive, :, chosen]
            cosine = np.maximum(by_candidate(above[:, None, :], directions[alive])[:, 0], nearest[alive])
            by = np.zeros_like(nearest)
            by[alive] = weight[alive] * (cosine - nearest[alive])
            nearest[alive] = cosine
            self.choice.lower(by)
            self._ranks = self._ranks - by

    def _ended(self, j: int, alive: I64, chosen: I64) -> Bool | None:
        """What leaves the candidates (B, n), as groups have their most with what was placed; None for nothing."""
        self._placed[j, :, alive] = self._groups[:, alive, chosen].T
        code = self._placed[j]  # (C, B)
        held = (self._placed[: j + 1] == code).sum(axis=0)
        cap, rows = np.nonzero((code >= 0) & (held >= self._most))
        if not len(cap):
            return None
        flat = np.flatnonzero(self._groups[cap, rows] == code[cap, rows, None])  # much faster than nonzero
        rows = rows[flat // self._wide]
        columns = flat % self._wide
        there = self.left[rows, columns]
        if not there.any():
            return None
        rows, columns = rows[there], columns[there]
        self.left[rows, columns] = False
        self.count[rows] = self.left[rows].sum(axis=1)
        gone = np.zeros_like(self.left)
        gone[rows, columns] = True
        return gone


def sample_bound(bound: Bound, *, floor: float, streams: U64) -> Slates:
    """Draws the positions of every decision; draw j of its stream decides position j."""
    rows, k = np.arange(len(bound.left)), bound.k
    draws = uniforms(streams[None, :], np.arange(k)[:, None])
    index = np.full((len(rows), k), -1, np.int64)
    propensities = np.zeros((len(rows), k))
    explored = np.zeros((len(rows), k), np.bool_)
    for j in range(k):
        allowed, bindings = bound.allowed(j)
        count = bound.count if allowed is bound.left else allowed.sum(axis=1)
        alive = rows[count > 0]
        if not len(alive):
            break
        n_left, u = np.maximum(count, 1), draws[j]
        by_policy = bound.choice.pick(np.minimum(u / (1 - floor), _ALMOST_ONE))
        first = bound.choice.first()
        if len(bindings):
            pi = bound.within(allowed, bindings)
            by_policy, first = by_policy.copy(), first.copy()
            by_policy[bindings] = _inverted(pi, np.minimum(u[bindings] / (1 - floor), _ALMOST_ONE))
            first[bindings] = pi.argmax(axis=1)
        rank = np.minimum(np.maximum((u - (1 - floor)) / floor * n_left, 0).astype(np.int64), n_left - 1)
        evenly = np.flatnonzero(u >= 1 - floor)
        chosen = by_policy
        if len(evenly):
            chosen = by_policy.copy()
            chosen[evenly] = (allowed[evenly].cumsum(axis=1) > rank[evenly, None]).argmax(axis=1)
        share = bound.choice.probability(chosen)
        if len(bindings):
            share = share.copy()
            share[bindings] = pi[np.arange(len(bindings)), chosen[bindings]]
        index[alive, j] = chosen[alive]
        propensities[alive, j] = ((1 - floor) * share + floor / n_left)[alive]
        explored[alive, j] = (chosen != first)[alive]
        if j + 1 < k:
            bound.place(j, alive, chosen[alive])
    shown = np.where(index >= 0, bound.scores[rows[:, None], index], np.float32(0))
    return Slates(index, propensities, shown, explored)


def rescore_bound(bound: Bound, slates: I64, *, floor: float) -> F64:
    """P(a) of every candidate at every position of the given slates (B, k, n): see slates.rescore.

    What the constraints do not allow has 0, also where the slate holds it.
    """
    alive = np.arange(len(bound.left))
    probabilities = np.zeros((*slates.shape, bound.left.shape[1]))
    for j in range(slates.shape[1]):
        alive = alive[slates[alive, j] >= 0]
        placed = slates[alive, j]
        if (placed >= bound.left.shape[1]).any():
            raise ValueError(f"position {j} of a slate holds a candidate that is not there: check its indices")
        allowed, bindings = bound.allowed(j)
        even = floor / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        pi = bound.choice.distribution()
        if len(bindings):
            pi[bindings] = bound.within(allowed, bindings)
        probabilities[alive, j] = (((1 - floor) * pi + even) * allowed)[alive]
        held = bound.left[alive, placed]  # what is not left any more changes nothing further down
        if j + 1 < slates.shape[1]:
            bound.place(j, alive[held], placed[held])
    return probabilities


def _inverted(pi: F64, u: F64) -> I64:
    """The candidates at `u` (R,) of the inverse CDFs of π (R, n)."""
    cdf = pi.cumsum(axis=1)
    target = np.minimum(u * cdf[:, -1], np.nextafter(cdf[:, -1], 0.0))
    below: I64 = (cdf <= target[:, None]).sum(axis=1)
    return below.clip(max=pi.shape[1] - 1)
