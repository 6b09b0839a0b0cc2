"""Which items a decision chooses among: the user's own, what others did next, what is near to the state, to a query
and to what the user did, what is popular, new and random; on a product page what is similar and complementary to it.

Every source has its share of the n places. Places that a source leaves free, or that repeat an item, go to what sources
offer beyond their shares, then to popular and random items. A placement may name its sources: then these alone bring
candidates, also to the places left free. All is drawn from the decision's own random stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
RECENT = 10  # history entries that candidates and scalars look at
_SOURCES = 6  # of these, how many bring neighbours
_EACH = ("following", "near")  # sources that bring some for each of them


def random_words(streams: NDArray[np.uint64], count: int, *, salt: int) -> NDArray[np.uint64]:
    """Counter-based 64-bit words (B, count): SplitMix64 (Steele et al., OOPSLA 2014) of stream, salt and place."""
    places = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(salt << 32)
    with np.errstate(over="ignore"):
        return _mix(_mix(streams)[:, None] + places * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def among(rows: I64, named: Sequence[Sequence[int]], *, none: int) -> NDArray[np.bool_]:
    """Where rows (B, w) are among those named for their user (B lists); `none` is the largest row."""
    found = np.zeros(rows.shape, np.bool_)
    marks = np.zeros(none + 1, np.bool_)
    for i, these in enumerate(named):
        if these:
            marks[these] = True
            found[i] = marks[rows[i]]
            marks[these] = False
    return found


class Within(NamedTuple):
    """What rules leave of the catalogue at a placement."""

    allowed: NDArray[np.bool_]  # (capacity + 1,) by row
    pool: I64  # rows allowed
    popular: I64  # the same, the most popular first
    must: I64 | None  # (B, w) rows that candidates must hold, as pins and shares need them; -1 for none


class Candidates:
    """Draws candidate rows (B, n); equal input gives equal rows, whatever else is in the batch."""

    def __init__(self, items: ItemStore, policies: Policies, *, n: int) -> None:
        self._items = items
        self._policies = policies
        self.n = n
        # Shares in order of precedence; those of 120 places in brackets. docs/retrieval.md says what each covers.
        self._shares = {
            "similar": max(1, n // 6),  # (20), as all neighbours: at most 24
            "complementary": max(1, n // 8),  # (15), at most 16
            "own": n // 4,  # (30)
            "following": max(1, n // 5 // _SOURCES),  # of each of the latest entries (4, 24 in all)
            "state": max(1, n // 6),  # (20)
            "queries": n // 10,  # (12)
            "popular": n // 6,  # (20)
            "random": n // 15,  # (8)
            "fresh": max(1, n // 30),  # (4)
            # Beyond the shares, for what is left:
            "near": max(1, n * 2 // 5 // _SOURCES),  # neighbours of each of the latest entries (8, 48)
        }

    def _widths(self, sources: Mapping[str, float]) -> dict[str, int]:
        """How many items each source brings; of `following` and `near` each of the latest entries."""
        if not sources:
            return self._shares
        places = {name: round(share * self.n) // (_SOURCES if name in _EACH else 1) for name, share in sources.items()}
        named = {name: max(1, places[name]) if share else self._shares[name] for name, share in sources.items()}
        return dict.fromkeys(self._shares, 0) | named

    def draw(
        self,
        history: I64,
        queries: Sequence[tuple[int, F32] | None],
        keys: NDArray[np.uint64],
        streams: NDArray[np.uint64],
        *,
        states: F32,
        own: Sequence[Iterable[int]],
        left_out: Sequence[Sequence[int]],
        within: Within | None = None,
        sources: Mapping[str, float] | None = None,
        anchored: NDArray[np.bool_] | None = None,
    ) -> tuple[I64, NDArray[np.bool_]]:
        """Rows (B, n) and which of them may be chosen.

        `history`: rows (B, RECENT), latest first, `items.none` where there is none; `keys` the same by key. `queries`:
        the latest query's key and vector of each user, if the history holds one. `states` (B, d). `own`: rows of what
        each user took before, best first. `left_out`: rows of what each may not be shown. `sources`: the placement's,
        as the settings have them. `anchored` (B,): where the latest entry is what is being looked at.
        """
        items, n, batch = self._items, self.n, len(history)
        pool = items.pool() if within is None else within.pool
        if not len(pool):
            return np.full((batch, n), items.none, np.int64), np.zeros((batch, n), np.bool_)
        popular = self._policies.popular_rows() if within is None else within.popular
        allowed = items.available if within is None else within.allowed
        out = [set(rows) for rows in left_out]
        mine = [[row for row in rows if row not in o] for rows, o in zip(own, out, strict=True)]
        sources = sources or {}
        anchored = np.zeros(batch, np.bool_) if anchored is None else anchored
        offered = self._offers(history, queries, keys, streams, states, mine, pool, popular, sources, anchored)
        if within is not None and within.must is not None:
            offered = np.concatenate([within.must, offered], axis=1)
        offered[among(offered, left_out, none=items.none)] = -1
        wanted = _first_times(offered, allowed)
        anything = not sources or "random" in sources
        words = random_words(streams, n, salt=2)
        rows = pool[(words % np.uint64(len(pool))).astype(np.int64)] if anything else np.full((batch, n), items.none)
        if len(popular) and (not sources or "popular" in sources):
            each = 3 if anything else 1  # every third free place goes to a popular item from further down the list
            words = random_words(streams, n, salt=3)[:, ::each]
            rows[:, ::each] = popular[(words % np.uint64(len(popular))).astype(np.int64)]
        places = np.cumsum(wanted, axis=1) - 1
        at, column = np.nonzero(wanted & (places < n))
        rows[at, places[at, column]] = offered[at, column]
        rows.sort(axis=1)
        mask = allowed[rows] & ~among(rows, left_out, none=items.none)
        mask[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        return rows, mask

    def _offers(
        self, history: I64, queries: Sequence[tuple[int, F32] | None], keys: NDArray[np.uint64],
        streams: NDArray[np.uint64], states: F32, own: Sequence[Sequence[int]], pool: I64, popular: I64,
        sources: Mapping[str, float], anchored: NDArray[np.bool_],
    ) -> I64:  # fmt: skip
        """What the sources offer (B, w), in order of precedence; -1 for nothing."""
        items, batch, width = self._items, len(history), self._widths(sources)
        mine = np.full((batch, width["own"]), -1, np.int64)
        for place, rows in zip(mine, own, strict=True):
            place[: len(rows)] = rows[: width["own"]]
        following = self._policies.following(keys[:, :_SOURCES].reshape(-1))[:, : width["following"]]
        asked = np.full((batch, width["queries"]), -1, np.int64)
        for place, query in zip(asked, queries, strict=True):
            if query is not None and width["queries"]:
                found = items.nearest(query[0], query[1], self._shares["queries"])[: width["queries"]]
                place[: len(found)] = found
        best = np.broadcast_to(popular[: width["popular"]], (batch, min(width["popular"], len(popular)))).copy()
        near_states = self._near_states(states, width["state"])
        words = random_words(streams, width["random"], salt=5)
        parts: list[NDArray[Any]] = [
            mine,
            following.reshape(batch, -1),
            near_states,
            asked,
            best,
            pool[(words % np.uint64(len(pool))).astype(np.int64)],
        ]
        if items.fresh:
            fresh = np.array(items.fresh, np.int64)
            words = random_words(streams, width["fresh"], salt=1)
            parts.append(fresh[(words % np.uint64(len(fresh))).astype(np.int64)])
        recent = np.ascontiguousarray(history[:, :_SOURCES]).reshape(-1)
        parts.append(items.neighbours(recent)[:, : width["near"]].reshape(batch, -1))
        if anchored.any():
            if not sources:  # these give half of their places to what the page is about
                for part in (mine, near_states, best):
                    part[anchored, part.shape[1] // 2 :] = -1
            parts.insert(0, self._of_anchors(history, keys, anchored, width))
        return np.concatenate(parts, axis=1).astype(np.int64)

    def _of_anchors(
        self, history: I64, keys: NDArray[np.uint64], anchored: NDArray[np.bool_], width: Mapping[str, int]
    ) -> I64:
        """What is similar to each anchor, and what is done or bought after it; -1 where there is no anchor."""
        similar = self._items.neighbours(history[anchored, 0])[:, : width["similar"]]
        after = self._policies.following(keys[anchored, 0])[:, : width["complementary"]]
        found = np.full((len(history), similar.shape[1] + after.shape[1]), -1, np.int64)
        found[anchored] = np.concatenate([similar, after], axis=1)
        return found

    def _near_states(self, states: F32, count: int) -> I64:
        """Rows (B, count) nearest to the states; -1 where a state is zeros: nothing is known of the user."""
        if not count:
            return np.zeros((len(states), 0), np.int64)
        found = self._items.index.search(states, count)
        found[~states.any(axis=1)] = -1
        return found


def _first_times(rows: I64, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where (B, w) an item that is allowed stands for the first time in its row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.ones(rows.shape, np.bool_)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= (ordered >= 0) & allowed[ordered]
    back = np.empty(rows.shape, np.bool_)
    np.put_along_axis(back, order, first, axis=1)
    return back
