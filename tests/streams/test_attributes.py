"""What rules ask for, from the shop's message through the shelf and its records to the columns of a worker."""

from __future__ import annotations

import math
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.streams import records
from headrace.streams.attributes import carried, since
from headrace.streams.items import ItemStore
from headrace.streams.kafka import Message
from headrace.streams.messages import ShopItem
from headrace.streams.records import Item, decode_item
from headrace.streams.settings import Settings
from headrace.streams.shelf import Shelf
from tests.streams.test_shelf import FIRST, Log, Said, shelf_with

START = 1_790_000_000_000
DAY = 86_400_000


class At(Said):
    """A message of `items` at a time."""

    def __init__(self, offset: int, item: dict[str, Any], at: int) -> None:
        super().__init__(offset, item)
        self._at = at

    def timestamp(self) -> tuple[int, int]:
        return 1, self._at


class Shop:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = Log(monkeypatch)
        self.shelf = shelf_with(FIRST)
        self._end = 0

    def send(self, at: int, **item: Any) -> Item:
        message = At(self._end, {"item_id": "i1", "title": "a shoe", **item}, at)
        self.log.items[message.key()] = message
        self._end += 1
        self.log._end = self._end
        self.shelf.read([cast(Message, message)])
        self.shelf.publish({})
        return self.log.item("i1")

    def restart(self) -> Shelf:
        self.shelf = shelf_with(FIRST)
        return self.shelf


def test_words_numbers_and_booleans_are_carried_and_nothing_else() -> None:
    said = {
        "brand": "x", "seller": "s" * 129, "margin": 3, "stock": 10**400, "promoted": True, "published": None,
        "colour": "red", "empty": "", "sizes": ["s", "m"], "low": -1e16,
    }  # fmt: skip
    names = ("promoted", "brand", "seller", "margin", "stock", "published", "empty", "sizes", "low", "absent")
    found = carried(ShopItem(item_id="i", attributes=said), names)
    assert found == {"brand": "x", "margin": 3.0, "promoted": True}
    assert list(found) == sorted(found) and type(found["margin"]) is float and found["promoted"] is True
    assert carried(ShopItem(item_id="i"), names) == {}


def test_published_is_since_when_where_it_is_a_time() -> None:
    assert since({"published": float(START)}, 5) == START
    for no_time in ("2026-01-01", 1_790_000_000.0, True, math.inf):
        assert since({"published": no_time}, 5) == 5
    assert since({}, 5) == 5


def test_since_is_the_first_message_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(monkeypatch)
    assert shop.send(START, price=1).since_ms == START
    assert shop.send(START + DAY, price=2).since_ms == START
    shop.restart()
    changed = shop.send(START + 2 * DAY, price=3, attributes={"brand": "x"})
    assert (changed.since_ms, changed.attributes) == (START, {"brand": "x"})
    assert shop.send(START + 3 * DAY, attributes={"published": START - DAY}).since_ms == START - DAY


def test_changed_attributes_are_told_and_unchanged_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(monkeypatch)
    said = {"brand": "x", "stock": 3, "promoted": False, "colour": "red"}
    assert shop.send(START, attributes=said).offset == 0
    assert shop.send(START, attributes=dict(reversed(said.items()))).offset == 0
    shop.restart()  # what is known now was read back
    assert shop.send(START, attributes=said).offset == 0
    assert shop.send(START, attributes=said | {"colour": "blue"}).offset == 0  # nobody asks for it
    assert shop.send(START, attributes=said | {"stock": 2}).offset == 4
    assert shop.send(START, attributes={"brand": "x"}).attributes == {"brand": "x"}


def test_a_record_of_the_release_before_is_not_told_again_nor_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has neither attributes nor a time: an item does not become new because its price changes."""
    shop = Shop(monkeypatch)
    shop.send(START, price=1)
    value = shop.log.vectors[b"i1"]
    assert value is not None
    shop.log.vectors[b"i1"] = msgspec.msgpack.encode(msgspec.msgpack.decode(value)[:-2])
    shop.restart()
    assert (shop.log.item("i1").since_ms, shop.log.item("i1").attributes) == (0, {})
    assert shop.send(START + DAY, price=1).offset == 0
    assert shop.send(START + DAY, price=2).since_ms == 0
    store = ItemStore(ItemTower(np.eye(4, dtype=np.float32)))
    store.apply(shop.log.item("i1"))
    assert store.since_ms[0] == 0 and store.since_ms[store.none] == -1


def test_records_become_columns_and_their_changes_are_counted() -> None:
    def told(name: str, offset: int, **said: Any) -> None:
        store.apply(decode_item(records.encode(Item(name, 0, offset, b"", "", **said))))

    store = ItemStore(ItemTower(np.eye(4, dtype=np.float32)))
    assert store.numbers("margin") is None and store.words("brand") is None
    told("a", 0, price=9.99, attributes={"brand": "x", "margin": 0.1, "promoted": True}, since_ms=START)
    told("b", 1)
    margin, brand, promoted = store.numbers("margin"), store.words("brand"), store.numbers("promoted")
    assert margin is not None and brand is not None and promoted is not None
    assert margin[0] == 0.1 and np.isnan(margin[1:]).all() and len(margin) == store.none + 1
    assert promoted[0] == 1 and brand.names[brand.codes[0]] == "x" and (brand.codes[1:] == -1).all()
    assert store.price[0] == 9.99 and np.isnan(store.price[1]) and store.since_ms[0] == START
    changes = store.changes
    assert changes == 2 and store.numbers("price") is store.price
    told(
        "a",
        2,
        title="other words",
        price=9.99,
        since_ms=START,
        attributes={"brand": "x", "margin": 0.1, "promoted": True},
    )
    assert store.changes == changes  # nothing that rules ask for
    for n, said in enumerate(
        [{"price": 1.0}, {"category": "c"}, {"available": False}, {"since_ms": 1}, {"attributes": {"margin": 1.0}}]
    ):
        told("b", 10 + n, **said)
        rows = store.changed_since(changes + n)
        assert store.changes == changes + n + 1 and rows is not None and rows.tolist() == [1]
    told("b", 20, removed=True)
    assert not store.available[1]
    rows = store.changed_since(0)
    assert rows is not None and rows.tolist() == [0, 1]
    for n in range(20_000):
        told("b", 30 + n, price=float(n))
    assert store.changed_since(0) is None  # too long ago
    rows = store.changed_since(store.changes - 8_000)
    assert rows is not None and rows.tolist() == [1]


def test_rules_can_ask_for_what_the_settings_name() -> None:
    said = ShopItem(item_id="i", attributes={"brand": "x", "colour": "red"})
    assert carried(said, Settings().rules.attributes) == {"brand": "x"}
    assert carried(said, Settings(rules={"attributes": ("colour",)}).rules.attributes) == {"colour": "red"}
