"""The catalogue in a worker: what is new, changed, removed; neighbours; what histories missed."""

import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.export.names import PRICE_BUCKETS, category_keys, price_bucket
from headrace.streams.contents import Old
from headrace.streams.items import ItemStore
from headrace.streams.records import Item, item_key

DIM = 8


@pytest.fixture
def store():
    return ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)))


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
    store.settle()
    assert not store.take_stale()
    assert store.pool().tolist() == [0]
    assert not store.vectors[0].any()


def stale_after(store, *records):
    for record in records:
        store.apply(record)
    store.settle()
    return store.take_stale()


def history(store, *numbers, name="a"):
    """What a history gets that names the item with these numbers."""
    keys = np.full(len(numbers), item_key(name), np.uint64)
    return store.history_vectors(keys, np.array(numbers, np.uint8)).tolist()


def test_states_are_stale_when_a_content_they_used_becomes_another(store):
    assert not stale_after(store, item("a"))  # nobody can have used it before it came
    assert not stale_after(store, item("a", offset=1, price=3.0))  # the same vector
    assert not stale_after(store, item("a", offset=2, vector=(0, 1), generation=1))  # histories have the first one
    assert stale_after(store, item("a", offset=3, vector=(1, 1), generation=1)) == {item_key("a")}


def test_states_are_stale_when_an_item_comes_that_a_history_named(store):
    assert history(store, 0) == [[0.0] * DIM]
    assert stale_after(store, item("a", pending=True, vector=())) == set()
    assert history(store, 0) == [[0.0] * DIM]
    assert stale_after(store, item("a")) == {item_key("a")}
    assert history(store, 0) == [unit(1).tolist()]
    assert not stale_after(store, item("b"))


def test_a_history_keeps_the_content_that_an_item_had(store):
    old = Old("a", 0, item("a"))
    stale_after(store, item("a"))
    assert store.generation(item_key("a")) == 0
    assert not stale_after(store, old, item("a", offset=1, vector=(0, 1), generation=1))
    assert store.generation(item_key("a")) == 1
    assert history(store, 0, 1) == [unit(1).tolist(), unit(0, 1).tolist()]
    stale_after(store, Old("a", 1, item("a", vector=(0, 1))), item("a", offset=2, removed=True, generation=1))
    assert history(store, 0, 1) == [unit(1).tolist(), unit(0, 1).tolist()]
    assert store.generation(item_key("a")) == 1


def test_a_new_worker_gives_a_history_what_the_old_one_gave(store):
    """It reads what compaction has left: the item's own record, and those of the contents it had."""
    stale_after(store, Old("a", 2, item("a", vector=(0, 1))), item("a", vector=(1, 1), generation=3))
    stale_after(store, Old("gone", 4, item("gone")), item("gone", offset=9, vector=(), removed=True, generation=4))
    stale_after(store, Old("late", 1, item("late")), item("late", vector=(), pending=True, generation=1))
    assert np.allclose(history(store, 3, 2), [unit(1, 1), unit(0, 1)], atol=1e-3)
    assert history(store, 4, name="gone") == history(store, 1, name="late") == [unit(1).tolist()]
    assert [store.generation(item_key(name)) for name in ("a", "gone", "late", "nobody")] == [3, 4, 1, 0]
    assert not store.take_stale()


def test_the_oldest_content_that_is_kept_stands_in_for_one_that_was_dropped(store):
    stale_after(store, Old("a", 1, item("a")), Old("a", 2, item("a", vector=(0, 1))))
    stale_after(store, item("a", vector=(0, 0, 1), generation=3))
    assert history(store, 0, 1) == [unit(1).tolist(), unit(1).tolist()]
    assert stale_after(store, Old("a", 1, None)) == {item_key("a")}
    assert history(store, 0, 1, 2) == [unit(0, 1).tolist()] * 3
    assert stale_after(store, Old("a", 2, None)) == {item_key("a")}
    assert history(store, 0, 258 & 255, 259 & 255) == [unit(0, 0, 1).tolist()] * 3  # a byte tells of 256 contents


def test_id_category_and_price_make_the_vector_where_they_were_trained():
    eye = np.eye(DIM, dtype=np.float32)
    prices = np.zeros((PRICE_BUCKETS, DIM), np.float32)
    prices[price_bucket(np.array([20.0], np.float32))] = eye[3]
    tower = ItemTower(eye, np.array([item_key("a")], np.uint64), eye[1:2], category_keys("c"), eye[2:3], prices)
    store = ItemStore(tower)
    records = [
        item("a"),
        item("b", category="c"),
        item("c", price=20.0),
        item("a2"),
        item("d", vector=(), category="c"),
    ]
    stale_after(store, *records)
    wanted = [unit(1, 1), unit(1, 0, 1), unit(1, 0, 0, 1), unit(1), unit(0, 0, 1)]
    assert np.allclose(store.vectors[:5], wanted, atol=1e-3)
    assert not stale_after(store, item("c", offset=1, price=80.0, generation=1))
    assert np.allclose(store.vectors[2], unit(1), atol=1e-3)


def test_a_vector_of_another_text_encoder_is_left_to_its_own_set(store):
    mine = ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)), text_version="mine")
    stale_after(mine, item("a", text_version="another"), item("b", text_version="mine"), item("c"))
    assert mine.made[:3].tolist() == [False, True, True]
    other = Item("a", 0, 0, np.ones(2 * DIM, np.float16).tobytes(), "other")
    stale_after(store, other, Old("a", 7, other))
    assert not store.made[0] and history(store, 0, 7) == [[0.0] * DIM] * 2
    assert stale_after(store, item("a", offset=1)) == {item_key("a")}


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
    store.settle()
    assert store.pool().tolist() == [0]
    assert store.apply(item("a", vector=(0, 1))) == "changed"  # of the same offset: what was pending
    assert store.apply(item("a", vector=(), pending=True)) is None  # an older record
    store.settle()
    assert store.vectors[0].tolist() == unit(0, 1).tolist()
    store.apply(item("a", offset=1, vector=(), pending=True, price=3.0))
    store.settle()
    assert store.vectors[0].tolist() == unit(0, 1).tolist() and store.log_price[0] == np.float32(np.log1p(3.0))
