"""What rules leave of the catalogue at a placement, for the drawing of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.streams.candidates import Within, random_words
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.rules.in_force import InForce

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_PINNED = 4  # candidates for a pin
_OWED = 3  # candidates for each place that a share owes
_COMPARED = 2_048  # members of a group up to which the nearest to a state are looked for


@dataclass(frozen=True)
class _Group:
    rows: I64  # of members that may be shown
    vectors: F32 | None  # (len, d), of groups that are small enough
    position: int | None  # of a pin
    least: float  # of a share

    def wanted(self, k: int) -> int:
        """Candidates for a slate of k."""
        if self.position is None:
            return _OWED * math.ceil(self.least * k)
        return _PINNED if self.position < k else 0


@dataclass(frozen=True)
class _Left:
    """Of one placement, as long as neither its rules nor the catalogue nor what is popular changes."""

    of: tuple[object, ...]
    allowed: NDArray[np.bool_]
    pool: I64
    popular: I64
    groups: list[_Group]


class Pools:
    """Shared by all partitions of a worker."""

    def __init__(self, items: ItemStore, policies: Policies) -> None:
        self._items, self._policies = items, policies
        self._left: dict[str, _Left] = {}

    def within(
        self, placement: str, force: InForce, *, states: F32, streams: NDArray[np.uint64], ks: Sequence[int]
    ) -> Within:
        """`states` (B, d), `streams` (B,) and places of the decisions: each has candidates for its own k."""
        left = self._of(placement, force)
        if not left.groups:
            return Within(left.allowed, left.pool, left.popular, None)
        lengths = np.array(ks)
        parts = {k: np.flatnonzero(lengths == k) for k in dict.fromkeys(ks)}
        found = {k: _must(left.groups, k, states[at], streams[at]) for k, at in parts.items()}
        must = np.full((len(ks), max(rows.shape[1] for rows in found.values())), -1, np.int64)
        for k, at in parts.items():
            must[at, : found[k].shape[1]] = found[k]
        return Within(left.allowed, left.pool, left.popular, must)

    def _of(self, placement: str, force: InForce) -> _Left:
        pool, popular = self._items.pool(), self._policies.popular_rows()
        now = (force, pool, popular)
        left = self._left.get(placement)
        if left is None or any(was is not is_now for was, is_now in zip(left.of, now, strict=True)):
            left = self._left[placement] = self._make(force, pool, popular, now)
        return left

    def _make(self, force: InForce, pool: I64, popular: I64, now: tuple[object, ...]) -> _Left:
        items = self._items
        allowed = items.available if force.allowed is None else items.available & force.allowed
        if force.allowed is not None:
            pool, popular = pool[allowed[pool]], popular[allowed[popular]]
        groups = [self._group(members, allowed, position, 0.0) for _, position, members in force.pins]
        groups += [self._group(members, allowed, None, least) for _, members, least, _, _ in force.shares if least]
        return _Left(now, allowed, pool, popular, [group for group in groups if len(group.rows)])

    def _group(
        self, members: NDArray[np.bool_], allowed: NDArray[np.bool_], position: int | None, least: float
    ) -> _Group:
        rows = np.flatnonzero(members & allowed)
        return _Group(rows, self._items.vectors[rows] if len(rows) <= _COMPARED else None, position, least)


def _must(groups: list[_Group], k: int, states: F32, streams: NDArray[np.uint64]) -> I64:
    """Rows (B, w) that the candidates of slates of k must hold."""
    wanting = [(group, count) for group in groups if (count := group.wanted(k))]
    parts = [_members(group, count, states, streams, salt=16 + at) for at, (group, count) in enumerate(wanting)]
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(states), 0), np.int64)


def _members(group: _Group, count: int, states: F32, streams: NDArray[np.uint64], *, salt: int) -> I64:
    """Rows (B, count) of a group: all where there are no more, else the nearest to the state and some at random."""
    if len(group.rows) <= count:
        return np.broadcast_to(group.rows, (len(states), len(group.rows)))
    near = 0 if group.vectors is None else count * 2 // 3
    words = random_words(streams, count - near, salt=salt)
    found = group.rows[(words % np.uint64(len(group.rows))).astype(np.int64)]
    if group.vectors is None:
        return found
    # One product a row of one shape: the batch must not change a bit (policy.features.by_candidate).
    similarity = np.matmul(group.vectors, states[:, :, None])[:, :, 0]
    nearest = np.empty((len(states), near), np.int64)
    for place in range(near):  # a few: one after the other is cheaper than an order of all
        nearest[:, place] = best = similarity.argmax(axis=1)
        similarity[np.arange(len(states)), best] = -np.inf
    return np.concatenate([group.rows[nearest], found], axis=1)
