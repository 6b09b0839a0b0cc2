"""A shop of forty items and a dozen users, for tests that need a system with something to do."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from typing import Any

from confluent_kafka import Consumer, Producer

ITEMS = [
    {"item_id": f"i{n}", "title": f"{colour} {thing}", "category": f"{room}/{thing}", "price": 5.0 + n}
    for n, (colour, (room, thing)) in enumerate(
        itertools.product(
            ("red", "blue", "green", "black", "white", "yellow", "old", "large"),
            (("kitchen", "kettle"), ("kitchen", "cup"), ("sport", "shoe"), ("garden", "spade"), ("garden", "lamp")),
        )
    )
]
USERS = [f"u{n}" for n in range(12)]


class Shop:
    """Its users act on what they are shown; it also plants what a real shop sends by mistake. All seeded."""

    def __init__(self, bootstrap: str, *, prefix: str = "headrace.", seed: int = 1) -> None:
        self.error: BaseException | None = None
        self.shown = 0  # slates received
        self._prefix = prefix
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "shop",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
            }
        )

    def trade(self, ended: threading.Event, *, pause_s: float = 0.05) -> None:
        """Until `ended`: a visit every `pause_s`, and an answer to every slate that comes."""
        try:
            for item in ITEMS:
                self.send("items", item["item_id"], item)
            self._consumer.subscribe([self._prefix + "recommendations"])
            while not ended.is_set():
                self.visit(self._random.choice(USERS))
                self._mistake()
                deadline = time.monotonic() + pause_s
                while (left := deadline - time.monotonic()) > 0:
                    for message in self._consumer.consume(20, left):
                        if message.error() is None:
                            self.answer(json.loads(message.value()))
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._producer.flush(5)
            self._consumer.close()

    def send(self, topic: str, key: str | None, message: Any) -> None:
        value = message if isinstance(message, bytes) or message is None else json.dumps(message).encode()
        self._producer.produce(self._prefix + topic, value, key)
        self._producer.poll(0)

    def event(self, user: str, kind: str, **fields: Any) -> dict[str, Any]:
        now = int(time.time() * 1000)
        return {"event_id": f"e{next(self._numbers)}", "user_id": user, "type": kind, "ts": now, **fields}

    def visit(self, user: str) -> None:
        item = self._random.choice(ITEMS)["item_id"]
        if self._random.random() < 0.2:
            self.send("events", user, self.event(user, "search", text="a red kettle"))
        elif self._random.random() < 0.2:
            now = int(time.time() * 1000)
            request = {"request_id": f"q{next(self._numbers)}", "user_id": user, "ts": now, "candidates": [item, "i1"]}
            self.send("requests", user, request)
        else:
            self.send("events", user, self.event(user, "view", item_id=item))

    def answer(self, slate: dict[str, Any]) -> None:
        """What was shown, and now and then a click, a purchase, a return."""
        self.shown += 1
        user, name = slate["user_id"], slate["recommendation_id"]
        if not slate["items"]:
            return
        first = slate["items"][0]["item_id"]
        self.send("events", user, self.event(user, "impression", recommendation_id=name))
        chance = self._random.random()
        if chance < 0.3:
            click = self.event(user, "click", item_id=first, recommendation_id=name, position=0)
            self.send("events", user, click)
            self.send("events", user, click)  # a duplicate
        elif chance < 0.4:
            bought = {"item_id": first, "recommendation_id": name, "order_id": f"o-{name}", "value": 9.5}
            self.send("events", user, self.event(user, "purchase", **bought))
            if chance < 0.33:
                back = self.event(user, "return", item_id=first, order_id=f"o-{name}", value=9.5)
                self.send("events", user, back)

    def _mistake(self) -> None:
        """Rubbish, an unknown field, an outcome of a slate long gone or of nobody's; an item changes, someone comes."""
        user, number = self._random.choice(USERS), next(self._numbers)
        item = ITEMS[number % len(ITEMS)]
        match number % 12:
            case 0:
                self.send("events", None, b"{not json")
            case 1:
                self.send("events", None, self.event(user, "view", item_id="i1", colour="red"))
            case 2:
                gone = "r-" + "00" * 12
                self.send("events", None, self.event(user, "click", item_id="i1", recommendation_id=gone))
            case 3:
                self.send("events", None, self.event(user, "click", item_id="i1", recommendation_id="foreign"))
            case 4:
                self.send("items", item["item_id"], {**item, "price": float(number)})
            case 5:
                self.visit(f"n{number}")  # somebody new
            case _:
                pass
