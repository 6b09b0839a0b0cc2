"""Warm start: a policy fitted from a log that knows nothing of slates or propensities.

The log runs through the engine that serves, micro-batch by micro-batch. Where a decision would be taken the candidates
and their features are those it would have had then. Those that the user went to next, one or several at one time, are
positives (reward 1); `NEGATIVES` other candidates stand for all others (reward 0, each weighing as many as it stands
for). So a score begins as the chance that this candidate, of all that would be offered, is what the user goes to next.
What he went to is not put among the candidates where it was not drawn: most candidates are drawn for being popular or
near, most that is put in is neither, and a policy would learn that popular and near items are not what users want.
A user's first step is a lesson too, with the empty history that he had: so does a visitor of the first day look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Examples, Policy
from headrace.policy.behaviour import WEIGHTS
from headrace.simulation.loop import Models
from headrace.streams.describe import Ask
from headrace.streams.engine import Engine
from headrace.streams.items import ItemStore
from headrace.streams.learning import Learning
from headrace.streams.messages import ShopItem
from headrace.streams.policies import Policies
from headrace.streams.recommend import Decision, Recommender
from headrace.streams.records import Batch, Event, Item, decode_transitions, item_key
from headrace.streams.rules.exposure import Exposure
from headrace.streams.settings import Arms, Gate, Settings
from headrace.streams.settings import Policy as PolicySettings
from headrace.streams.start import Parts
from headrace.streams.state import UserState, short_hash
from headrace.streams.vectors import content_hash, fused, projected, text_of
from headrace.streams.versions import arrays_of

NEGATIVES = 8  # a decision
EVIDENCE = 0.1  # what a lesson of the log weighs beside one of a slate that was shown
_BATCH = 32  # events of a micro-batch
_LEARNED_AT_ONCE = 256  # lessons
_BASKET = 8  # items of one time that are learned from together, at most
_ANY_AGE_MS = 10**13  # a log may be sparse: every event may bring a decision


@dataclass(frozen=True)
class Warmed:
    """What the log taught. `behaviour`: popularity and co-occurrence as of its end, by part."""

    events: int
    lessons: int
    behaviour: Parts

    def __str__(self) -> str:
        return f"warm start: {self.events:,} events of the log, {self.lessons:,} next items learned from"


def warm(
    settings: Settings, policy: Policy, items: Sequence[ShopItem], events: Iterable[Event], *, models: Models
) -> Warmed:
    """Lets `policy` learn from `events` (in the order of their times) about `items`. Same log, same bits."""
    log = list(events)
    quiet = settings.model_copy(
        update={
            "policy": PolicySettings(name="popular"),
            "arms": Arms(shares={"popular": 1.0}),
            "gate": Gate(),
            "worker": settings.worker.model_copy(update={"max_trigger_age": _ANY_AGE_MS}),
        }
    )
    store = ItemStore(models.users.tower)
    for record in item_records(settings, items, models):
        store.apply(record)
    store.settle()
    models.users.flush()
    policies = Policies(quiet, store, dim=models.users.dim)
    teacher = _Teacher(quiet, items=store, policies=policies, encoder=models.users, texts=models.texts)
    teacher.look_ahead(quiet, log, policy)
    engine, learning = Engine(quiet, 0, teacher), Learning(quiet, dim=models.users.dim)
    latest: Parts = {}

    def feed(batch: list[Event], offset: int, *, tick: bool) -> int:
        """Applies one record of `interactions`; returns how many parts fell due after it."""
        ts = batch[-1].ts if batch else 0
        effects = engine.apply(Batch("events/0", ts, False, tick, list(batch)), offset)
        if effects.failed:
            raise effects.failed[0][1]
        engine.accept(effects)
        published = 0
        for n, raw in enumerate(effects.transitions):
            for version in learning.apply(decode_transitions(raw), offset * 1_000 + n):
                policies.apply(version)
                latest[version.part] = arrays_of(version)
                published += 1
        return published

    offset = 0
    for first in range(0, len(log), _BATCH):
        batch = log[first : first + _BATCH]
        teacher.welcome(batch, fed=first)
        teacher.fed = first + len(batch)
        feed(batch, offset, tick=True)
        offset += 1
    while feed([], offset, tick=True):  # until every shard has been given out
        offset += 1
    teacher.teach()
    return Warmed(len(log), teacher.lessons if policy.learns else 0, latest)


def item_records(settings: Settings, items: Sequence[ShopItem], models: Models) -> list[Item]:
    """The items as the catalogue would publish them: a text vector, fused with the shop's own where it has one."""
    texts = [text_of(item, settings.catalogue.attributes) for item in items]
    known = sorted({text for text in texts if text})
    rows = [models.texts.encode(known[at : at + 256]) for at in range(0, len(known), 256)]
    of_text = dict(zip(known, np.concatenate(rows), strict=True)) if rows else {}
    records = []
    for place, (item, text) in enumerate(zip(items, texts, strict=True), 1):
        own = projected(item.vector, models.users.text_dim) if item.vector else None
        vector = fused(of_text.get(text), own)
        records.append(
            Item(
                item.item_id, 0, place, vector, content_hash(vector), price=item.price, category=item.category,
                available=item.available is not False, title=item.title,
            )
        )  # fmt: skip
    return records


