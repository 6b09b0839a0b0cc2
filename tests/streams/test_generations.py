"""Items change while users act: a state is what his history and the catalogue's records say, whoever computes it.

A worker that followed everything with a cache, and one that starts from what compaction left, agree bit for bit.
"""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.export.defaults import ensure_user
from headrace.export.item_tower import ItemTower
from headrace.export.names import GAP_THRESHOLDS, PRICE_BUCKETS, category_keys
from headrace.streams.contents import Contents, Old, content_of, decode_record, old_key
from headrace.streams.encoder import History, UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.records import Item, encode, item_key
from headrace.streams.state import UserState
from headrace.streams.vectors import content_hash

RANDOM = np.random.default_rng(3)
ITEMS, TEXT_DIM, DIM = [f"i{n}" for n in range(4)], 12, 64
CATEGORIES, PRICES = [None, "a", "a/b"], [None, 5.0, 50.0]


def some(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


TEXTS = [b"", *(vector.astype(np.float16).tobytes() for vector in some(3, TEXT_DIM))]
TOWER = ItemTower(
    some(DIM, TEXT_DIM),
    np.sort(np.array([item_key(name) for name in ITEMS[:2]], np.uint64)),
    some(2, DIM),
    np.sort(category_keys("a/b")),
    some(2, DIM),
    np.concatenate([np.zeros((1, DIM), np.float32), some(PRICE_BUCKETS - 1, DIM)]),
)


class Catalogue:
    """What a shelf writes to `item-vectors`; `topic` is what compaction leaves of it, in order."""

    def __init__(self) -> None:
        self.topic: dict[bytes, bytes] = {}
        self._had: dict[str, tuple[Contents, Item]] = {}
        self._offset = 0

    def write(self, name: str, text: bytes, category: str | None, price: float | None, kind: str) -> list[Item | Old]:
        self._offset += 1
        had, before = self._had.get(name, (Contents(), None))
        item = Item(name, 0, self._offset, b"", "", available=False, removed=True)
        if kind != "removed":
            pending = kind == "pending"
            vector = b"" if pending else text
            item = Item(name, 0, self._offset, vector, content_hash(vector), price, category, pending=pending)
        item = msgspec.structs.replace(item, generation=had.number_of(content_of(item)))
        after, store, drop = had.then(content_of(item))
        records: list[tuple[bytes, bytes | None]] = []
        if store is not None:
            assert before is not None
            records.append((old_key(name, store), encode(msgspec.structs.replace(before, generation=store))))
        if drop is not None:
            records.append((old_key(name, drop), None))
        records.append((name.encode(), encode(item)))
        self._had[name] = after, item
        for key, value in records:
            self.topic.pop(key, None)
            if value is not None:
                self.topic[key] = value
        return [record for key, value in records if isinstance(record := decode_record(key, value), Item | Old)]


class Worker:
    def __init__(self, *, catalogue: Catalogue | None = None) -> None:
        self.items, self.encoder = ItemStore(TOWER), UserEncoder(ensure_user(), cache_bytes=0)
        for key, value in catalogue.topic.items() if catalogue else ():
            record = decode_record(key, value)
            assert isinstance(record, Item | Old)
            self.items.apply(record)
        self.items.settle()

    def take(self, records: list[Item | Old]) -> None:
        for record in records:
            self.items.apply(record)
        self.items.settle()

    def states(self, users: dict[str, UserState]) -> np.ndarray:
        self.encoder.changed(self.items.take_stale())
        return self.encoder.encode([history(*user) for user in users.items()], self.items.history_vectors)


def history(name: str, state: UserState) -> History:
    columns = (state.types, np.uint8), (state.seconds, np.uint32), (state.generations, np.uint8)
    return History(name, state.count, state.history_keys(), *(np.frombuffer(raw, kind) for raw, kind in columns))


CHANGES = st.tuples(
    st.just("change"),
    st.sampled_from(ITEMS),
    st.sampled_from(TEXTS),
    st.sampled_from(CATEGORIES),
    st.sampled_from(PRICES),
    st.sampled_from(["whole", "whole", "whole", "pending", "removed"]),
)
EVENTS = st.tuples(st.just("event"), st.sampled_from(["u", "v"]), st.sampled_from(ITEMS), st.integers(1, 30))
OTHERS = st.tuples(st.sampled_from(["read", "encode", "restart"]))
STORY = st.lists(st.one_of(CHANGES, CHANGES, EVENTS, EVENTS, OTHERS), min_size=5, max_size=60)


@settings(max_examples=25, deadline=None)
@given(story=STORY)
def test_a_cached_state_is_a_rebuilt_one_whatever_became_of_the_items(story: list[tuple[object, ...]]) -> None:
    catalogue, worker, unread = Catalogue(), Worker(), list[Item | Old]()
    users, second = {"u": UserState(), "v": UserState()}, 1_790_000_000
    for kind, *what in story:
        if kind == "change":
            unread += catalogue.write(*what)  # type: ignore[arg-type]
        elif kind == "event":
            name, item, times = what
            for _ in range(times):
                second += 40
                key = item_key(item)
                users[name].append(
                    key, type_code=1, ts=second * 1000, window=50, generation=worker.items.generation(key)
                )
        elif kind == "read":
            worker.take(unread)
            unread = []
        elif kind == "encode":
            worker.states(users)
        else:
            worker, unread = Worker(catalogue=catalogue), []
            users = {name: UserState.unpack(state.pack()) for name, state in users.items()}
    worker.take(unread)
    cached = worker.states(users)
    assert cached.tobytes() == Worker(catalogue=catalogue).states(users).tobytes()
    for state, user in zip(cached, users.items(), strict=True):
        if user[1].count:
            assert np.abs(state - whole(history(*user), worker.items)).max() < 1e-4


@cache
def window_graph() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(ensure_user() / "window.onnx"), providers=["CPUExecutionProvider"])


