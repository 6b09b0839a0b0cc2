"""
The simulated shop's Kafka side: writes `items` and `events`, reads `recommendations`, shows each user his latest slate.

    shop.load_items()        the shelf goes to `items`
    shop.trade(seconds)      pages, slates, clicks at an exact rate, with planted duplicates, rubbish and late events
    shop.settle()            no more slates: what is still to come is sent, and the world's clock passes the last window

It is an outsider: it knows headrace by CONTRACT alone, and measures freshness from its own send to the slate's arrival.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Producer, TopicPartition

from headrace.simulation.planted import Rubbish, rubbish
from headrace.simulation.settings import HOUR_MS
from headrace.simulation.world import Interaction, World
from headrace.streams import kafka
from headrace.streams.errors import BrokerError
from headrace.streams.settings import Settings


class _Trigger(msgspec.Struct):
    kind: str
    id: str


class _Item(msgspec.Struct):
    item_id: str


class _Policy(msgspec.Struct):
    name: str
    version: int
    arm: str


class _Recommendation(msgspec.Struct):
    recommendation_id: str
    user_id: str
    ts: int
    trigger: _Trigger
    items: list[_Item]
    policy: _Policy


@dataclass(frozen=True)
class Shown:
    """A slate that a user looked at, as the shop knows it."""

    recommendation_id: str
    user: int
    arm: str
    made_ts: int
    ts: int
    second: float  # of trading
    items: list[int]  # what was shown, by position
    clicks: int
    oracle: float  # what the best slate would have been expected to earn at so many positions
    altered: bool


@dataclass(frozen=True)
class Habits:
    """How the shop misbehaves, as shares of its messages, and how it speaks."""

    duplicates: float = 0.01
    rubbish: float = 0.005
    late: float = 0.003
    unkeyed: float = 0.03
    foreign_key: float = 0.02
    altered: float = 0.005  # slates in which the shop puts an item of its own
    late_outcomes: int = 20  # clicks on slates whose window has passed, at the end
    seed: int = 0


@dataclass
class Planted:
    """Each planted message: what the summary looks for one by one."""

    duplicates: list[str] = field(default_factory=list)  # event ids that were sent twice
    rubbish: list[Rubbish] = field(default_factory=list)
    late: list[str] = field(default_factory=list)  # event ids: applied, but too late for a slate
    late_outcomes: list[str] = field(default_factory=list)  # event ids: applied, but too late for a reward


class Clock:
    """The world's clock: from `start_ms`, `speed` times as fast as the wall clock, for `seconds` of that.

    Then it stands, however late a busy machine is with the last events: none may lie ahead of the wall clock.
    """

    def __init__(self, *, start_ms: int, speed: float, seconds: float) -> None:
        self._start_ms, self._speed, self._seconds, self._begun = start_ms, speed, seconds, 0.0

    def start(self) -> None:
        self._begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of wall clock since the start, 0 before it."""
        return time.monotonic() - self._begun if self._begun else 0.0

    def now(self) -> int:
        return self._start_ms + int(min(self.elapsed, self._seconds) * self._speed * 1000)


