"""The rules as arrays: each action's meaning, and that what is kept from one change to the next is what would be made
from nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.streams.items import ItemStore
from headrace.streams.records import Item
from headrace.streams.rules.in_force import InForce
from headrace.streams.rules.rule import Rule
from headrace.streams.rules.standing import Standing
from headrace.streams.settings import Settings

NOW = 1_800_000_000_000
DAY = 86_400_000
SETTINGS = Settings(placements={"home": {}, "cart": {}})


class Said:
    """A book in which every rule is in force until its `until`."""

    def __init__(self) -> None:
        self.version = -1
        self.rules: dict[str, Rule] = {}
        self._lists: dict[tuple[int, int], list[Rule]] = {}

    def put(self, rule_id: str, **said: Any) -> None:
        self.version += 1
        self.rules[rule_id] = Rule(rule_id=rule_id, **said)

    def drop(self, rule_id: str) -> None:
        self.version += 1
        del self.rules[rule_id]

    def in_force(self, now_ms: int) -> list[Rule]:
        here = [rule for rule in self.rules.values() if rule.until is None or rule.until > now_ms]
        return self._lists.setdefault((self.version, len(here)), here)


def store_of(n: int) -> ItemStore:
    store = ItemStore(ItemTower(np.eye(4, dtype=np.float32)))
    chance = random.Random(3)
    for at in range(n):
        store.apply(made(chance, at, 0))
    return store


def made(chance: random.Random, at: int, offset: int) -> Item:
    attributes: dict[str, str | float | bool] = {"stock": float(chance.randrange(3))}
    if chance.random() < 0.8:
        attributes["brand"] = chance.choice("xyz")
    return Item(
        f"i{at}", 0, offset, b"", "",
        price=chance.choice([None, 1.0, 5.0, 9.0]),
        category=chance.choice([None, "a", "a/b", "c"]),
        available=chance.random() < 0.9,
        attributes=attributes,
        since_ms=NOW - chance.randrange(20) * DAY,
    )  # fmt: skip


@pytest.fixture
def store() -> ItemStore:
    return store_of(6)


def test_each_action_as_arrays(store: ItemStore) -> None:
    book, n = Said(), len(store)
    categories = [store.category_names[code] if code >= 0 else "" for code in store.category[:n]]
    book.put("no-a", action="exclude", where={"category": "a"})
    book.put("cheap", action="only", where={"item_id": ["i0", "i1", "i2", "i3"]})
    book.put("b1", action="boost", where={"item_id": ["i0", "i1"]}, value=2)
    book.put("b2", action="boost", where={"item_id": ["i1", "i2"]}, value=3.0)
    book.put("one", action="cap", where={"item_id": ["i0", "i5"]}, value=1)
    book.put("each", action="cap", where={"item_id": ["i0", "i1", "i2", "i3"]}, value={"by": "category", "most": 2})
    book.put("third", action="pin", where={"item_id": "i3"}, value=2)
    book.put("first", action="pin", where={"item_id": "i4"}, value=0)
    book.put("share", action="share", where={"item_id": "i5"}, value={"least": 0.2})
    book.put("rare", action="frequency", value={"most": 3, "within": "7d"})
    book.put("rarer", action="frequency", where={"item_id": "i1"}, value={"most": 1, "within": 5_000})
    book.put("elsewhere", action="exclude", placement="cart", where={"item_id": "i0"})
    force = Standing(SETTINGS, store, book).at("home", NOW)
    assert force.version == book.version and force.excluding == ["no-a", "cheap"]
    assert force.allowed is not None and force.boosts is not None
    assert force.allowed[:n].tolist() == [at < 4 and not name.startswith("a") for at, name in enumerate(categories)]
    assert not force.allowed[-1]
    assert force.boosts.dtype == np.float32 and force.boosts[:n].tolist() == [2, 6, 3, 1, 1, 1]
    (one, groups, most), (each, codes, twice) = force.caps
    assert (one, most, groups[:n].tolist()) == ("one", 1, [0, -1, -1, -1, -1, 0])
    assert (each, twice) == ("each", 2) and codes.dtype == np.int32
    assert [code < 0 for code in codes[:n]] == [at > 3 or not name for at, name in enumerate(categories)]
    for a in range(4):
        for b in range(4):
            if categories[a] and categories[b]:
                assert (codes[a] == codes[b]) == (categories[a] == categories[b])
    assert [(name, position, np.flatnonzero(m).tolist()) for name, position, m in force.pins] == [
        ("first", 0, [4]),
        ("third", 2, [3]),
    ]
    ((share, members, *bounds),) = force.shares
    assert (share, np.flatnonzero(members).tolist(), bounds) == ("share", [5], [0.2, None, 10_000])
    (everything, few) = force.frequency
    assert everything == ("rare", None, 3, 7 * DAY)
    assert (few[0], few[2:]) == ("rarer", (1, 5_000)) and few[1] is not None and np.flatnonzero(few[1]).tolist() == [1]
    for array in (force.allowed, force.boosts, groups, codes, members):
        assert array.shape == (store.none + 1,)


@pytest.mark.parametrize("by", ["brand", "stock", "price", "category", "age", "mixed"])
def test_a_cap_by_an_attribute_has_a_group_for_every_value(by: str) -> None:
    store, book = store_of(30), Said()
    for at, value in enumerate(["x", 2.0, True, None]):
        attributes = {} if value is None else {"mixed": value}
        store.apply(Item(f"m{at}", 0, 0, b"", "", attributes=attributes, since_ms=NOW))  # type: ignore[arg-type]
    book.put("each", action="cap", value={"by": by, "most": 1})
    ((_, groups, _),) = Standing(SETTINGS, store, book).at("home", NOW).caps
    n = len(store)
    column, words = store.numbers(by), store.words(by)
    values: list[object] = []
    for row in range(n):
        if by in ("category", "age"):
            value: object = int(store.category[row]) if by == "category" else int(store.since_ms[row]) // DAY
            values.append(None if value == -1 else value)
        elif words is not None and words.codes[row] >= 0:
            values.append(words.names[words.codes[row]])
        else:
            values.append(None if column is None or np.isnan(column[row]) else float(column[row]))
    assert any(value is not None for value in values)
    for a in range(n):
        assert (groups[a] >= 0) == (values[a] is not None)
        assert all((groups[a] == groups[b]) == (values[a] == values[b]) for b in range(a) if values[a] is not None)


def test_the_same_object_until_something_changes(store: ItemStore) -> None:
    book = Said()
    book.put("r", action="exclude", where={"price": {"<": 6}})
    book.put("elsewhere", action="boost", placement="cart", where={"brand": "x"}, value=2)
    standing = Standing(SETTINGS, store, book)
    first = standing.at("home", NOW)
    assert standing.at("home", NOW + DAY) is first  # nobody asks for an age
    cart = standing.at("cart", NOW)
    assert cart is not first and cart.boosts is not None and first.boosts is None
    store.apply(Item("i0", 0, 1, b"", "", price=7.0, attributes={"brand": "w"}))
    store.apply(Item("i1", 0, 1, b"", "", price=7.0))
    second = standing.at("home", NOW)
    assert second.allowed is not None and second.allowed[:2].all()
    store.apply(Item("i0", 0, 2, b"", "", price=8.0))  # in the same place of every rule
    assert standing.at("home", NOW) is second
    book.put("r", action="exclude", where={"price": {"<": 8}})
    third = standing.at("home", NOW)
    assert third is not second and third.version == book.version
    assert third.allowed is not None and third.allowed[:2].tolist() == [True, False]
    assert second.allowed[:2].all()  # what was given out stays as it was


def test_ages_pass_by_the_minute_for_each_partition(store: ItemStore) -> None:
    since = NOW // 60_000 * 60_000
    store.apply(Item("i0", 0, 1, b"", "", since_ms=since))
    book = Said()
    book.put("new", action="only", where={"age": {"<": "2m"}})
    standing = Standing(SETTINGS, store, book)

    def shown(now: int) -> tuple[InForce, bool]:
        force = standing.at("home", now)
        assert force.allowed is not None
        return force, bool(force.allowed[store.rows_of([store.keys[0].item()])[0]])

    early, there = shown(since + 59_999)
    assert there and shown(since + 119_999) == (early, True)
    late, there = shown(since + 120_000)
    assert not there and late is not early
    assert shown(since + 59_000) == (early, True)  # a partition that lags behind
    assert shown(since + 130_000) == (late, False)


def same(a: InForce, b: InForce) -> None:
    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.dtype, value.tolist()
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    assert plain([a.version, a.allowed, a.boosts, a.pins, a.shares, a.frequency, a.excluding]) == plain(
        [b.version, b.allowed, b.boosts, b.pins, b.shares, b.frequency, b.excluding]
    )
    assert [(cap[0], cap[2]) for cap in a.caps] == [(cap[0], cap[2]) for cap in b.caps]
    for (_, mine, _), (_, other, _) in zip(a.caps, b.caps, strict=True):  # the numbers of groups mean nothing
        assert ((mine < 0) == (other < 0)).all()
        pairs = set(zip(mine.tolist(), other.tolist(), strict=True))
        assert len(pairs) == len(set(mine.tolist())) == len(set(other.tolist()))


def any_rule(chance: random.Random) -> dict[str, Any]:
    wheres: list[dict[str, Any]] = [
        {"brand": chance.choice("xyz")},
        {"brand": ["x", "y"], "category": "a"},
        {"category": chance.choice(["a", "a/b", "c"])},
        {"price": {"<": chance.choice([1, 5, 10])}},
        {"stock": {">=": chance.randrange(3)}},
        {"item_id": [f"i{chance.randrange(30)}" for _ in range(3)]},
        {"age": {chance.choice("<>"): f"{chance.randrange(1, 20)}d"}},
    ]
    actions: list[tuple[str, Any]] = [
        ("exclude", None),
        ("only", None),
        ("boost", chance.choice([0.5, 2])),
        ("cap", chance.randrange(3)),
        ("cap", {"by": chance.choice(["brand", "category", "stock", "price"]), "most": 2}),
        ("pin", chance.randrange(3)),
        ("share", {"least": 0.1, "most": 0.5, "window": 500}),
        ("frequency", {"most": 2, "within": "1d"}),
    ]
    action, value = chance.choice(actions)
    until = NOW + chance.randrange(5) * DAY if chance.random() < 0.2 else None
    return {
        "action": action,
        "value": value,
        "where": chance.choice(wheres),
        "placement": chance.choice(["*", "home", "cart"]),
        "until": until,
    }


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_would_be_made_from_nothing(seed: int) -> None:
    """Rules and items change at random, partitions are at different times, the arrays grow."""
    chance = random.Random(seed)
    store, book = store_of(1_021), Said()
    standing = Standing(SETTINGS, store, book)
    for step in range(150):
        for _ in range(chance.randrange(3)):
            if len(book.rules) > 12 or (book.rules and chance.random() < 0.2):
                book.drop(chance.choice(list(book.rules)))
            else:
                book.put(f"r{chance.randrange(20)}", **any_rule(chance))
        for _ in range(chance.randrange(3)):
            at = len(store) if chance.random() < 0.1 else chance.randrange(40)
            store.apply(made(chance, at, step + 1))
        for _ in range(2):
            placement, now = chance.choice(["home", "cart"]), NOW + chance.randrange(4) * DAY
            same(standing.at(placement, now), Standing(SETTINGS, store, book).at(placement, now))
    assert len(store) > 1_024
