"""The dynamics of the Gymnasium world: B users at once, each on his own visit, under the laws of `laws.Laws`.

    visitors.begin(rows, streams)      new visits in these rows
    visitors.query()                   what a policy decides on: candidates and their features
    after = visitors.step(slates)      he looks; clicks, conversions, what he does on his own; he may leave

Every random number is a function of (visit's stream, step, purpose, place): a visit is the same alone and beside
others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.policy.base import F32, F64, I64, U64, Bool, Query
from headrace.policy.features import by_row, unit
from headrace.policy.slates import uniforms
from headrace.simulation.laws import Laws
from headrace.simulation.tables import Items, Users
from headrace.streams.candidates import RECENT
from headrace.streams.scalars import own_count, scalars

_USER, _CLICK, _CONVERT, _DELAY, _EVOLVE, _ORGANIC, _LEAVE, _DRIFT, _CANDIDATES, _DECIDE = range(10)
_BROWSED = 32  # an organic view is the dearest of so many random items, by Gumbel-max
_DECAY = 0.8  # of the sum of what was viewed and clicked: the state that a policy sees
_PLACES = 4_096  # random numbers of one purpose and step
_SAMPLED = 256  # users and items over which likeness is standardised


@dataclass(frozen=True)
class After:
    """One step of B visits. `clicks` and `converted` are by position of the slate just shown."""

    clicks: Bool  # (B, k)
    converted: Bool  # (B, k) the conversion that this click leads to, now or later
    due: I64  # (B, k) steps until it comes, 0 for none or at once
    rewards: F64  # (B,) of all that came with this step, conversions of earlier clicks too
    terminated: Bool  # (B,) he has left
    truncated: Bool  # (B,) the horizon


class Visitors:
    def __init__(
        self,
        users: Users,
        items: Items,
        *,
        laws: Laws,
        size: int,
        horizon: int,
        candidates: int | None,
        click_reward: float = 1.0,
        conversion_reward: float = 0.0,
        context: F32 | None = None,
    ) -> None:
        """`size` B visits at once; `candidates` n items a step, None for all of them; `context` (c,) of every step."""
        self.users, self.items, self.laws = users, items, laws
        self.size, self.horizon, self.candidates = size, horizon, candidates
        self.click_reward, self.conversion_reward = click_reward, conversion_reward
        self.context = np.zeros(0, np.float32) if context is None else context
        vectors = items.vectors[:-1]
        self._count = len(vectors)
        self._centred = np.concatenate([vectors - vectors.mean(axis=0), np.zeros((1, vectors.shape[1]), np.float32)])
        likeness = users.tastes[:: max(1, len(users.tastes) // _SAMPLED)] @ self._centred[:-1].T
        self._spread = np.float32(max(likeness.std(), 1e-6))
        self._transposed = np.ascontiguousarray(vectors.T)
        self._popular: I64 = np.argsort(-items.popular[:-1], kind="stable")
        places = np.arange(self._count, dtype=np.uint64)
        self._phase = np.append(uniforms(places, 1), 0.0)  # of an item's wave of fashion
        # Items appear one by one, evenly over a stretch of twice the horizon that ends with it.
        self._born = np.append((2 * uniforms(places, 2) - 1) * horizon, 0.0)
        d, k = vectors.shape[1], RECENT
        self.user = np.zeros(size, np.int64)
        self.stream = np.zeros(size, np.uint64)
        self.step_of = np.zeros(size, np.int64)
        self.taste = np.zeros((size, d), np.float32)
        self._seen = np.zeros((size, d), np.float32)  # m of the laws
        self._sum = np.zeros((size, d), np.float32)
        self._history = np.full((size, k), items.none, np.int64)  # latest first
        self._satisfaction = np.zeros(size)
        self._coming = np.zeros((size, horizon + 1))  # conversions by the step they come with
        self._drawn: tuple[I64, Bool] | None = None

    # -- randomness ---------------------------------------------------------------------------------------------------

    def _uniforms(self, rows: I64, purpose: int, count: int) -> F64:
        """(len(rows), count) numbers of this step, for this purpose."""
        first = ((self.step_of[rows] + 1) * 16 + purpose) * _PLACES
        return uniforms(self.stream[rows, None], first[:, None] + np.arange(count))

    # -- a visit begins -----------------------------------------------------------------------------------------------

    def begin(self, rows: I64, streams: U64) -> None:
        """New visits, each a function of its stream: who comes, and what he looked at before."""
        self.stream[rows], self.step_of[rows] = streams, -1
        u = self._uniforms(rows, _USER, 1)[:, 0]
        self.user[rows] = np.searchsorted(self.users.activity, u, side="right").clip(max=len(self.users.tastes) - 1)
        self.taste[rows] = self.users.tastes[self.user[rows]]
        self._seen[rows], self._sum[rows], self._history[rows] = 0, 0, self.items.none
        self._satisfaction[rows], self._coming[rows] = 1.0, 0
        for view in range(self.laws.browsed):
            self._browse(rows, view)
        self.step_of[rows] = 0
        self._drawn = None

    def _browse(self, rows: I64, view: int) -> None:
        """One organic view: an item in proportion to exp(what he feels for it), among some at random."""
        numbers = self._uniforms(rows, _ORGANIC, 2 * _BROWSED * (view + 1) + 1)[:, 1 + 2 * _BROWSED * view :]
        some = (numbers[:, :_BROWSED] * self._count).astype(np.int64)
        gumbel = -np.log(-np.log(numbers[:, _BROWSED:].clip(1e-12, 1 - 1e-12)))
        wish = self.feel(rows, some) + gumbel
        self._remember(rows, some[np.arange(len(rows)), wish.argmax(axis=1)])

    def _remember(self, rows: I64, items: I64) -> None:
        self._history[rows, 1:] = self._history[rows, :-1]
        self._history[rows, 0] = items
        self._sum[rows] = _DECAY * self._sum[rows] + self.items.vectors[items]

    # -- what users feel ----------------------------------------------------------------------------------------------

    def feel(self, rows: I64, shown: I64) -> F64:
        """The logits (R, k) of items by row, as these users feel now; see `laws`."""
        laws, items = self.laws, self.items
        vectors = self._centred[shown]
        likeness = np.einsum("rkd,rd->rk", vectors, self.taste[rows]) / self._spread
        logits: F64 = laws.bias + laws.taste * likeness.astype(np.float64)
        logits += laws.popular * items.popular[shown] + laws.quality * items.quality[shown]
        if laws.boredom:
            logits -= laws.boredom * np.maximum(np.einsum("rkd,rd->rk", vectors, self._seen[rows]), 0)
        steps = np.maximum(self.step_of[rows], 0)[:, None]
        if laws.fading:
            logits -= laws.fading * np.maximum(steps - self._born[shown], 0)
        if laws.trend:
            logits += laws.trend * np.sin(2 * np.pi * (steps / laws.trend_steps + self._phase[shown]))
        return logits

    def chances(self, rows: I64, shown: I64) -> F64:
        """P(click) (R, k) by position of a slate; 0 where it holds no item (`items.none`)."""
        examined = (1.0 + np.arange(shown.shape[1])) ** -self.laws.position_bias
        chance = self.laws.ceiling / (1 + np.exp(-self.feel(rows, shown))) * examined
        return np.where(shown == self.items.none, 0.0, chance)

    # -- what a policy sees -------------------------------------------------------------------------------------------

    def states(self) -> F32:
        """(B, d): what was viewed and clicked, fading, at length 1."""
        return unit(self._sum).clip(-1, 1)

    def offered(self) -> tuple[I64, Bool]:
        """Candidates (B, n) by row, ascending, and which of them are there: the same until the next step.

        With `candidates` a third is nearest to the state, a third popular, a third random; repeats are there once.
        """
        if self._drawn is None:
            self._drawn = self._draw()
        return self._drawn

    def _draw(self) -> tuple[I64, Bool]:
        n, everyone = self.candidates, np.arange(self.size)
        if n is None or n >= self._count:
            rows = np.broadcast_to(np.arange(self._count), (self.size, self._count)).copy()
        else:
            third = n // 3
            near = by_row(self.states(), self._transposed).argpartition(-max(third, 1), axis=1)
            near = near[:, self._count - third :]
            popular = np.broadcast_to(self._popular[:third], (self.size, third))
            numbers = self._uniforms(everyone, _CANDIDATES, n - 2 * third)
            rows = np.concatenate([near, popular, (numbers * self._count).astype(np.int64)], axis=1)
            rows.sort(axis=1)
        there = np.ones(rows.shape, np.bool_)
        there[:, 1:] = rows[:, 1:] != rows[:, :-1]
        if self.laws.fading:
            there &= self._born[rows] <= self.step_of[:, None]
        return rows, there

    def _own(self, rows: I64) -> F32:
        """The scalar `own_count` (B, n) of candidates: of the latest items alone, which are all that is kept here."""
        recent = self._history
        known = recent != self.items.none
        times = np.zeros(rows.shape, np.float32)
        for place in range(recent.shape[1]):
            times += (rows == recent[:, place, None]) & known[:, place, None]
        return own_count(times)

    def query(self) -> Query:
        """The decisions to take now, as a policy reads them in the running system."""
        rows, there = self.offered()
        vectors = self.items.vectors[rows]
        recent = self._history
        columns = scalars(
            self.items,
            self.items,
            rows,
            vectors,
            history=recent,
            recent=self.items.vectors[recent[:, :5]],
            keys=self.items.keys[recent],
            own=self._own(rows),
        )
        return Query(
            states=self.states(),
            contexts=np.broadcast_to(self.context, (self.size, len(self.context))),
            keys=self.items.keys[rows],
            items=vectors,
            scalars=columns.clip(-1, 1),
            mask=there,
            streams=self.decision_streams(),
        )

    def decision_streams(self) -> U64:
        """A random stream a decision (B,)."""
        number = self._uniforms(np.arange(self.size), _DECIDE, 1)[:, 0]
        return (number * 2.0**53).astype(np.uint64)

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(self, shown: I64) -> After:
        """Slates (B, k) by row; `items.none` where a position stays empty. An item that repeats is not shown twice."""
        laws, everyone, none = self.laws, np.arange(self.size), self.items.none
        shown = np.where(_repeated(shown), none, shown)
        k = shown.shape[1]
        clicks = self._uniforms(everyone, _CLICK, k) < self.chances(everyone, shown)
        rewards = self.click_reward * clicks.sum(axis=1)
        converted = np.zeros(clicks.shape, np.bool_)
        if laws.conversion and clicks.any():
            converted = clicks & (self._uniforms(everyone, _CONVERT, k) < laws.conversion)
        due = self._delays(converted)
        last = self.horizon - 1
        at = np.minimum(self.step_of[:, None] + due, last)
        np.add.at(self._coming, (np.broadcast_to(everyone[:, None], at.shape)[converted], at[converted]), 1.0)

        self._change(shown, clicks)
        if laws.organic:
            views = self._uniforms(everyone, _ORGANIC, 1)[:, 0] < laws.organic
            self._browse(np.flatnonzero(views), 0)
        self._satisfaction *= laws.memory
        self._satisfaction += (1 - laws.memory) * clicks.any(axis=1)
        leaves = np.zeros(self.size, np.bool_)
        if laws.churn:
            leaves = self._uniforms(everyone, _LEAVE, 1)[:, 0] < laws.churn * (1 - self._satisfaction)

        truncated = (self.step_of >= last) & ~leaves
        ended = leaves | truncated
        came = self._coming[everyone, np.minimum(self.step_of, last)]
        came = np.where(ended, self._coming.sum(axis=1), came)
        self._coming[everyone, np.minimum(self.step_of, last)] = 0
        self._coming[ended] = 0
        rewards = rewards + self.conversion_reward * came
        self.step_of += 1
        self._drawn = None
        return After(clicks, converted, due, rewards, leaves, truncated)

    def _delays(self, converted: Bool) -> I64:
        """Steps until each conversion comes: geometric with mean `delay`, counted from 0."""
        if not self.laws.delay or not converted.any():
            return np.zeros(converted.shape, np.int64)
        u = self._uniforms(np.arange(self.size), _DELAY, converted.shape[1])
        stay = self.laws.delay / (1 + self.laws.delay)
        return np.where(converted, np.floor(np.log1p(-u) / np.log(stay)), 0).astype(np.int64)

    def _change(self, shown: I64, clicks: Bool) -> None:
        """What the slate does to its users: taste, boredom, what they remember."""
        laws, everyone = self.laws, np.arange(self.size)
        if laws.boredom:
            vectors = self._centred[shown]
            self._seen *= np.float32(laws.rest)
            self._seen += vectors.mean(axis=1) + np.einsum("bkd,bk->bd", vectors, clicks.astype(np.float32))
        towards = self._uniforms(everyone, _EVOLVE, shown.shape[1]) if laws.evolution else None
        for j in np.flatnonzero(clicks.any(axis=0)):
            rows = np.flatnonzero(clicks[:, j])
            items = shown[rows, j]
            self._remember(rows, items)
            if towards is not None:
                vectors = self.items.vectors[items]
                liked = (1 + np.einsum("rd,rd->r", self.taste[rows], vectors)) / 2
                sign = np.where(towards[rows, j] < liked, 1, -1).astype(np.float32)
                self.taste[rows] = unit(self.taste[rows] + np.float32(laws.evolution) * sign[:, None] * vectors)
        if laws.drift:
            d = self.taste.shape[1]
            u = self._uniforms(everyone, _DRIFT, 2 * d)
            # Box and Muller 1958: two uniform numbers make a normal one.
            noise = np.sqrt(-2 * np.log1p(-u[:, :d])) * np.cos(2 * np.pi * u[:, d:])
            self.taste = unit(self.taste + (laws.drift / d**0.5 * noise).astype(np.float32))


def _repeated(shown: I64) -> Bool:
    """True where an earlier position of the slate holds the same item."""
    same = shown[:, :, None] == shown[:, None, :]
    earlier = np.tri(shown.shape[1], k=-1, dtype=np.bool_)
    repeated: Bool = (same & earlier).any(axis=2)
    return repeated
