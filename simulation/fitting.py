"""The Gymnasium world fitted to a shop's own log and catalogue: what comes from the data, and what is assumed.

From the data
    items       vectors of their texts in the user encoder's space; category and price; popularity from counts
    users       taste: the mean of the vectors of what they did, each action as weighty as `behaviour.WEIGHTS` says;
                activity: how many events
    clicks      logits `taste` and `popular`: logistic regression of the item that came next against random ones, the
                user's taste being that of his history before it
    bias        the clicks of the log a position shown; without impressions the assumption `ASSUMED_CLICKS`
    positions   η of (1 + j)^−η: least squares on log(clicks a showing) by log(1 + j), where clicks say their position
    conversion  purchases a click or view, and their mean delay in steps
Assumed, as no log tells it: all other laws are off, or as `laws.Laws` has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.policy.base import F32, F64
from headrace.policy.behaviour import WEIGHTS
from headrace.policy.features import unit
from headrace.simulation.laws import Laws
from headrace.simulation.loop import Models
from headrace.simulation.warm_start import item_records
from headrace.streams.messages import ShopItem
from headrace.streams.records import Event
from headrace.streams.settings import Settings

ASSUMED_CLICKS = 0.03  # a position of a random slate, where the log has no impressions
ASSUMED_POSITIONS = 0.5
_LEAST_CLICKS = 200  # with positions, to fit how looks fall with the position
_NEGATIVES = 8
_DECAY = 0.8  # of what a user did before, as in visitors.py
_LEAST_EVENTS = 2  # of a user, to have a taste


@dataclass(frozen=True)
class Fitted:
    """`arguments` are RecommenderEnv's; `said` tells in words where the laws come from."""

    arguments: dict[str, Any]
    said: tuple[str, ...]

    def __str__(self) -> str:
        return "fitted world: " + "; ".join(self.said)


def fit(settings: Settings, items: Sequence[ShopItem], events: Iterable[Event], *, models: Models) -> Fitted:
    """Fits users, items and laws to `events`, in the order of their times.

    Raises ValueError where the log holds no user with two known items, or the catalogue fewer than two items.
    """
    records = item_records(settings, items, models)
    texts = np.stack([np.frombuffer(r.vector or bytes(2 * models.users.text_dim), "<f2") for r in records])
    vectors = models.users.project(texts.astype(np.float32))
    row = {record.item_id: place for place, record in enumerate(records)}
    log = _Log(row)
    for event in events:
        log.take(event)
    users = [user for user, done in log.done.items() if len(done) >= _LEAST_EVENTS]
    if not users or len(records) < 2:
        raise ValueError("the log names no user with two items of this catalogue: check --items and the mapping")
    centred = vectors - vectors.mean(axis=0)
    tastes = np.stack([_mean_of(centred, log.done[user]) for user in users])
    counts = np.array([log.counts[record.item_id] for record in records], np.float64)
    popularity = np.log1p(counts) / np.log1p(max(counts.max(), 1))
    taste, popular, pairs = _next_item(centred, unit(tastes), popularity, [log.done[user] for user in users])
    spread = _spread(unit(tastes), centred)
    laws, said = _laws(log, settings, taste=taste * spread, popular=popular)
    arguments = {
        "user_data": {"taste": tastes, "activity": np.array([len(log.done[user]) for user in users])},
        "item_data": {
            "vector": vectors,
            "item_id": [record.item_id for record in records],
            "category": np.array([record.category or "" for record in records]),
            "price": np.array([record.price or 0.0 for record in records]),
            "popularity": popularity,
        },
        "num_items": len(records),
        "laws": laws,
        "click_reward": 1.0,
        "conversion_reward": settings.event_types["purchase"].reward,
    }
    first = f"{len(users):,} users and {len(records):,} items, {pairs:,} next items"
    return Fitted(arguments, (first, *said))


class _Log:
    """One pass over the events: what each user did, and what the click model is fitted to."""

    def __init__(self, row: dict[str, int]) -> None:
        self._row = row
        self.done: dict[str, list[tuple[int, float]]] = {}  # user → (item's row, weight), in order
        self.counts: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.shown: Counter[int] = Counter()  # by position
        self.clicked: Counter[int] = Counter()
        self.delays: list[int] = []  # ms from a user's latest look at an item to his purchase
        self._looked: dict[tuple[str, str], int] = {}

    def take(self, event: Event) -> None:
        self.events[event.type] += 1
        if event.type == "impression" and event.shown:
            self.shown.update(range(len(event.shown)))
        if event.type == "click" and event.position is not None:
            self.clicked[event.position] += 1
        place = self._row.get(event.item_id or "")
        weight = WEIGHTS.get(event.type, 1.0)
        if place is None or event.item_id is None or weight <= 0:
            return
        self.done.setdefault(event.user_id, []).append((place, weight))
        self.counts[event.item_id] += 1
        if event.type in ("view", "click"):
            self._looked[event.user_id, event.item_id] = event.ts
        elif event.type == "purchase" and (event.user_id, event.item_id) in self._looked:
            self.delays.append(event.ts - self._looked.pop((event.user_id, event.item_id)))


