"""What all users do: how popular an item is, and what follows what. Learned from every interaction, organic ones too.

Both models forget exponentially in event time. An item's sums are kept as of the item's own latest event, so that one
item's bits depend on its own events alone, and shards of items can be saved and resumed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.policy.base import F32, F64, I32, I64, U64, Arrays, Bool, Meta
from headrace.policy.keys import KeyIndex, grown
from headrace.policy.pairs import Pairs

WEIGHTS: dict[str, float] = {
    "like": 2.0, "share": 2.0, "add_to_cart": 3.0, "purchase": 5.0,
    "remove_from_cart": 0.0, "return": 0.0, "dismiss": 0.0, "impression": 0.0,
}  # fmt: skip
"""What an interaction counts by type; 1 where a type is not named."""

BUYS = frozenset({"purchase"})
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Behaviour:
    """N interactions with items, in order."""

    items: U64  # (N,) item keys
    weights: F64  # (N,) what each counts, 0 for nothing
    bought: Bool  # (N,)
    times: I64  # (N,) event times, ms
    previous: U64  # (N, p) item keys of the same user's interactions before it, latest first, 0 where there is none


def behaviour(
    items: Sequence[int], types: Sequence[str], times: Sequence[int], previous: Sequence[bytes],
    *, weights: Mapping[str, float] = WEIGHTS, buys: frozenset[str] = BUYS,
) -> Behaviour:  # fmt: skip
    """Records as arrays. `previous` are little-endian uint64, latest first; the first four count."""
    before = np.zeros((len(items), 4), np.uint64)
    for row, raw in enumerate(previous):
        keys = np.frombuffer(raw, "<u8")[:4]
        before[row, : len(keys)] = keys
    return Behaviour(
        items=np.array(items, np.uint64),
        weights=np.array([weights.get(t, 1.0) for t in types], np.float64),
        bought=np.array([t in buys for t in types], np.bool_),
        times=np.array(times, np.int64),
        previous=before,
    )


class Shards:
    """Items in `count` groups by key, and how much changed in each since it was last given out."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.changes = np.zeros(count)

    def of(self, keys: U64) -> I64:
        return (keys % np.uint64(self.count)).astype(np.int64)

    def take(self, limit: int | None, among: Sequence[int] | None = None) -> list[int]:
        """The shards that changed, in order; with a limit those that changed most, ties to the lowest."""
        order = np.argsort(-self.changes, kind="stable")[: np.count_nonzero(self.changes)]
        if among is not None:
            order = order[np.isin(order, among)]
        taken: list[int] = np.sort(order[:limit]).tolist()
        self.changes[taken] = 0
        return taken

    def check(self, shard: int, meta: Meta) -> None:
        if meta.get("shards") != self.count or not 0 <= shard < self.count:
            raise ValueError(f"shard {shard} of {meta.get('shards')} does not fit into {self.count} shards")


class Popularity:
    """Weighted counts by item, halved every `half_life_ms`."""

    def __init__(self, *, half_life_ms: int = 7 * _DAY_MS, shards: int = 16) -> None:
        self._half_life = half_life_ms
        self._index = KeyIndex()
        self._counts, self._times = np.zeros(0), np.zeros(0, np.int64)
        self._shards = Shards(shards)
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._score: F32 | None = None
        self._order: U64 | None = None

    def learn(self, batch: Behaviour, *, shards: Bool | None = None) -> None:
        """Counts a batch. `shards` (count,) leaves out the items of the others: for shards resumed at other places."""
        counted = batch.weights > 0
        if shards is not None:
            counted &= shards[self._shards.of(batch.items)]
        keys, weights, times = batch.items[counted], batch.weights[counted], batch.times[counted]
        at = self._rows(keys)
        rows, inverse = np.unique(at, return_inverse=True)
        latest = self._times[rows]
        np.maximum.at(latest, inverse, times)
        self._counts[rows] *= np.exp2((self._times[rows] - latest) / self._half_life)
        np.add.at(self._counts, at, weights * np.exp2((times - latest[inverse]) / self._half_life))
        self._times[rows] = latest
        np.add.at(self._shards.changes, self._shards.of(keys), 1)
        self._forget_derived()

    def _rows(self, keys: U64) -> I64:
        rows = self._index.add(keys)
        self._counts = grown(self._counts, len(self._index))
        self._times = grown(self._times, len(self._index))
        return rows

    def _now(self) -> F64:
        """Counts as of the latest event of all (R,)."""
        size = len(self._index)
        times = self._times[:size]
        now: F64 = self._counts[:size] * np.exp2((times - times.max(initial=0)) / self._half_life)
        return now

    def scores(self, keys: U64) -> F32:
        """log(1 + count) / log(1 + largest count), in [0, 1]; 0 for an item never seen. Of the shape of `keys`."""
        if self._score is None:
            logs = np.log1p(self._now())
            largest = logs.max(initial=0)
            self._score = np.append(logs / (largest if largest > 0 else 1), 0.0).astype(np.float32)
        return self._score[self._index.rows(keys)]

    def top(self, n: int) -> U64:
        """Keys of the n largest counts, largest first, ties by key."""
        if self._order is None:
            self._order = self._index.keys[np.lexsort((self._index.keys, -self._now()))]
        return self._order[:n]

    def shards(self, limit: int | None = None, *, among: Sequence[int] | None = None) -> dict[int, tuple[Arrays, Meta]]:
        """Shards (of `among`) that changed since they were last given out; at most `limit`, those that changed most."""
        given: dict[int, tuple[Arrays, Meta]] = {}
        keys = self._index.keys
        of = self._shards.of(keys)
        for shard in self._shards.take(limit, among):
            rows = np.flatnonzero((of == shard) & (self._times[: len(keys)] > 0))
            rows = rows[np.argsort(keys[rows])]
            arrays = {"keys": keys[rows], "counts": self._counts[rows], "times": self._times[rows]}
            given[shard] = arrays, {"shards": self._shards.count}
        return given

    def restore(self, shard: int, arrays: Arrays, meta: Meta, *, changed: bool = False) -> None:
        """Replaces one shard; `changed`: it is still to be given out. Raises ValueError where it was cut otherwise."""
        self._shards.check(shard, meta)
        old = np.flatnonzero(self._shards.of(self._index.keys) == shard)
        self._counts[old], self._times[old] = 0, 0
        rows = self._rows(arrays["keys"])
        self._counts[rows], self._times[rows] = arrays["counts"], arrays["times"]
        self._shards.changes[shard] = float(changed)
        self._forget_derived()


