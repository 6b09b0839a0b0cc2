"""The catalogue in a worker: what is new, changed, removed; neighbours; what histories missed."""

import numpy as np
import pytest

from headrace.streams.items import ItemStore
from headrace.streams.records import Item, item_key

DIM = 8


@pytest.fixture
def store():
    return ItemStore(lambda v: v[:, :DIM], dim=DIM)


def unit(*values):
    vector = np.zeros(DIM, np.float32)
    vector[: len(values)] = values
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def item(name, *, offset=0, vector=(1.0,), **more):
    raw = unit(*vector).astype(np.float16).tobytes() if vector else b""
    return Item(name, 0, offset, raw, str(vector), **more)


def test_items_come_change_and_go(store):
    assert store.apply(item("a", price=9.0, category="sport/shoes")) == "new"
    assert store.apply(item("b", offset=1, vector=(0, 1))) == "new"
    store.settle()
    assert store.pool().tolist() == [0, 1]
    assert store.apply(item("a", offset=2, available=False)) == "changed"
    assert store.pool().tolist() == [1]
    assert store.apply(item("b", offset=3, removed=True)) == "removed"
    assert store.pool().tolist() == []
    assert store.apply(item("b", offset=4, vector=(0, 1))) == "changed"  # it comes back
    assert store.pool().tolist() == [1]


def test_an_older_message_is_ignored(store):
    store.apply(item("a", offset=5, price=9.0))
    assert store.apply(item("a", offset=5, price=1.0)) is None
    assert store.apply(item("a", offset=3, removed=True)) is None
    assert store.pool().tolist() == [0]


def test_a_cold_id_is_eligible_and_has_no_direction(store):
    store.apply(item("a", vector=()))
    assert store.settle() is False
    assert store.pool().tolist() == [0]
    assert not store.vectors[0].any()


def test_states_are_stale_when_a_vector_they_used_changes(store):
    store.apply(item("a"))
    assert store.settle() is False  # nobody can have used it before it came
    store.apply(item("a", offset=1, price=3.0))
    assert store.settle() is False  # the price does not enter a state
    store.apply(item("a", offset=2, vector=(0, 1)))
    assert store.settle() is True


def test_states_are_stale_when_an_item_comes_that_a_history_named(store):
    keys = np.array([item_key("a")], np.uint64)
    assert not store.history_vectors(keys).any()
    store.apply(item("a"))
    assert store.settle() is True
    assert store.history_vectors(keys)[0].tolist() == unit(1).tolist()


def test_neighbours_are_the_nearest_without_the_item_itself(store):
    for i in range(40):
        angle = i * 0.05
        store.apply(item(f"i{i}", offset=i, vector=(np.cos(angle), np.sin(angle))))
    store.settle()
    near = store.neighbours(np.array([20, store.none]))
    assert set(near[0, :4].tolist()) == {18, 19, 21, 22}
    assert 20 not in near[0]
    assert (near[1] == -1).all()


def test_a_query_finds_the_nearest_items(store):
    for i in range(20):
        store.apply(item(f"i{i}", offset=i, vector=(np.cos(i * 0.1), np.sin(i * 0.1))))
    store.settle()
    assert store.nearest(7, unit(1.0, 0.0), 3).tolist() == [0, 1, 2]


def test_rows_survive_growth(store):
    for i in range(3000):
        store.apply(item(f"i{i}", offset=i, vector=()))
    store.apply(item("last", offset=3000, category="c", price=2.0))
    store.settle()
    row = store.rows[item_key("last")]
    assert store.ids[row] == "last"
    assert store.category_names[store.category[row]] == "c"
    assert store.rows_of([item_key("nobody")]).tolist() == [store.none]
    assert not store.available[store.none]


def test_a_pending_item_is_eligible_and_keeps_its_vector_until_the_next_comes(store):
    assert store.apply(item("a", vector=(), pending=True)) == "new"
    assert store.settle() is False and store.pool().tolist() == [0]
    assert store.apply(item("a", vector=(0, 1))) == "changed"  # of the same offset: what was pending
    assert store.apply(item("a", vector=(), pending=True)) is None  # an older record
    store.settle()
    assert store.vectors[0].tolist() == unit(0, 1).tolist()
    store.apply(item("a", offset=1, vector=(), pending=True, price=3.0))
    store.settle()
    assert store.vectors[0].tolist() == unit(0, 1).tolist() and store.log_price[0] == np.float32(np.log1p(3.0))