def _mean_of(centred: F32, done: Sequence[tuple[int, float]]) -> F32:
    rows, weights = np.array([r for r, _ in done]), np.array([w for _, w in done], np.float32)
    mean: F32 = weights @ centred[rows] / weights.sum()
    return mean


def _spread(tastes: F32, centred: F32) -> float:
    """The standard deviation by which visitors.py measures likeness: over its own sample of users."""
    sample = tastes[:: max(1, len(tastes) // 256)]
    return float(max((sample @ centred.T).std(), 1e-6))


def _next_item(
    centred: F32, tastes: F32, popularity: F64, done: Sequence[Sequence[tuple[int, float]]]
) -> tuple[float, float, int]:
    """(logits a unit of likeness, logits from the least popular to the most popular item, pairs seen)."""
    random = np.random.default_rng(0)
    likeness: list[F64] = []
    popular: list[F64] = []
    for actions in done:
        taste = np.zeros(centred.shape[1], np.float32)
        for n, (row, _) in enumerate(actions):
            if n and taste.any():
                rows = np.append(row, random.integers(len(centred), size=_NEGATIVES))
                likeness.append(np.asarray(centred[rows] @ unit(taste[None])[0], np.float64))
                popular.append(popularity[rows])
            taste = np.float32(_DECAY) * taste + centred[row]
        if len(likeness) >= 20_000:
            break
    if not likeness:
        raise ValueError("the log names no user with two items of this catalogue: check --items and the mapping")
    z, p = np.stack(likeness), np.stack(popular)
    # The next item among 1 + NEGATIVES: a conditional logit, fitted by Newton's method with a weak ridge.
    x = np.stack([z, p], axis=2)
    w = np.zeros(2)
    for _ in range(25):
        logits = x @ w
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        mean = np.einsum("nc,ncf->nf", chance, x)
        gradient = (x[:, 0] - mean).sum(axis=0) - 1e-3 * w
        hessian = np.einsum("nc,ncf,ncg->fg", chance, x, x) - mean.T @ mean + 1e-3 * np.eye(2)
        w = w + np.linalg.solve(hessian, gradient)
    return max(float(w[0]), 0.0), max(float(w[1]), 0.0), len(z)


def _laws(log: _Log, settings: Settings, *, taste: float, popular: float) -> tuple[Laws, list[str]]:
    said = [f"likeness counts {taste:.2f} logits a standard deviation, popularity {popular:.2f} from least to most"]
    shown, clicked = sum(log.shown.values()), sum(log.clicked.values())
    eta = ASSUMED_POSITIONS
    places = np.array([j for j in sorted(log.shown) if log.clicked[j] > 0])
    if clicked >= _LEAST_CLICKS and len(places) > 1:
        rates = np.array([log.clicked[j] / log.shown[j] for j in places])
        eta = max(-float(np.polyfit(np.log1p(places), np.log(rates), 1)[0]), 0.0)
        said.append(f"looks fall with (1 + position)^-{eta:.2f}")
    else:
        said.append(f"looks are assumed to fall with (1 + position)^-{eta:g}: the log has few clicks with a position")
    rate, looked_at = ASSUMED_CLICKS, 1.0
    if shown and log.events["click"]:
        rate = log.events["click"] / shown
        looked_at = sum(n * (1.0 + j) ** -eta for j, n in log.shown.items()) / shown
        said.append(f"{rate:.3f} clicks a position shown")
    else:
        said.append(f"{rate:g} clicks a position are assumed: the log has no impressions")
    looks = log.events["click"] + log.events["view"]
    conversion = min(len(log.delays) / looks, 1.0) if looks else 0.0
    delay = float(np.mean(log.delays)) / 3_600_000 if log.delays else 0.0
    said.append(f"{conversion:.3f} purchases a look, after {delay:.1f} steps of an hour on average")
    # The slope of taste spreads the logits; half their variance is what the mean chance gains by it.
    ceiling, first = Laws.ceiling, rate / looked_at
    bias = float(np.log(first / max(ceiling - first, 1e-3)) - taste**2 / 2 - popular * 0.3)
    laws = Laws(
        bias=bias, taste=taste, popular=popular, quality=0.0, position_bias=eta, conversion=conversion, delay=delay
    )
    return laws, said
