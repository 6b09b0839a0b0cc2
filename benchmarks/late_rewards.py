"""What `delay.py` learns from: a stream of decisions whose truth is known, and the running learner's way through it.

Book, estimates and policy are those of the system; Kafka and the checkpoint are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy import delays
from headrace.policy.base import Examples, Policy, Query
from headrace.streams.book import Book, Widths
from headrace.streams.estimates import Estimates
from headrace.streams.records import Opened, Outcome, Transition, Transitions
from headrace.streams.rewards import Rewards
from headrace.streams.settings import Settings

HOUR = 3_600_000
START = 1_700_000_000_000
DIM, SCALARS = 8, 10
F64 = NDArray[np.float64]
SETTINGS = Settings(event_types={"purchase": {"reward": 1.0, "window": "60d"}}, decisions={"assume_shown": True})
REWARDS = Rewards(SETTINGS)


class Truth:
    """Who converts: a rate linear in s ⊙ a, between 1 % and 60 %. Items come and go: a tenth is new every round."""

    def __init__(self, seed: int, *, base: float, spread: float, items: int = 60) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self._base, self._spread = base, spread
        self._weights = self.rng.uniform(0.5, 1.5, DIM) * self.rng.choice([-1, 1], DIM)
        self.items = _directions(self.rng, items)
        self._liked = self.rng.normal(0, 0.5, DIM)

    def renew(self) -> None:
        out = self.rng.choice(len(self.items), len(self.items) // 10, replace=False)
        self.items[out] = _directions(self.rng, len(out))

    def rates(self, states: F64, items: F64) -> F64:
        taste = np.sqrt(DIM) * (states[:, None] * items * self._weights).sum(axis=2) / 2 + items @ self._liked
        rate: F64 = np.clip(self._base + self._spread * taste, 0.01, 0.6)
        return rate

    def query(self, n: int, *, candidates: int) -> Query:
        pick = np.argsort(self.rng.random((n, len(self.items))), axis=1)[:, :candidates]
        return Query(
            states=_directions(self.rng, n).astype(np.float32),
            contexts=np.zeros((n, 0), np.float32),
            keys=(pick + 1).astype(np.uint64),
            items=self.items[pick].astype(np.float16).astype(np.float32),
            scalars=np.zeros((n, candidates, SCALARS), np.float32),
            mask=np.ones((n, candidates), np.bool_),
            streams=self.rng.integers(0, 2**63, n, dtype=np.uint64),
        )


def _directions(rng: np.random.Generator, n: int) -> F64:
    vectors = rng.standard_normal((n, DIM))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@dataclass
class Shown:
    """Slates of one round with what they are truly worth."""

    names: list[str]
    opened: list[Transition]
    rates: F64  # (n, k)


def show(policy: Policy, query: Query, truth: Truth, *, k: int, ts: int, tag: str) -> Shown:
    slates = policy.decide(query, k)
    at = np.arange(len(slates.index))[:, None]
    items, scalars = query.items[at, slates.index].astype("<f2"), query.scalars[at, slates.index]
    names = [f"{tag}-{i}" for i in range(len(items))]
    opened: list[Transition] = [
        Opened(
            name, name, ts, ts, "default", policy.name, policy.name, 0, "", "event", "", ["i"] * k,
            slates.propensities[i].tobytes(), query.states[i].tobytes(), b"", items[i].tobytes(), scalars[i].tobytes(),
            b"", bytes(k),
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    return Shown(names, opened, truth.rates(query.states, items.astype(np.float64)))


def outcome(name: str, position: int, ts: int, opened_ts: int) -> Outcome:
    return Outcome(
        name, f"purchase/{name}/{position}", "purchase", ts, ts, [position], 1.0, None, None, "id", REWARDS.version,
        name, "", opened_ts,
    )  # fmt: skip


def new_book(size: int, **switches: bool) -> Book:
    widths = Widths(state=DIM, context=0, scalars=SCALARS)
    switches = {"outstanding": False, "position_weights": False, **switches}
    estimates = Estimates(REWARDS.kinds, SETTINGS.placements, size=size, **switches)
    return Book(size, widths, assume_shown=True, rewards=REWARDS, estimates=estimates)


class Learner:
    """The running learner's way from messages to a policy, without its checkpoint."""

    def __init__(self, policy: Policy, book: Book, change: Callable[[Examples], Examples] = lambda e: e) -> None:
        self.policy, self.book, self._change = policy, book, change
        self._offset = -1

    def take(self, records: list[Transition], now: int) -> None:
        self._offset += 1
        lessons = self.book.read(Transitions(0, self._offset, now, False, records), self._offset)
        examples = lessons.examples(Widths(state=DIM, context=0, scalars=SCALARS))
        if examples is not None:
            self.policy.learn(self._change(examples))


class FakeNegatives(Learner):
    """Ktena et al. 2019: a negative at once, a positive again on conversion, weighted by the model's own p."""

    def take(self, records: list[Transition], now: int) -> None:
        self._offset += 1
        lessons = self.book.read(Transitions(0, self._offset, now, False, records), self._offset)
        examples = lessons.examples(Widths(state=DIM, context=0, scalars=SCALARS))
        if examples is not None:
            positive, negative = delays.fake_negative_weights(np.clip(predicted(self.policy, examples), 0, 1))
            weights = np.where(examples.fresh, negative, positive)
            self.policy.learn(replace(examples, fresh=np.ones_like(examples.fresh), weights=weights))


def predicted(policy: Any, e: Examples) -> F64:
    x = policy._features.joint(e.states, e.contexts, e.items, e.scalars, e.positions)
    rate: F64 = x.astype(np.float64) @ policy.regression.theta
    return rate