class _Teacher(Recommender):
    """Takes no decision: where one is due, it teaches which of the candidates the user went to next."""

    fed = 0  # events of the log that the engine has been given, this record's too
    lessons = 0

    def look_ahead(self, settings: Settings, log: Sequence[Event], policy: Policy) -> None:
        self._policy = policy
        self._coming: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # (place in the log, ts, row)
        self._met: set[str] = set()
        self._taught: list[dict[str, NDArray[Any]]] = []
        for place in range(len(log) - 1, -1, -1):
            event = log[place]
            wanted = settings.event_types[event.type].history and WEIGHTS.get(event.type, 1.0) > 0
            row = self.items.rows.get(item_key(event.item_id)) if event.item_id and wanted else None
            if row is not None:
                self._coming[event.user_id].append((place, event.ts, row))

    def _next(self, user: str) -> list[int]:
        """Rows of what the user goes to next, all that he takes at one time; empty where the log does not say."""
        coming = self._coming.get(user, [])
        while coming and coming[-1][0] < self.fed:
            coming.pop()
        basket = [row for _, ts, row in coming[: -_BASKET - 1 : -1] if ts == coming[-1][1]]
        return list(dict.fromkeys(basket))

    def welcome(self, batch: Sequence[Event], *, fed: int) -> None:
        """A lesson from each user of the batch whom the log has not told of before."""
        self.fed = fed
        first = {event.user_id: event for event in reversed(batch) if event.user_id not in self._met}
        self._met.update(first)
        asks = [
            Ask(
                user_id=user, state=UserState(), arm="popular", trigger_kind="event", trigger_id=event.event_id,
                ts=event.ts, sent_ms=event.ts, placement="default", context=event.context or {}, recommendation=b"",
                stream=short_hash("welcome", user), request=None,
            )
            for user, event in first.items()
        ]  # fmt: skip
        if asks:
            self.decide(asks, now=batch[-1].ts)
            for user in first:
                self.evict(user)

    def _choose(self, table: Any, exposure: Exposure) -> list[Decision | None]:
        query = table.query
        for i, ask in enumerate(table.asks):
            rows = self._next(ask.user_id)
            there = np.flatnonzero(query.mask[i])
            taken = np.isin(table.rows[i, there], rows)
            positive, others = there[taken], there[~taken]
            if not len(rows) or not len(others):
                continue
            random = np.random.Generator(np.random.Philox(key=[ask.stream, self.lessons]))
            negatives = random.choice(others, size=min(NEGATIVES, len(others)), replace=False)
            chosen = np.concatenate([positive, negatives])
            weights = np.full(len(chosen), EVIDENCE * len(others) / len(negatives))
            weights[: len(positive)] = EVIDENCE
            n = len(chosen)
            self._taught.append(
                {
                    "states": np.repeat(query.states[i : i + 1], n, axis=0),
                    "contexts": np.repeat(query.contexts[i : i + 1], n, axis=0),
                    "items": query.items[i, chosen].astype(np.float16).astype(np.float32),
                    "scalars": query.scalars[i, chosen],
                    "rewards": (np.arange(n) < len(positive)).astype(np.float64),
                    "weights": weights,
                }
            )
            self.lessons += len(positive)
        if len(self._taught) >= _LEARNED_AT_ONCE:
            self.teach()
        return [None] * len(table.asks)

    def teach(self) -> None:
        """What was gathered is learned as one batch."""
        if not self._taught:
            return
        joined = {name: np.concatenate([lesson[name] for lesson in self._taught]) for name in self._taught[0]}
        n = len(joined["rewards"])
        self._taught.clear()
        self._policy.learn(
            Examples(
                **joined,
                propensities=np.ones(n),
                positions=np.zeros(n, np.int64),
                fresh=np.ones(n, np.bool_),
                ids=np.arange(n, dtype=np.uint64) + np.uint64(self.lessons << 20),
            )
        )
