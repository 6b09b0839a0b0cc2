"""World, worker and learner in one process: the whole loop at full speed, without Kafka and without a wall clock.

The worker's engine and the learner are the ones that serve; only what carries records between them is left out. Events
come in micro-batches and ticks at the pace that the demo would have, so that versions fall as often as there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.export.defaults import ensure_text, ensure_user
from headrace.simulation.catalogue import Catalogue
from headrace.simulation.settings import HOUR_MS
from headrace.simulation.tally import Decided
from headrace.simulation.world import Interaction, World
from headrace.streams.describe import Ask, Describer
from headrace.streams.encoder import Encoded, UserEncoder
from headrace.streams.engine import Engine
from headrace.streams.items import ItemStore
from headrace.streams.learning import Learning
from headrace.streams.messages import ShopItem
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import Batch, Closed, Event, Item, decode_transitions
from headrace.streams.settings import Settings, cache_dir
from headrace.streams.texts import TextEncoder
from headrace.streams.vectors import content_hash, fused, text_of

F32 = NDArray[np.float32]
_POOL = 512  # states of other users from which a shuffled one is drawn


class _Slate(msgspec.Struct):
    recommendation_id: str
    user_id: str
    items: list[_SlateItem]
    policy: _SlatePolicy


class _SlateItem(msgspec.Struct):
    item_id: str


class _SlatePolicy(msgspec.Struct):
    arm: str


_decode_slate = msgspec.json.Decoder(_Slate).decode


@dataclass
class Played:
    """What a run led to. `decided` are closed, shown decisions, all with one horizon; `oracle` is by recommendation."""

    events: int = 0
    decisions: int = 0
    versions: int = 0
    decided: list[Decided] = field(default_factory=list)
    oracle: dict[str, float] = field(default_factory=dict)


class _ShuffledDescriber(Describer):
    def encode(self, asks: Sequence[Ask]) -> Encoded:
        encoded = super().encode(asks)
        pool: list[F32] = self.__dict__.setdefault("_pool_of_states", [])
        rng = self.__dict__.setdefault("_pool_rng", np.random.default_rng(0))
        pool.extend(encoded.states)
        del pool[:-_POOL]
        return encoded._replace(states=np.stack([pool[int(rng.integers(len(pool)))] for _ in asks]))


class ShuffledRecommender(Recommender):
    """Every decision gets the state vector of some other, recent decision: all else is as it was."""

    describing = _ShuffledDescriber


class Models:
    """The encoders, which several loops may share one after the other: they learn nothing."""

    def __init__(self, settings: Settings) -> None:
        self.users = UserEncoder(
            ensure_user(settings.encoder.artifact, text=settings.catalogue.text_model),
            cache_bytes=settings.encoder.cache_bytes,
            window=settings.worker.history,
        )
        self.texts = TextEncoder(ensure_text(settings.catalogue.text_model))


class Loop:
    """One partition, one worker, one learner."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        vectors: NDArray[np.float16],
        *,
        models: Models | None = None,
        shuffled: bool = False,
    ) -> None:
        """`vectors` (I, text_dim) are the items' text vectors: see `text_vectors`."""
        self.settings, self.world = settings, world
        models = models or Models(settings)
        encoder, texts = models.users, models.texts
        encoder.flush()
        self.items = ItemStore(encoder.tower)
        self.policies = Policies(settings, self.items, dim=encoder.dim)
        kind = ShuffledRecommender if shuffled else Recommender
        self.recommender = kind(settings, items=self.items, policies=self.policies, encoder=encoder, texts=texts)
        self.engine = Engine(settings, 0, self.recommender)
        self.learning = Learning(settings, dim=encoder.dim)
        self.played = Played()
        self._vectors = vectors
        self._since: dict[int, int] = {}  # when an item came
        self._offset = self._items_offset = self._transitions_offset = 0
        self._slates: dict[str, _Slate] = {}
        self._now_ms = 1  # of the world; before it begins: what is there then has been there long
        for item in np.flatnonzero(world.live):
            self._apply_item(world.catalogue.message(int(item)))
        self.items.settle()

    def run(self, *, events: int, start_ms: int, span_ms: int, batch: int = 12, tick_every: int = 10) -> Played:
        """Plays `events` events over `span_ms` of the world's time in batches, then settles.

        At the demo's 500 events/s 12 are one batch of 24 ms; every tenth brings a tick, four a second.
        """
        world, batches, ts = self.world, 0, start_ms
        waiting: list[Interaction] = []
        while self.played.events < events:
            ts = start_ms + (self.played.events + len(waiting)) * span_ms // events
            self._now_ms = ts
            for change in world.advance(ts):
                self._apply_item(change)
            self.items.settle()
            waiting += world.due(ts)
            visit = world.visit(ts)
            waiting += visit.events
            slate = self._slates.pop(world.user_ids[visit.user], None) if visit.looks else None
            if slate is not None:
                waiting += self._show(visit.user, slate, ts)
            if len(waiting) >= batch:
                batches += 1
                self._feed(waiting[:batch], tick=batches % tick_every == 0)
                del waiting[:batch]
        self._feed(waiting, tick=True)
        self._settle(ts)
        return self.played

    def replay(self, log: Sequence[Interaction], *, batch: int = 12, tick_every: int = 10) -> None:
        """What happened before: the events go in as they would, the slates made for them are seen by nobody."""
        for n, first in enumerate(range(0, len(log), batch)):
            self._feed(log[first : first + batch], tick=n % tick_every == 0)
        self._slates.clear()
        self.played = Played()

    def _settle(self, ts: int) -> None:
        """No more slates are shown; what is still to come arrives and every decision closes."""
        window = self.settings.close_after_ms
        rest = self.world.due(ts + window)
        for start in range(0, len(rest), 50):
            self._feed(rest[start : start + 50], tick=False)
        self._feed([], tick=True, watermark=ts + window + HOUR_MS)

    def _show(self, user: int, slate: _Slate, ts: int) -> list[Interaction]:
        items = [self.world.index[item.item_id] for item in slate.items]
        worth, _ = self.world.best(user, ts, k=len(items))
        events = self.world.show(user, items, slate.recommendation_id, ts)
        self.played.oracle[slate.recommendation_id] = float(worth[len(events[0].shown or ()) - 1])
        return events

    def _feed(self, events: Sequence[Interaction], *, tick: bool, watermark: int = 0) -> None:
        """One record of `interactions`, and what follows from it."""
        watermark = max([watermark, *(event.ts for event in events)])
        batch = Batch("events/0", watermark, False, tick, [as_event(event) for event in events])
        effects = self.engine.apply(batch, self._offset)
        if effects.failed:
            raise effects.failed[0][1]
        self.engine.accept(effects)
        self._offset += 1
        self.played.events += len(events)
        for user, message in effects.recommendations:
            self._slates[user] = _decode_slate(message)
        self.played.decisions += len(effects.recommendations)
        for record in effects.transitions:
            transitions = decode_transitions(record)
            for closed in transitions.records:
                if isinstance(closed, Closed) and closed.closed_as == "shown":
                    self._closed(closed)
            for version in self.learning.apply(transitions, self._transitions_offset):
                self.played.versions += version.part == self.settings.policy.name
                self.policies.apply(version)
            self._transitions_offset += 1

    def _closed(self, closed: Closed) -> None:
        if closed.ts >= closed.opened_ts + self.settings.close_after_ms:
            reward = float(sum(closed.rewards))
            self.played.decided.append(
                Decided(closed.recommendation_id, closed.user_id, closed.arm, closed.opened_ts, reward)
            )

    def _apply_item(self, message: dict[str, object]) -> None:
        index = self.world.index[str(message["item_id"])]
        vector = self._vectors[index].tobytes()
        self._items_offset += 1
        self.items.apply(
            Item(
                str(message["item_id"]), 0, self._items_offset, vector, content_hash(vector),
                price=float(self.world.catalogue.price[index]),
                category=str(message["category"]),
                available=bool(message["available"]),
                title=str(message["title"]),
                since_ms=self._since.setdefault(index, self._now_ms),
            )
        )  # fmt: skip


def text_vectors(settings: Settings, catalogue: Catalogue) -> NDArray[np.float16]:
    """(I, text_dim) of every item as the catalogue role would make them; kept in the user's cache folder."""
    encoder = TextEncoder(ensure_text(settings.catalogue.text_model))
    texts = [
        text_of(msgspec.convert(catalogue.message(i), ShopItem), settings.catalogue.attributes)
        for i in range(len(catalogue.ids))
    ]
    name = hashlib.sha256("\n".join([encoder.version, *texts]).encode()).hexdigest()[:16]
    path = cache_dir() / f"world-{name}.npy"
    if path.exists():
        found: NDArray[np.float16] = np.load(path)
        return found
    rows = [encoder.encode(texts[start : start + 256]) for start in range(0, len(texts), 256)]
    vectors = np.stack([np.frombuffer(fused(row, None), "<f2") for row in np.concatenate(rows)])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return vectors


def as_event(event: Interaction) -> Event:
    """The event as ingest would pass it on."""
    return Event(
        event.event_id, event.user_id, event.type, event.ts, 0, event.item_id, event.value, event.quantity,
        event.order_id, event.recommendation_id, event.position, None, event.text, None, event.shown,
    )  # fmt: skip
