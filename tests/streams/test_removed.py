"""Rows and contents of removed items: kept for a while, then for others."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.policy.behaviour import CoOccurrence, Popularity, behaviour
from headrace.streams.contents import Old
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.records import Item, item_key
from headrace.streams.removed import Removed
from headrace.streams.settings import Settings
from headrace.streams.versions import version_of

DIM, NOW = 8, 1_790_000_000_000


def make_store(**most: int) -> ItemStore:
    return ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)), removed=Removed(**most))


def vector_of(n: int) -> np.ndarray:
    vector = np.random.default_rng(n).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Catalogue:
    """Writes `item-vectors` as the catalogue does: what is removed leaves its content under a key of its own."""

    def __init__(self, *stores: ItemStore) -> None:
        self.stores, self.log = stores, list[tuple[object, Item | Old]]()

    def write(self, key: object, record: Item | Old) -> None:
        self.log.append((key, record))
        for store in self.stores:
            store.apply(record)

    def add(self, n: int, **more: object) -> None:
        vector = vector_of(n).astype(np.float16).tobytes()
        self.write(n, Item(f"i{n}", 0, len(self.log), vector, f"h{n}", **more))

    def remove(self, n: int) -> None:
        vector = vector_of(n).astype(np.float16).tobytes()
        self.write((n, "old"), Old(f"i{n}", 0, Item(f"i{n}", 0, 0, vector, f"h{n}")))
        self.write(n, Item(f"i{n}", 0, len(self.log), b"", "", removed=True))

    def open(self, numbers: range) -> None:
        for n in numbers:
            self.add(n)
        self.settle()

    def settle(self) -> None:
        for store in self.stores:
            store.settle()

    def read_again(self, store: ItemStore) -> ItemStore:
        """As a process does that starts again when the topic has been compacted."""
        latest = {key: at for at, (key, _) in enumerate(self.log)}
        for at in sorted(latest.values()):
            store.apply(self.log[at][1])
        store.settle()
        return store


def history(store: ItemStore, *names: str) -> list[list[float]]:
    keys = np.array([item_key(name) for name in names], np.uint64)
    return store.history_vectors(keys, np.zeros(len(names), np.uint8)).tolist()


def test_rows_do_not_grow_while_items_come_and_go() -> None:
    store = make_store(rows=20, contents=50, at_once=10)
    shop = Catalogue(store)
    for n in range(2_000):
        shop.add(n)
        if n >= 100:
            shop.remove(n - 100)
        if n % 5 == 0:
            shop.settle()
    shop.settle()
    assert len(store) <= 100 + 20 + 10 + 10 and len(store.rows) == 120
    assert [store.ids[row] for row in store.pool()] != [] and len(store.pool()) == 100
    assert {store.ids[row] for row in store.pool()} == {f"i{n}" for n in range(1_900, 2_000)}
    assert len(store._old) == len(store._removed._all) == 50 and len(store._last) == 30
    for n in (1_900, 1_950, 1_999):  # rows say nothing of who had them before
        row = store.rows[item_key(f"i{n}")]
        assert np.allclose(store.vectors[row], vector_of(n), atol=1e-3) and store.keys[row] == item_key(f"i{n}")
        near = store.neighbours(np.array([row]))[0]
        assert {store.ids[other] for other in near} <= {f"i{m}" for m in range(1_900, 2_000) if m != n}


def test_nobody_is_a_neighbour_by_the_row_of_another() -> None:
    store = make_store(rows=0, contents=9, at_once=5)
    shop = Catalogue(store)
    shop.open(range(40))
    kept = np.array([store.rows[item_key("i0")]])
    first = [store.ids[row] for row in store.neighbours(kept)[0]]
    for name in first[:5]:
        shop.remove(int(name[1:]))
    shop.settle()
    shop.open(range(100, 105))
    assert len(store) == 40, "five rows are others' now"
    assert [store.ids[row] for row in store.neighbours(kept)[0] if row >= 0] == first[5:]
    for name in first[5:10]:
        shop.remove(int(name[1:]))
    shop.settle()
    shop.open(range(105, 110))
    near = store.neighbours(kept)[0]
    assert (near >= 0).all() and {store.ids[row] for row in near}.isdisjoint(first[:10]), (
        "found anew: too few were left"
    )
    assert store.asked_for().tolist() == [item_key("i0")]


def test_a_history_keeps_what_was_removed_and_what_it_keeps_is_the_same_after_a_restart() -> None:
    store = make_store(rows=2, contents=6, at_once=1)
    shop = Catalogue(store)
    shop.open(range(20))
    before = history(store, *(f"i{n}" for n in range(20)))
    store.take_stale()
    for n in (3, 0, 5, 8, 1, 9, 2, 7):
        shop.remove(n)
        shop.settle()
    shop.add(5)  # it comes back, and goes once more: the last to go now
    shop.remove(5)
    shop.settle()
    forgotten = {3, 0}
    assert [n for n in range(20) if history(store, f"i{n}") != [before[n]]] == sorted(forgotten)
    assert store.take_stale() == {item_key(f"i{n}") for n in forgotten}, "their users are encoded anew"
    again = shop.read_again(make_store(rows=2, contents=6, at_once=1))
    assert history(again, *(f"i{n}" for n in range(20))) == history(store, *(f"i{n}" for n in range(20)))
    assert [again.generation(item_key(f"i{n}")) for n in range(20)] == [
        store.generation(item_key(f"i{n}")) for n in range(20)
    ]


def test_a_row_kept_for_a_while_still_brings_what_is_near_and_comes_back_as_it_was() -> None:
    store = make_store(rows=1, contents=9, at_once=1)
    shop = Catalogue(store)
    for n in range(10):
        shop.add(n, category="c", price=4.0)
    shop.settle()
    row = store.rows[item_key("i3")]
    shop.remove(3)
    shop.settle()
    assert (store.neighbours(np.array([row]))[0] >= 0).sum() == 9 and store.category[row] == 0
    shop.remove(4)
    shop.settle()
    assert item_key("i3") not in store.rows
    shop.add(3)
    shop.settle()
    assert store.rows[item_key("i3")] == row, "a free row is taken first"
    assert store.category[row] == -1 and np.isnan(store.price[row]) and store.log_price[row] == 0


def test_who_remembers_rows_asks_again_when_they_become_others() -> None:
    store = make_store(rows=0, contents=9, at_once=1)
    shop = Catalogue(store)
    for n in range(4):
        shop.add(n)
    shop.settle()
    policies = Policies(Settings(), store, dim=DIM)
    pairs, popular = CoOccurrence(), Popularity()
    after = behaviour(
        [item_key("i1")] * 5, ["purchase"] * 5, [NOW] * 5, [np.array([item_key("i0")], "u8").tobytes()] * 5
    )
    pairs.learn(after)
    popular.learn(after)
    for name, part in (("co_occurrence", pairs), ("popularity", popular)):
        for shard, (arrays, meta) in part.shards().items():
            policies.apply(
                version_of(f"{name}/{shard}", arrays, meta, version=1, offset=0, replay_from=0, created_ms=0)
            )
    row, changes = store.rows[item_key("i1")], store.changes
    key = np.array([item_key("i0")], np.uint64)
    assert policies.following(key)[0, 0] == row and policies.popularity(np.array([row]))[0] == pytest.approx(1)
    shop.remove(1)
    shop.settle()
    shop.add(77)
    shop.settle()
    assert store.rows[item_key("i77")] == row
    assert policies.following(key)[0, 0] == -1 and policies.popularity(np.array([row]))[0] == 0
    changed = store.changed_since(changes)
    assert changed is not None and row in changed, "rules ask of it anew"
