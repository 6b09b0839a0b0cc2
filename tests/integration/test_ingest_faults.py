"""Ingest as it runs, in processes of its own: killed, without a broker, without it for a while. Each message once."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer

from headrace.streams import kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.records import Event, decode_batch
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = [pytest.mark.kafka, pytest.mark.crash]

RUBBISH_EACH = 20


@dataclass
class Shop:
    """Sends about 1,000 messages/s until stopped, every twentieth of them rubbish; loses and doubles nothing itself."""

    settings: Settings
    sent: list[str] = field(default_factory=list)
    rubbish: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="shop")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        config = kafka.client_config(self.settings, enable_idempotence=True, partitioner="murmur2_random")
        producer, topic = Producer(config), self.settings.topic("events")
        while not self._stop.wait(0.01):
            for _ in range(10):
                number = len(self.sent) + len(self.rubbish)
                if number % RUBBISH_EACH == 0:
                    self.rubbish.append(f"rubbish {number}".encode())
                    producer.produce(topic, self.rubbish[-1])
                    continue
                self.sent.append(f"e{number}")
                event = {"event_id": self.sent[-1], "user_id": f"u{number % 97}", "item_id": "i1", "type": "view"}
                event |= {"ts": time.time_ns() // 1_000_000}
                producer.produce(topic, json.dumps(event), event["user_id"])
            producer.poll(0)
        assert producer.flush(60) == 0


@contextmanager
def selling(settings: Settings) -> Iterator[Shop]:
    shop = Shop(settings)
    try:
        yield shop
    finally:
        shop.stop()


class Books:
    """What came out, read as it comes: event ids in `interactions`, and the bytes in `dead-letters`."""

    def __init__(self, settings: Settings) -> None:
        self.events: Counter[str] = Counter()
        self.dead: Counter[bytes] = Counter()
        self._settings = settings
        self._reader = kafka.consumer(settings, "books")
        self._reader.subscribe([settings.topic("interactions"), settings.topic("dead-letters")])

    def read(self) -> None:
        for message in kafka.consume(self._reader, 1_000, 0.1):
            value = message.value()
            if message.error() or value is None:
                continue
            if message.topic() == self._settings.topic("dead-letters"):
                self.dead[value] += 1
            else:
                self.events.update(e.event_id for e in decode_batch(value).entries if isinstance(e, Event))

    def hold(self, shop: Shop) -> bool:
        """Whether nothing is missing any more."""
        self.read()
        return len(self.events) >= len(shop.sent) and len(self.dead) >= len(shop.rubbish)

    def close(self) -> None:
        self._reader.close()


def assert_each_once(settings: Settings, shop: Shop, wait_for: WaitFor) -> None:
    books = Books(settings)
    try:
        wait_for(lambda: books.hold(shop), 60)
    finally:
        books.close()
    assert books.events == Counter(shop.sent)
    assert books.dead == Counter(shop.rubbish)


def test_killed_under_load(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Two processes, four times kill -9: nothing lost, nothing twice."""
    mine = settings()
    rng = random.Random(5)
    with Supervisor(mine, ["ingest"]) as first, Supervisor(mine, ["ingest"]) as second:
        wait_for(lambda: first.ready() and second.ready(), 60)
        with selling(mine) as shop:
            for kill in range(1, 5):
                target = (first, second)[kill % 2]
                before, aim = len(shop.sent), rng.randrange(200, 600)
                wait_for(lambda n=before + aim: len(shop.sent) >= n, 60)
                os.kill(target.pids()["ingest"], signal.SIGKILL)
                wait_for(lambda t=target, n=(kill + 1) // 2: t.restarts()["ingest"] == n, 60)
        assert_each_once(mine, shop, wait_for)
        assert first.restarts()["ingest"] == second.restarts()["ingest"] == 2


def test_started_before_the_broker_and_left_by_it(tmp_path: Path, wait_for: WaitFor) -> None:
    """It waits for Kafka in one line now and then; after the broker's kill -9 it goes on where it was."""
    lines: list[str] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    broker = Broker(tmp_path / "broker", port=port)
    mine = Settings(
        data_dir=tmp_path / "data",
        kafka={"bootstrap.servers": f"127.0.0.1:{port}"},
        topics={"prefix": "t."},
        metrics={"port": 0},
    )
    try:
        with Supervisor(mine, ["ingest"], output=lambda _name, line: lines.append(line)) as role:
            wait_for(lambda: any("Kafka" in line for line in lines), 60)
            assert not role.ready()
            broker.start()
            topics.create(mine)
            wait_for(role.ready, 60)
            with selling(mine) as shop:
                wait_for(lambda: len(shop.sent) >= 500)
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGKILL)
                wait_for(lambda: not broker.running)
                away = len(shop.sent)
                wait_for(lambda: len(shop.sent) >= away + 1_000, 60)
                broker.start()
            assert_each_once(mine, shop, wait_for)
        assert len(lines) < 40, lines
    finally:
        broker.stop()
