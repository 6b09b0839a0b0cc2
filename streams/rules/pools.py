"""What rules leave of the catalogue at a placement, for the drawing of candidates."""

from __future__ import annotations

import math
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
    count: int  # candidates wanted


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

    def within(self, placement: str, force: InForce, *, states: F32, streams: NDArray[np.uint64], k: int) -> Within:
        """`states` (B, d) and `streams` (B,) of the decisions, k their places at most."""
        left = self._of(placement, force, k)
        must = [_members(group, states, streams, salt=16 + at) for at, group in enumerate(left.groups)]
        return Within(left.allowed, left.pool, left.popular, np.concatenate(must, axis=1) if must else None)

    def allowed(self, placement: str, force: InForce, *, k: int) -> NDArray[np.bool_]:
        return self._of(placement, force, k).allowed

    def _of(self, placement: str, force: InForce, k: int) -> _Left:
        pool, popular = self._items.pool(), self._policies.popular_rows()
        now = (force, pool, popular, k)
        left = self._left.get(placement)
        if left is None or any(was is not is_now for was, is_now in zip(left.of, now, strict=True)):
            left = self._left[placement] = self._make(force, pool, popular, k, now)
        return left

    def _make(self, force: InForce, pool: I64, popular: I64, k: int, now: tuple[object, ...]) -> _Left:
        items = self._items
        allowed = items.available if force.allowed is None else items.available & force.allowed
        if force.allowed is not None:
            pool, popular = pool[allowed[pool]], popular[allowed[popular]]
        groups = [self._group(members, allowed, _PINNED) for _, position, members in force.pins if position < k]
        for _, members, least, _, _ in force.shares:
            if least:
                groups.append(self._group(members, allowed, _OWED * math.ceil(least * k)))
        return _Left(now, allowed, pool, popular, [group for group in groups if len(group.rows)])

    def _group(self, members: NDArray[np.bool_], allowed: NDArray[np.bool_], count: int) -> _Group:
        rows = np.flatnonzero(members & allowed)
        return _Group(rows, self._items.vectors[rows] if count < len(rows) <= _COMPARED else None, count)


def _members(group: _Group, states: F32, streams: NDArray[np.uint64], *, salt: int) -> I64:
    """Rows (B, count) of a group: all where there are no more, else the nearest to the state and some at random."""
    if len(group.rows) <= group.count:
        return np.broadcast_to(group.rows, (len(states), len(group.rows)))
    near = 0 if group.vectors is None else group.count * 2 // 3
    words = random_words(streams, group.count - near, salt=salt)
    found = group.rows[(words % np.uint64(len(group.rows))).astype(np.int64)]
    if group.vectors is None:
        return found
    # One product a row of one shape: the batch must not change a bit (policy.features.by_candidate).
    similarity = np.matmul(group.vectors, states[:, :, None])[:, :, 0]
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :near]
    return np.concatenate([group.rows[nearest], found], axis=1)
