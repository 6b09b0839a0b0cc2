"""Which items a decision chooses among: neighbours of what the user did, what others did next, what is popular, new
and random.

Every source has a fixed share of the n places, so that no order of sources crowds another out; places that repeat an
item
are given to popular and random ones. All is drawn from the decision's own random stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies

I64 = NDArray[np.int64]
RECENT = 10  # history entries that candidates and scalars look at
_SOURCES = 6  # of these, how many bring neighbours


def random_words(streams: NDArray[np.uint64], count: int, *, salt: int) -> NDArray[np.uint64]:
    """Counter-based 64-bit words (B, count): SplitMix64 (Steele et al., OOPSLA 2014) of stream, salt and place."""
    places = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(salt << 32)
    with np.errstate(over="ignore"):
        return _mix(_mix(streams)[:, None] + places * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Candidates:
    """Draws candidate rows (B, n); equal input gives equal rows, whatever else is in the batch."""

    def __init__(self, items: ItemStore, policies: Policies, *, n: int) -> None:
        self._items = items
        self._policies = policies
        self.n = n
        self._near = max(1, n * 2 // 5 // _SOURCES)
        self._next = max(1, n // 5 // _SOURCES)
        self._queries = n // 10
        self._popular = n // 5
        self._fresh = max(1, n // 30)

    def draw(
        self,
        history: I64,
        queries: Sequence[tuple[int, NDArray[np.float32]] | None],
        keys: NDArray[np.uint64],
        streams: NDArray[np.uint64],
    ) -> tuple[I64, NDArray[np.bool_]]:
        """Rows (B, n) and which of them may be chosen.

        `history`: rows (B, RECENT), latest first, `items.none` where there is none; `keys` the same by key.
        `queries`: the latest query's
        key and
        vector of each user, if the history holds one.
        """
        items, n = self._items, self.n
        batch = len(history)
        recent = np.ascontiguousarray(history[:, :_SOURCES])
        flat = recent.reshape(-1)
        near = items.neighbours(flat)[:, : self._near].reshape(batch, -1)
        following = self._policies.following(keys[:, :_SOURCES].reshape(-1))[:, : self._next].reshape(batch, -1)
        asked = np.full((batch, self._queries), -1, np.int64)
        for i, query in enumerate(queries):
            if query is not None:
                found = items.nearest(query[0], query[1], self._queries)
                asked[i, : len(found)] = found
        pool = items.pool()
        popular = self._policies.popular_rows()
        parts: list[NDArray[Any]] = [
            near,
            following,
            asked,
            np.broadcast_to(popular[: self._popular], (batch, len(popular[: self._popular]))),
        ]
        if items.fresh:
            fresh = np.array(items.fresh, np.int64)
            words = random_words(streams, self._fresh, salt=1)
            parts.append(fresh[(words % np.uint64(len(fresh))).astype(np.int64)])
        used = sum(p.shape[1] for p in parts)
        if used < n:
            parts.append(np.full((batch, n - used), -1, np.int64))
        rows: I64 = np.concatenate(parts, axis=1)[:, :n].astype(np.int64)
        rows[rows == items.none] = -1
        if not len(pool):
            return np.full((batch, n), items.none, np.int64), np.zeros((batch, n), np.bool_)
        rows.sort(axis=1)
        repeated = np.zeros(rows.shape, np.bool_)
        repeated[:, 1:] = rows[:, 1:] == rows[:, :-1]
        words = random_words(streams, n, salt=2)
        fill = pool[(words % np.uint64(len(pool))).astype(np.int64)]
        if len(popular):  # every third free place goes to a popular item from further down the list
            words = random_words(streams, n, salt=3)[:, ::3]
            fill[:, ::3] = popular[(words % np.uint64(len(popular))).astype(np.int64)]
        rows = np.where(repeated | (rows < 0) | ~items.available[rows], fill, rows)
        rows.sort(axis=1)
        mask = items.available[rows]
        mask[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        return rows, mask
