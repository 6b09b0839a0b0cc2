"""The shop against a real broker; a few lines in this file answer in headrace's place, with any ten items."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from headrace.simulation.settings import DAY_MS, HOUR_MS, WorldSettings
from headrace.simulation.shop import Clock, Habits, Shop
from headrace.simulation.world import World
from headrace.streams import kafka, topics
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.settings import Settings

pytestmark = pytest.mark.kafka
WINDOW_MS = 7 * DAY_MS
SPEED = 10_080.0


class Answering(threading.Thread):
    """Sends a slate of ten items for every readable event that makes its user due."""

    def __init__(self, settings: Settings, items: list[str]) -> None:
        super().__init__(daemon=True)
        self.settings, self.items, self.sent, self.over = settings, items, 0, threading.Event()
        self.ready = threading.Event()

    def run(self) -> None:
        producer = Producer(kafka.client_config(self.settings, linger_ms=0))
        for message in read(self.settings, "events", self.over, self.ready):
            try:
                event = json.loads(message.value())
                user, due = str(event["user_id"]), event["type"] in ("view", "click", "search", "add_to_cart")
            except Exception:
                continue
            if due and not user.startswith("u-"):
                n = self.sent = self.sent + 1
                answer = {
                    "recommendation_id": f"r-{n:024x}",
                    "user_id": user,
                    "ts": event["ts"],
                    "placement": "default",
                    "trigger": {"kind": "event", "id": event["event_id"]},
                    "items": [{"item_id": self.items[(n * 7 + i) % len(self.items)], "position": i} for i in range(10)],
                    "policy": {"name": "random", "version": 1, "arm": "random"},
                }
                producer.produce(self.settings.topic("recommendations"), json.dumps(answer).encode(), user.encode())
            producer.poll(0)
        producer.flush(5)


def read(settings: Settings, topic: str, over: threading.Event, ready: threading.Event | None = None) -> Iterator[Any]:
    consumer: Consumer = kafka.consumer(settings, "test", fetch_wait_max_ms=20)
    name = settings.topic(topic)
    found = consumer.list_topics(name, timeout=10).topics[name].partitions
    consumer.assign([TopicPartition(name, p, OFFSET_BEGINNING) for p in found])
    while not over.is_set():
        message = consumer.poll(0.05)
        if ready is not None:
            ready.set()
        if message is not None and not message.error():
            yield message
    consumer.close()


@pytest.fixture(scope="module")
def traded(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Shop, float]]:
    """Four seconds of trading at 400 events a second, settled."""
    made = Settings(
        data_dir=tmp_path_factory.mktemp("shop"),
        kafka={"bootstrap.servers": bootstrap},
        topics={"prefix": "shop-test.", "events_partitions": 2},
    )
    topics.create(made)
    begun_ms = int(time.time() * 1000)
    start_ms = begun_ms - int(4 * SPEED * 1000) - WINDOW_MS - 3 * HOUR_MS
    world = World(WorldSettings(items=500, arriving=40, users=150), start_ms=start_ms)
    habits = Habits(duplicates=0.05, rubbish=0.03, late=0.02, late_outcomes=5, altered=0.1)
    shop = Shop(made, world, Clock(start_ms=start_ms, speed=SPEED, seconds=4), rate=400, habits=habits)
    answering = Answering(made, world.catalogue.ids[:500])
    answering.start()
    assert answering.ready.wait(10)
    shop.open()
    try:
        assert shop.load_items() == 500
        begun = time.monotonic()
        shop.trade(4)
        took = time.monotonic() - begun
        assert shop.sent == 1600
        shop.settle(window_ms=WINDOW_MS)
        yield made, shop, took
    finally:
        answering.over.set()
        shop.close()


def test_a_shop_trades_at_its_rate_and_knows_what_it_planted(traded: tuple[Settings, Shop, float]) -> None:
    settings, shop, took = traded
    assert took > 3.99
    late = [second - n / 400 for n, second in enumerate(shop.sent_at_second)]
    assert min(late) > -0.01 and sorted(late)[len(late) // 2] < 0.25  # each at its time, on a busy machine too

    seen: list[Any] = []
    kafka.read_to_end(settings, settings.topic("events"), seen.append)
    assert len(seen) == shop.sent

    decoder, now = Decoder(settings), int(time.time() * 1000)
    by_place = {(m.partition(), m.offset()): m for m in seen}
    good, bad = [], []
    for message in seen:
        read = decoder.event(message.value(), now_ms=now, sent_ms=now)
        (bad if isinstance(read, Rejection) else good).append(read)

    # Rubbish is exactly what the contract refuses, where the shop says it lies and for the reason it gives.
    assert len(bad) == len(shop.planted.rubbish) > 20
    for piece in shop.planted.rubbish:
        found = by_place[piece.partition, piece.offset]
        assert found.value() == piece.value
        refused = decoder.event(found.value(), now_ms=now, sent_ms=now)
        assert isinstance(refused, Rejection) and refused.reason == piece.reason, piece.kind

    copies = Counter(e.event_id for e in good)
    assert copies - Counter(shop.planted.duplicates) == Counter(set(copies))
    assert len(shop.planted.duplicates) > 30 and set(shop.planted.late) <= set(copies)
    assert len(shop.planted.late_outcomes) == 5 and set(shop.planted.late_outcomes) <= set(copies)

    # Users are keys, mostly.
    keyed = sum(m.key() is not None and m.key().decode()[:1] == "u" for m in seen) / len(seen)
    assert 0.85 < keyed < 0.97 and any(m.key() is None for m in seen)


def test_slates_are_shown_and_freshness_is_measured(traded: tuple[Settings, Shop, float]) -> None:
    settings, shop, _ = traded
    messages: list[dict[str, Any]] = []

    planted = {piece.value for piece in shop.planted.rubbish}

    def take(message: Any) -> None:
        if message.value() not in planted:
            messages.append(json.loads(message.value()))

    kafka.read_to_end(settings, settings.topic("events"), take)
    shown = {s.recommendation_id: s for s in shop.shown}
    impressions = [m for m in messages if m.get("type") == "impression"]
    named = {m["recommendation_id"]: m for m in impressions}
    assert len(shown) > 100 and set(named) == set(shown)
    for name, s in shown.items():
        items = [shop.world.catalogue.ids[i] for i in s.items]
        assert named[name].get("shown", items) == items
        assert s.ts > s.made_ts and s.oracle > 0
    assert any("shown" not in m for m in impressions) and any(s.altered for s in shop.shown)
    clicks = [m for m in messages if m.get("type") == "click" and "position" in m]
    own = [m for m in clicks if m.get("recommendation_id") in shown and m["position"] >= 0]
    assert own
    for m in own:
        assert m["item_id"] == shop.world.catalogue.ids[shown[m["recommendation_id"]].items[m["position"]]]

    assert shop.recommendations > 300 and len(shop.freshness) > 200
    assert all(ms > 0 for _, ms in shop.freshness)


def test_the_clock_never_runs_ahead_and_passes_the_last_window(traded: tuple[Settings, Shop, float]) -> None:
    settings, shop, _ = traded
    planted = {piece.value for piece in shop.planted.rubbish}
    times: dict[int, int] = {}

    def take(message: Any) -> None:
        if message.value() not in planted:
            ts = json.loads(message.value())["ts"]
            assert ts < message.timestamp()[1] + 300_000
            times[message.partition()] = max(ts, times.get(message.partition(), 0))

    kafka.read_to_end(settings, settings.topic("events"), take)
    last_shown = max(s.ts for s in shop.shown)
    assert len(times) == 2 and min(times.values()) > last_shown + WINDOW_MS + HOUR_MS