class Shop:
    def __init__(
        self, settings: Settings, world: World, clock: Clock, *, rate: float, habits: Habits | None = None
    ) -> None:
        self.world, self.clock, self.rate = world, clock, rate
        self.habits = habits or Habits()
        self.planted = Planted()
        self.sent = 0  # messages of `events`
        self.shown: list[Shown] = []
        self.freshness: list[tuple[float, float]] = []  # (second of trading, milliseconds)
        self.sent_at_second: list[float] = []  # of trading, one for each message
        self.world_start_ms = clock.now()
        self.recommendations = 0
        self.first_slate: float | None = None  # monotonic time of the first recommendation
        self.versions: dict[str, int] = {}  # arm → latest policy version seen on a slate
        self._settings = settings
        self._rng = np.random.default_rng([self.habits.seed, 5])
        self._producer = Producer(
            kafka.client_config(settings, enable_idempotence=True, linger_ms=2, queue_buffering_max_messages=1_000_000)
        )
        self._lost = 0
        self._sent_at: dict[str, float] = {}
        self._measuring = False
        self._waiting: deque[Interaction] = deque()  # made by the world, not yet sent
        self._again: list[tuple[float, str, str, bytes]] = []  # duplicates to come: when, event, user, message
        self._views: deque[Interaction] = deque(maxlen=200)
        self._slates: dict[str, _Recommendation] = {}  # user → the latest slate he has not seen
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, name="shop-recommendations", daemon=True)

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._reader.start()

    def close(self) -> None:
        self._closing.set()
        if self._reader.is_alive():
            self._reader.join(10)
        self._producer.flush(10)

    def load_items(self) -> int:
        """Writes every item on the shelf to `items`; returns how many."""
        shelf = [self.world.catalogue.message(int(i)) for i in np.flatnonzero(self.world.live)]
        for message in shelf:
            self._write_item(message)
        self.flush()
        return len(shelf)

    def flush(self) -> None:
        """Waits until Kafka has everything. Raises BrokerError if something was lost."""
        left = self._producer.flush(120)
        if left or self._lost:
            raise BrokerError(f"{left + self._lost} of the shop's messages did not reach Kafka: is the broker running?")

    # -- trading ------------------------------------------------------------------------------------------------------

    def trade(self, seconds: float, *, every: Callable[[], None] | None = None, interval_s: float = 0.5) -> None:
        """Sends exactly `rate · seconds` events, each at its time; calls `every` about each `interval_s`."""
        total, begun, next_call = round(self.rate * seconds), self.sent, 0.0
        self.clock.start()
        self._measuring = True
        while self.sent - begun < total:
            behind = min(int(self.clock.elapsed * self.rate) + 1, total) - (self.sent - begun)
            if behind <= 0:
                self._producer.poll(0)
                if every is not None and self.clock.elapsed >= next_call:
                    next_call = self.clock.elapsed + interval_s
                    every()
                time.sleep(min(0.5 / self.rate, 0.002))
            for _ in range(behind):
                self._send_next()
        self._measuring = False

    def settle(self, *, window_ms: int) -> int:
        """Sends what is still to come within the window, clicks that come too late, and a last view on every partition.

        Returns the world's time then, later than `window_ms` after the last slate was shown.
        """
        end = self.clock.now()
        while self._again:
            self._send_again()
        for event in (*self._waiting, *self.world.due(end + window_ms)):
            self._send(event)
        self._waiting.clear()
        closing = end + window_ms + 2 * HOUR_MS
        honest = [shown for shown in self.shown if not shown.altered]
        for i in self._rng.permutation(len(honest))[: self.habits.late_outcomes]:
            shown, event_id = honest[i], f"too-late-{i}"
            self.planted.late_outcomes.append(event_id)
            self._send(
                Interaction(
                    event_id,
                    self.world.user_ids[shown.user],
                    "click",
                    shown.made_ts + window_ms + HOUR_MS,
                    self.world.catalogue.ids[shown.items[0]],
                    recommendation_id=shown.recommendation_id,
                    position=0,
                )
            )
        self.flush()
        for partition in range(self._settings.topics.events_partitions):
            last = Interaction(f"last-{partition}", "u-last", "view", closing, self.world.catalogue.ids[0])
            self._write(msgspec.json.encode(last), partition=partition)
        self.flush()
        return closing

    def _send_next(self) -> None:
        habits, rng = self.habits, self._rng
        if self._again and self._again[0][0] <= time.monotonic():
            self._send_again()
            return
        kind = rng.random()
        if kind < habits.rubbish:
            self._send_rubbish()
        elif kind < habits.rubbish + habits.late and self._views:
            self._send_late()
        else:
            while not self._waiting:
                self._turn_page()
            event = self._waiting.popleft()
            message = self._send(event)
            if event.type == "view":
                self._views.append(event)
            if rng.random() < habits.duplicates:
                # At once, or a moment later: within a batch and across batches.
                at = time.monotonic() + rng.choice([0.0, rng.uniform(0, 0.5)])
                heapq.heappush(self._again, (at, event.event_id, event.user_id, message))

    def _turn_page(self) -> None:
        """The world goes on by one page."""
        world, ts = self.world, self.clock.now()
        for change in world.advance(ts):
            self._write_item(change)
        self._waiting.extend(world.due(ts))
        visit = world.visit(ts)
        self._waiting.extend(visit.events)
        slate = self._slates.pop(world.user_ids[visit.user], None) if visit.looks else None
        if slate is not None:
            self._show(visit.user, slate, ts)

    def _show(self, user: int, slate: _Recommendation, ts: int) -> None:
        world, rng = self.world, self._rng
        items = [world.index[item.item_id] for item in slate.items if item.item_id in world.index]
        altered = bool(rng.random() < self.habits.altered)
        if altered:
            own = np.setdiff1d(np.flatnonzero(world.live), items)
            items[int(rng.integers(min(4, len(items))))] = int(rng.choice(own))
        oracle, _ = world.best(user, ts)
        impression, *clicks = world.show(user, items, slate.recommendation_id, ts)
        assert impression.shown is not None
        depth = len(impression.shown)
        if depth == len(items) == len(slate.items) and not altered and rng.random() < 0.5:
            impression = msgspec.structs.replace(impression, shown=None)  # the whole slate: it may be left out
        self._waiting.extend((impression, *clicks))
        self.shown.append(
            Shown(
                slate.recommendation_id,
                user,
                slate.policy.arm,
                slate.ts,
                ts,
                self.clock.elapsed,
                items[:depth],
                len(clicks),
                float(oracle[depth - 1]),
                altered,
            )
        )

    # -- planted ------------------------------------------------------------------------------------------------------

    def _send_again(self) -> None:
        _, event_id, user_id, message = heapq.heappop(self._again)
        self.planted.duplicates.append(event_id)
        self._write(message, key=self._key(user_id))

    def _send_rubbish(self) -> None:
        items = self.world.catalogue.ids
        item_id = items[int(self._rng.integers(len(items)))]
        piece = rubbish(len(self.planted.rubbish), item_id=item_id, now_ms=self.clock.now())
        self.planted.rubbish.append(piece)

        def delivered(error: Any, message: Any) -> None:
            self._count_lost(error, message)
            if error is None:
                piece.partition, piece.offset = message.partition(), message.offset()

        self._write(piece.value, key=None, on_delivery=delivered)

    def _send_late(self) -> None:
        """A view that was long under way: half a day to three days."""
        view = self._views[int(self._rng.integers(len(self._views)))]
        late = f"late-{len(self.planted.late)}"
        self.planted.late.append(late)
        ts = view.ts - int(self._rng.uniform(12, 72) * HOUR_MS)
        self._send(Interaction(late, view.user_id, "view", ts, view.item_id))

    # -- Kafka --------------------------------------------------------------------------------------------------------

    def _send(self, event: Interaction) -> bytes:
        message = msgspec.json.encode(event)
        if self._measuring:
            self._sent_at[event.event_id] = time.monotonic()
        self._write(message, key=self._key(event.user_id))
        return message

    def _key(self, user_id: str) -> bytes | None:
        """Most messages are keyed by user; some by something else, some not at all."""
        kind = self._rng.random()
        if kind < self.habits.unkeyed:
            return None
        if kind < self.habits.unkeyed + self.habits.foreign_key:
            return b"session-%d" % self._rng.integers(1_000_000)
        return user_id.encode()

    def _write(self, message: bytes, *, key: bytes | None = None, partition: int = -1, on_delivery: Any = None) -> None:
        self.sent += 1
        if self._measuring:
            self.sent_at_second.append(self.clock.elapsed)
        self._produce("events", message, key=key, partition=partition, on_delivery=on_delivery or self._count_lost)

    def _write_item(self, message: dict[str, Any]) -> None:
        key = message["item_id"].encode()
        self._produce("items", msgspec.json.encode(message), key=key, on_delivery=self._count_lost)

    def _produce(self, topic: str, value: bytes, **options: Any) -> None:
        kafka.produce(self._producer, self._settings.topic(topic), value=value, **options)

    def _count_lost(self, error: Any, message: Any) -> None:
        self._lost += error is not None

    def _read(self) -> None:
        """Reads `recommendations` as any shop would: committed slates only, from the first on."""
        consumer = kafka.consumer(self._settings, "simulated-shop", fetch_wait_max_ms=50)
        topic = self._settings.topic("recommendations")
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        decode = msgspec.json.Decoder(_Recommendation).decode
        try:
            while not self._closing.is_set():
                message = consumer.poll(0.1)
                if message is None:
                    continue
                if error := message.error():
                    kafka.check(error)
                    continue
                arrived = time.monotonic()
                slate = decode(message.value() or b"")
                self.recommendations += 1
                self.first_slate = self.first_slate or arrived
                self.versions[slate.policy.arm] = slate.policy.version
                sent = self._sent_at.pop(slate.trigger.id, None)
                if sent is not None:
                    self.freshness.append((self.clock.elapsed, (arrived - sent) * 1000))
                self._slates[slate.user_id] = slate
        finally:
            consumer.close()