def whole(held: History, items: ItemStore) -> np.ndarray:
    """By the whole-window graph."""
    start = -(-max(0, held.count - 50) // 25) * 25 - (held.count - len(held.keys))
    seconds = held.seconds[start:].astype(np.int64)
    feeds = {
        "vectors": items.history_vectors(held.keys[start:], held.generations[start:])[None],
        "types": held.types[start:].astype(np.int64)[None],
        "gaps": np.searchsorted(GAP_THRESHOLDS, np.diff(seconds, prepend=seconds[0]), side="right")[None],
    }
    state: np.ndarray = window_graph().run(None, feeds)[0][0, -1]
    return state


def test_an_item_s_change_leaves_those_who_knew_it_before_as_they_are() -> None:
    catalogue, worker = Catalogue(), Worker()
    worker.take(catalogue.write("i0", TEXTS[1], "a", 5.0, "whole"))
    state, key = UserState(), item_key("i0")
    state.append(key, type_code=1, ts=0, window=50, generation=worker.items.generation(key))
    before = worker.states({"u": state})
    worker.take(catalogue.write("i0", TEXTS[2], "a/b", 50.0, "whole"))
    assert worker.items.generation(key) == 1 and not np.array_equal(worker.items.vectors[0], before[0])
    assert worker.states({"u": state}).tobytes() == before.tobytes() and worker.encoder.rebuilt == 1
    assert Worker(catalogue=catalogue).states({"u": state}).tobytes() == before.tobytes()
    state.append(key, type_code=1, ts=0, window=50, generation=1)
    assert not np.array_equal(worker.states({"u": state}), before)


def test_only_those_who_met_an_unknown_item_are_rebuilt_when_it_comes() -> None:
    catalogue, worker = Catalogue(), Worker()
    worker.take(catalogue.write("i1", TEXTS[1], None, None, "whole"))
    users = {"u": UserState(), "v": UserState()}
    for name, item in (("u", "i0"), ("v", "i1")):
        users[name].append(item_key(item), type_code=1, ts=0, window=50, generation=0)
    before = worker.states(users)
    worker.take(catalogue.write("i0", TEXTS[2], None, None, "whole"))
    worker.take(catalogue.write("i2", TEXTS[2], None, None, "whole"))
    after = worker.states(users)
    assert (worker.encoder.rebuilt, worker.encoder.hits) == (3, 1)
    assert not np.array_equal(after[0], before[0]) and np.array_equal(after[1], before[1])


def test_a_content_that_was_dropped_is_stood_in_for_alike_by_all() -> None:
    catalogue, worker, state = Catalogue(), Worker(), UserState()
    for n, (text, price) in enumerate((text, price) for price in PRICES for text in TEXTS):
        worker.take(catalogue.write("i3", text, None, price, "whole"))
        state.append(item_key("i3"), type_code=1, ts=n, window=50, generation=worker.items.generation(item_key("i3")))
        cached = worker.states({"u": state})
        assert cached.tobytes() == Worker(catalogue=catalogue).states({"u": state}).tobytes()
    assert len(catalogue.topic) == 5 and state.generations[-1] == 11
    assert worker.encoder.rebuilt > 1