class CoOccurrence:
    """What users do after an item: pairs item → later item, apart for buying the later one and for all else.

    A later item counts its interaction's weight for the item just before it, a half of that for the one before, a
    third, a quarter; a purchase counts 1 instead of its weight. At most `cap` neighbours an item and kind are held, the
    heaviest.
    """

    def __init__(self, *, cap: int = 32, half_life_ms: int = 14 * _DAY_MS, shards: int = 64) -> None:
        self._index = KeyIndex()
        self._views = Pairs(cap=cap, half_life_ms=half_life_ms)
        self._buys = Pairs(cap=cap, half_life_ms=half_life_ms)
        self._cap = cap
        self._shards = Shards(shards)
        self._scratch = np.zeros(0, np.float32)

    def learn(self, batch: Behaviour, *, shards: Bool | None = None) -> None:
        """Learns a batch. `shards` (count,) leaves out pairs from items of the others, as in Popularity."""
        p = batch.previous.shape[1]
        of, next_ = batch.previous.ravel(), np.repeat(batch.items, p)
        weights = np.where(batch.bought, 1.0, batch.weights)[:, None] / np.arange(1, p + 1)
        paired = (of != 0) & (of != next_) & np.repeat(batch.weights > 0, p)
        if shards is not None:
            paired &= shards[self._shards.of(of)]
        of, next_, weights = of[paired], next_[paired], weights.ravel()[paired]
        times, bought = np.repeat(batch.times, p)[paired], np.repeat(batch.bought, p)[paired]
        rows, next_rows = np.split(self._rows(np.concatenate([of, next_])), 2)
        for pairs, these in ((self._views, ~bought), (self._buys, bought)):
            if these.any():
                pairs.learn(rows[these], next_rows[these], weights[these], times[these], self._index.keys)
        np.add.at(self._shards.changes, self._shards.of(of), 1)

    def _rows(self, keys: U64) -> I64:
        rows = self._index.add(keys)
        self._views.grow(len(self._index))
        self._buys.grow(len(self._index))
        return rows

    def scores(self, recent: U64, candidates: U64) -> tuple[F32, F32]:
        """co_view and co_buy (B, n), in [0, 1], of candidates (B, n) after the items `recent` (B, h).

        `recent` is latest first, 0 where there is none. √(weighted mean over the recent items of the candidate's share
        of what followed them), weights 1, 1/2, 1/3, …
        """
        of, rows = self._index.rows(recent), self._index.rows(candidates)
        fading = np.where(recent != 0, 1 / np.arange(1, recent.shape[1] + 1), 0.0)  # (B, h)
        fading /= np.maximum(fading.sum(axis=1, keepdims=True), 1e-9)
        views = self._score(self._views, of, fading.astype(np.float32), rows)
        return views, self._score(self._buys, of, fading.astype(np.float32), rows)

    def shares(self, recent: U64, candidates: U64) -> tuple[F32, F32]:
        """The share (B, h, n) of what followed each of the items `recent` (B, h) that each candidate (B, n) has: of
        views, and of purchases. `scores` are made of these."""
        of, rows = self._index.rows(recent), self._index.rows(candidates).astype(np.int32)
        rows[rows < 0] = -2  # a free place of a neighbour is -1
        return self._shares(self._views, of, rows), self._shares(self._buys, of, rows)

    def _shares(self, pairs: Pairs, of: I64, candidates: I32) -> F32:
        batch, h = of.shape
        n = candidates.shape[1]
        found = np.zeros((batch, h, n), np.float32)
        if not len(pairs.neighbours):
            return found
        same = pairs.neighbours[of][:, :, None] == candidates[:, None, :, None]
        decision, hit = np.divmod(np.flatnonzero(same), h * n * self._cap)
        place, hit = np.divmod(hit, n * self._cap)
        candidate, slot = np.divmod(hit, self._cap)
        source = of[decision, place]
        found[decision, place, candidate] = pairs.shares(source)[np.arange(len(source)), slot]
        return found

    def _score(self, pairs: Pairs, of: I64, fading: F32, candidates: I64) -> F32:
        """Scatters the shares into one float a (decision, item), then reads the candidates' off."""
        width = len(self._index) + 1  # place 0 takes what is unknown and stays 0
        scores = np.zeros(candidates.shape, np.float32)
        if width == 1:
            return scores
        at_once = max(1, 2_000_000 // width)
        for start in range(0, len(of), at_once):
            part = slice(start, start + at_once)
            base = np.arange(len(of[part]))[:, None] * width + 1
            if len(self._scratch) < len(base) * width:
                self._scratch = np.zeros(len(base) * width, np.float32)
            known = np.nonzero(of[part] >= 0)
            rows = of[part][known]
            places = (base[known[0]] + pairs.neighbours[rows]).ravel()
            shares = (pairs.shares(rows) * fading[part][known][:, None]).ravel()
            np.add.at(self._scratch, places, shares)
            scores[part] = self._scratch[base + candidates[part]]
            self._scratch[places] = 0
        return np.sqrt(np.minimum(scores, 1, out=scores), out=scores)

    def neighbours(self, keys: U64, n: int) -> U64:
        """The n items that follow each of `keys` (Q,) most, by share of views plus of purchases: (Q, n), 0-padded."""
        following = np.zeros((len(keys), n), np.uint64)
        for start in range(0, len(keys), 1024):
            rows = self._index.rows(keys[start : start + 1024])
            known = np.flatnonzero(rows >= 0)
            following[start + known] = self._following(rows[known], n)
        return following

    def _following(self, rows: I64, n: int) -> U64:
        items = np.concatenate([self._views.neighbours[rows], self._buys.neighbours[rows]], axis=1)  # (Q, 2·cap)
        shares = np.concatenate([self._views.shares(rows), self._buys.shares(rows)], axis=1)
        views, buys = shares[:, : self._cap], shares[:, self._cap :]
        both = (items[:, : self._cap, None] == items[:, None, self._cap :]) & (items[:, : self._cap, None] >= 0)
        views += np.where(both, buys[:, None, :], 0).sum(axis=2)
        buys[both.any(axis=1)] = 0
        keys = np.where(items >= 0, self._index.keys[items], 0).astype(np.uint64)
        order = np.lexsort((keys, -shares), axis=1)[:, :n]
        best = np.where(np.take_along_axis(shares, order, axis=1) > 0, np.take_along_axis(keys, order, axis=1), 0)
        return np.pad(best.astype(np.uint64), ((0, 0), (0, n - best.shape[1])))

    def shards(self, limit: int | None = None, *, among: Sequence[int] | None = None) -> dict[int, tuple[Arrays, Meta]]:
        """Shards (of `among`) that changed since they were last given out; at most `limit`, those that changed most."""
        given: dict[int, tuple[Arrays, Meta]] = {}
        keys = self._index.keys
        of = self._shards.of(keys)
        touched = np.maximum(self._views.times, self._buys.times)[: len(keys)] > 0
        for shard in self._shards.take(limit, among):
            rows = np.flatnonzero((of == shard) & touched)
            rows = rows[np.argsort(keys[rows])]
            arrays = self._views.arrays(rows, keys, "views") | self._buys.arrays(rows, keys, "buys")
            arrays["keys"] = keys[rows]
            given[shard] = arrays, {"shards": self._shards.count, "cap": self._cap}
        return given

    def restore(self, shard: int, arrays: Arrays, meta: Meta, *, changed: bool = False) -> None:
        """Replaces one shard; `changed`: it is still to be given out. Raises ValueError where it was cut otherwise."""
        self._shards.check(shard, meta)
        if meta.get("cap") != self._cap:
            raise ValueError(f"the shard holds up to {meta.get('cap')} neighbours an item, this model {self._cap}")
        old = np.flatnonzero(self._shards.of(self._index.keys) == shard)
        rows = self._rows(arrays["keys"])
        for name, pairs in (("views", self._views), ("buys", self._buys)):
            neighbours = self._rows(arrays[f"{name}.neighbours"])
            pairs.clear(old)
            pairs.restore(rows, neighbours, arrays, name)
        self._shards.changes[shard] = float(changed)
