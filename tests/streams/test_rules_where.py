"""Which items a `where` matches, against the same said in plain Python; what cannot be read is refused in one line."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.export.item_tower import ItemTower
from headrace.streams.items import ItemStore
from headrace.streams.records import Item
from headrace.streams.rules.where import Where

NOW = 1_800_000_000_000
DAY = 86_400_000
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def record(name: str, **said: Any) -> Item:
    return Item(name, 0, said.pop("offset", 0), b"", "", **said)


def store_of(items: list[Item]) -> ItemStore:
    store = ItemStore(ItemTower(np.eye(4, dtype=np.float32)))
    for item in items:
        store.apply(item)
    return store


def names(where: dict[str, Any] | None, *items: Item, now: int = NOW) -> set[str]:
    store = store_of(list(items))
    found = Where(where).matches(store, now)
    assert found.shape == (store.none + 1,) and not found[-1]
    return {store.ids[row] for row in np.flatnonzero(found[: len(store)])}


def test_a_category_takes_in_those_below_it() -> None:
    items = [record(name, category=name) for name in ("sport", "sport/shoes", "sporty", "art/sport")]
    items.append(record("none"))
    assert names({"category": "sport"}, *items) == {"sport", "sport/shoes"}
    assert names({"category": ["sport/shoes", "art"]}, *items) == {"sport/shoes", "art/sport"}


def test_words_numbers_booleans_ids_and_ages() -> None:
    a = record("a", price=9.99, attributes={"brand": "x", "promoted": True, "stock": 0.0}, since_ms=NOW - 3 * DAY)
    b = record("b", price=10.0, attributes={"brand": "y", "promoted": False}, since_ms=NOW - 20 * DAY)
    c = record("c")  # says nothing, and was there before ages were counted
    assert names(None, a, b, c) == names({}, a, b, c) == {"a", "b", "c"}
    assert names({"brand": "x"}, a, b, c) == {"a"}
    assert names({"brand": ["y", "x", "z"]}, a, b, c) == {"a", "b"}
    assert names({"price": {"<": 10}}, a, b, c) == {"a"}
    assert names({"price": {">=": 9.99, "<=": 10}}, a, b, c) == {"a", "b"}
    assert names({"promoted": True}, a, b, c) == {"a"}
    assert names({"promoted": False}, a, b, c) == {"b"}
    assert names({"stock": 0}, a, b, c) == {"a"}
    assert names({"item_id": ["c", "a", "unknown"]}, a, b, c) == {"a", "c"}
    assert names({"age": {"<": "14d"}}, a, b, c) == {"a"}
    assert names({"age": {">": "14d"}}, a, b, c) == {"b", "c"}
    assert names({"age": {"<": "14d"}}, a, b, c, now=NOW + 12 * DAY) == set()
    assert names({"brand": ["x", "y"], "price": {">": 9.99}}, a, b, c) == {"b"}
    assert names({"colour": "red"}, a, b, c) == names({"margin": {">": 0}}, a, b, c) == set()


def test_an_attribute_that_is_taken_back_matches_no_more_and_the_store_grows() -> None:
    store = store_of([record(f"i{n}", attributes={"brand": "x", "stock": 1.0}) for n in range(1_024)])
    words, numbers = Where({"brand": "x"}), Where({"stock": {">": 0}})
    store.apply(record("i5", offset=1))
    store.apply(record("i1024", attributes={"stock": 2.0}))  # the arrays are longer now
    assert np.flatnonzero(~words.matches(store, NOW)[: len(store)]).tolist() == [5, 1_024]
    assert np.flatnonzero(~numbers.matches(store, NOW)[: len(store)]).tolist() == [5]


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ({"price": {"<<": 1}}, "where.price: unknown operator '<<'; use <, <=, > or >="),
        ({"price": {}}, 'where.price: say a range, such as {"<": 10}'),
        ({"price": {"<": "1"}}, 'where.price: a range is bound by numbers, such as {"<": 10}'),
        ({"price": {"<": True}}, 'where.price: a range is bound by numbers, such as {"<": 10}'),
        ({"price": {"<": 1e300}}, 'where.price: a range is bound by numbers, such as {"<": 10}'),
        ({"brand": None}, 'where.brand: give a word, a number, true, false, a list of them or {"<": 10}'),
        ({"brand": ["x", {}]}, 'where.brand: give a word, a number, true, false, a list of them or {"<": 10}'),
        ({"brand": []}, "where.brand: the list is empty, so that nothing could match; name one or more"),
        ({"category": 3}, "where.category: give a word, or a list of words, that is not empty"),
        ({"item_id": {"<": 3}}, "where.item_id: give a word, or a list of words, that is not empty"),
        ({"age": "14d"}, 'where.age: say a range, such as {"<": "14d"}'),
        ({"age": {"<": "two weeks"}}, 'where.age: a bound of an age is a duration, such as {"<": "14d"}'),
    ],
)
def test_what_cannot_be_read_is_refused(where: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as told:
        Where(where)
    assert str(told.value) == sentence


def test_conditions_that_say_the_same_have_one_key() -> None:
    assert Where({"brand": ["b", "a", "a"], "price": {"<": 10}}).key == (
        Where({"price": {"<": 10.0}, "brand": ["a", "b"]}).key
    )
    assert Where({"age": {"<": "1d"}}).key == Where({"age": {"<": "24h"}}).key
    assert Where({"brand": "x"}).key == Where({"brand": ["x"]}).key != Where({"brand": "y"}).key
    assert Where(None).key == Where({}).key
    assert Where({"age": {"<": "1d"}}).by_age and not Where({"brand": "age"}).by_age


def test_who_reads_rules_needs_no_catalogue() -> None:
    """Ingest refuses rules by this module, and is without the index of the items."""
    code = "import sys, headrace.streams.rules.where; assert 'headrace.streams.items' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


WORDS = st.sampled_from(["x", "y", "z"])
CATEGORIES = st.sampled_from(["a", "a/b", "a/b/c", "b", "ab"])
NUMBERS = st.sampled_from([0.0, 0.1, 1.0, 9.99, 10.0])
DAYS = st.integers(0, 4)
ATTRIBUTES = st.fixed_dictionaries(
    {}, optional={"brand": WORDS, "promoted": st.booleans(), "stock": NUMBERS, "mixed": WORDS | NUMBERS}
)
ITEMS = st.lists(
    st.builds(
        lambda price, category, attributes, days: {
            "price": price, "category": category, "attributes": attributes, "since_ms": NOW - days * DAY,
        },
        st.none() | NUMBERS, st.none() | CATEGORIES, ATTRIBUTES, DAYS,
    ),
    max_size=8,
)  # fmt: skip


def ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(list(COMPARE)), bounds, min_size=1, max_size=2)


def one_or_more(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values | st.lists(values, min_size=1, max_size=3)


WHERES = st.fixed_dictionaries(
    {},
    optional={
        "category": one_or_more(CATEGORIES),
        "brand": one_or_more(WORDS),
        "promoted": st.booleans(),
        "price": ranges(NUMBERS),
        "stock": ranges(NUMBERS) | one_or_more(NUMBERS),
        "mixed": one_or_more(WORDS | NUMBERS),
        "item_id": one_or_more(st.sampled_from(["i0", "i1", "i2", "elsewhere"])),
        "age": ranges(DAYS.map(lambda days: f"{days}d")),
    },
)


def plainly(where: dict[str, Any], name: str, item: dict[str, Any]) -> bool:
    """The reference."""
    said = {"item_id": name, "price": item["price"], "category": item["category"], **item["attributes"]}
    said["age"] = NOW - item["since_ms"]
    for key, asked in where.items():
        value = said.get(key)
        if value is None:
            return False
        if isinstance(asked, dict):
            bounds = {sign: int(b[:-1]) * DAY if key == "age" else b for sign, b in asked.items()}
            if isinstance(value, str) or not all(COMPARE[sign](value, bound) for sign, bound in bounds.items()):
                return False
            continue
        wanted = asked if isinstance(asked, list) else [asked]
        if key == "category":
            if not any(value == one or value.startswith(one + "/") for one in wanted):
                return False
        elif value not in wanted:
            return False
    return True


@settings(max_examples=200, deadline=None)
@given(ITEMS, ITEMS, WHERES)
def test_matches_as_plainly_said(first: list[dict[str, Any]], then: list[dict[str, Any]], said: dict[str, Any]) -> None:
    """Of all rows and of some, while items change and come."""
    store = store_of([record(f"i{n}", **item) for n, item in enumerate(first)])
    where = Where(said)
    now = dict(enumerate(first))
    for change in ([], then):
        for n, item in enumerate(change):
            store.apply(record(f"i{n}", offset=1, **item))
            now[n] = item
        expected = [plainly(said, f"i{n}", now[n]) for n in range(len(now))]
        assert where.matches(store, NOW)[: len(store)].tolist() == expected
        rows = np.array([*range(len(now))[::-2], store.none], np.int64)
        assert where.matches(store, NOW, rows).tolist() == [*expected[::-2], False]
