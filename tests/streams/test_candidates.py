"""Candidates: every source has its share, nothing stands twice, nothing is there that may not be."""

import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.streams.candidates import Candidates
from headrace.streams.items import ItemStore
from headrace.streams.own import own_counts, own_items
from headrace.streams.records import Item, item_key
from headrace.streams.rules.in_force import InForce
from headrace.streams.rules.pools import Pools
from headrace.streams.settings import Consumed
from headrace.streams.state import UserState

DIM, ITEMS, N = 8, 600, 120


class Knowledge:
    """What Policies knows: item i is followed by i + 1 … i + 4, and the last items are popular."""

    def __init__(self, store):
        self._store = store

    def following(self, keys):
        rows = self._store.rows_of(keys.tolist())
        following = rows[:, None] + np.arange(1, 17)
        return np.where((rows == self._store.none)[:, None] | (following >= ITEMS), -1, following)

    def popular_rows(self):
        rows = np.arange(ITEMS - 1, ITEMS - 201, -1)
        return rows[self._store.available[rows]]


@pytest.fixture
def store():
    store = ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)))
    vectors = np.random.default_rng(0).standard_normal((ITEMS, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    for i, vector in enumerate(vectors):
        store.apply(Item(f"i{i}", 0, i, vector.tobytes(), f"{i}"))
    store.settle()
    return store


def draw(store, *, states=None, histories=((),), own=((),), left_out=((),), streams=(1,), **more):
    batch = len(streams)
    candidates = Candidates(store, Knowledge(store), n=N)
    history = np.full((batch, 10), store.none)
    for row, rows in zip(history, histories, strict=True):
        row[: len(rows)] = rows
    keys = np.where(history == store.none, 0, store.keys[history]).astype(np.uint64)
    states = np.zeros((batch, DIM), np.float32) if states is None else states
    rows, mask = candidates.draw(
        history, [None] * batch, keys, np.array(streams, np.uint64), states=states, own=own, left_out=left_out, **more
    )
    assert rows.shape == mask.shape == (batch, N)
    for row, there in zip(rows, mask, strict=True):
        assert len(set(row[there].tolist())) == there.sum() and store.available[row[there]].all()
    return [set(row[there].tolist()) for row, there in zip(rows, mask, strict=True)]


def test_a_newcomer_chooses_among_popular_and_random_items(store):
    (found,) = draw(store)
    assert set(range(ITEMS - 20, ITEMS)) <= found and len(found & set(range(300))) > 10


def test_own_items_followers_and_what_is_nearest_to_the_state_are_candidates(store):
    state = store.vectors[123:124]
    (found,) = draw(store, states=state, histories=[[40, 80]], own=[[7, 9, 11]])
    assert {7, 9, 11} <= found
    assert {41, 42, 43, 44, 81, 82, 83, 84} <= found
    assert set(store.index.exactly(state, 20)[0].tolist()) <= found
    assert set(store.neighbours(np.array([40]))[0, :4].tolist()) <= found


def test_no_source_crowds_another_out(store):
    own = list(range(100, 400))
    state = store.vectors[123:124]
    (found,) = draw(store, states=state, histories=[list(range(6))], own=[own])
    assert set(own[:30]) <= found
    assert set(range(ITEMS - 20, ITEMS)) <= found and {6, 7, 8, 9} <= found
    assert set(store.index.exactly(state, 20)[0].tolist()) <= found


def test_what_may_not_be_shown_takes_no_place(store):
    state = store.vectors[123:124]
    near = store.index.exactly(state, 20)[0].tolist()
    (found,) = draw(store, states=state, own=[near[:10] + list(range(50))], left_out=[near[:15]])
    assert not found & set(near[:15]) and set(near[15:]) <= found
    assert set(range(30)) - set(near) <= found


def test_an_item_that_is_gone_is_no_candidate_whoever_took_it(store):
    for i in range(0, 40, 2):
        store.apply(Item(f"i{i}", 0, ITEMS + i, b"", "", removed=True))
    store.settle()
    (found,) = draw(store, states=store.vectors[:1], histories=[[0, 4]], own=[[0, 2, 4, 5]])
    assert 5 in found and not found & set(range(0, 40, 2))


def test_equal_input_gives_equal_candidates_whatever_else_is_in_the_batch(store):
    states = store.vectors[[1, 2, 3]]
    more = {"histories": [[1], [2, 3], []], "own": [[5], [6, 7], []], "left_out": [[], [9], [10]]}
    together = draw(store, states=states, streams=(1, 2, 3), **more)
    for i in range(3):
        alone = draw(store, states=states[i : i + 1], streams=(i + 1,), **{k: [v[i]] for k, v in more.items()})
        assert alone == [together[i]]


# -- placements and anchors -------------------------------------------------------------------------------------------


def test_what_is_similar_and_complementary_to_the_anchor_has_places_of_its_own(store):
    """Even where every other source has plenty to offer."""
    state, anchor = store.vectors[123:124], 300
    known = {"states": state, "histories": [[anchor, *range(9)]], "own": [list(range(100, 200))]}
    (found,) = draw(store, anchored=np.array([True]), left_out=[[anchor]], **known)
    similar = set(store.neighbours(np.array([anchor]))[0, :20].tolist())
    assert similar | set(range(301, 316)) <= found and anchor not in found
    assert set(range(100, 115)) <= found and set(range(ITEMS - 10, ITEMS)) <= found  # half of what others had
    (without,) = draw(store, left_out=[[anchor]], **known)
    assert not set(range(306, 316)) <= without


def test_an_anchor_steers_its_own_decision_alone(store):
    histories, anchored = [[300, 5], [300, 5]], np.array([True, False])
    together = draw(store, histories=histories, anchored=anchored, own=((), ()), left_out=((), ()), streams=(1, 2))
    assert together[:1] == draw(store, histories=histories[:1], anchored=anchored[:1])
    assert together[1:] == draw(store, histories=histories[1:], streams=(2,))


def test_an_anchor_that_the_catalogue_does_not_know_steers_nothing(store):
    (found,) = draw(store, histories=[[store.none]], anchored=np.array([True]))
    assert len(found) > 60


def test_a_placement_has_candidates_of_its_sources_alone(store):
    known = {"histories": [[300]], "own": [[7, 8]], "anchored": np.array([True])}
    (found,) = draw(store, sources={"similar": 0.0, "complementary": 0.0}, **known)
    similar = set(store.neighbours(np.array([300]))[0, :20].tolist())
    assert found == similar | set(range(301, 316))
    (found,) = draw(store, sources={"own": 0.0}, **known)
    assert found == {7, 8}
    (found,) = draw(store, sources={"popular": 0.0}, **known)
    assert len(found) > 60 and min(found) >= ITEMS - 200
    assert draw(store, sources={"own": 0.0}) == [set()]


def test_shares_say_how_many_of_the_places_a_source_has(store):
    (found,) = draw(store, own=[list(range(300))], sources={"own": 0.5, "popular": 0.1})
    assert set(range(60)) <= found and 60 not in found
    (found,) = draw(store, histories=[list(range(0, 60, 10))], sources={"following": 0.1})
    assert found == {i + j for i in range(0, 60, 10) for j in (1, 2)}


# -- what a user took -------------------------------------------------------------------------------------------------


def bought(*names, rules, window=50):
    state = UserState()
    for second, name in enumerate(names):
        state.consume(item_key(name), second=second, rules=rules)
        state.append(item_key(name), type_code=1, ts=1_000 * second, window=window)
    return state


def rows_of(*names):
    return {item_key(name): row for row, name in enumerate(names)}


def test_own_items_are_ordered_by_how_often_then_by_how_recently_they_were_taken():
    state = bought("a", "b", "b", "c", "a", "d", rules=Consumed(default="keep"))
    assert list(own_items(state, rows_of("a", "b", "c", "d")).items()) == [(0, 2), (1, 2), (3, 1), (2, 1)]
    assert list(own_items(state, rows_of("x", "b"))) == [1]  # what the catalogue does not know is left out


def test_counts_outlive_the_history_and_its_order():
    state = bought("a", "b", "a", "b", "b", *"cdefgh", rules=Consumed(default="keep"), window=3)
    state = UserState.unpack(state.pack())
    own = own_items(state, rows_of(*"abcdefgh"))
    assert list(own.items())[:2] == [(1, 3), (0, 2)]


def test_of_too_many_counts_the_smallest_is_forgotten_and_of_these_the_oldest():
    state = bought("a", "a", "b", "c", "d", rules=Consumed(default="keep", cap=3))
    assert state.note().taken == {item_key("a"): 2, item_key("c"): 1, item_key("d"): 1}


def test_nothing_is_counted_where_no_item_may_come_again():
    state = bought("a", "a", rules=Consumed())
    assert state.note().taken == {} and len(state.note().consumed) == 1
    assert bought("a", "a", rules=Consumed(items={"a": "7d"})).note().taken == {item_key("a"): 2}


def test_an_item_known_as_consumed_before_counts_began_counts_from_two():
    state = bought("a", rules=Consumed())
    state.consume(item_key("a"), second=9, rules=Consumed(default="keep"))
    assert state.note().taken == {item_key("a"): 2}


def test_the_scalar_says_how_often_whatever_else_the_user_took():
    rows = np.array([[0, 1, 2], [0, 1, 2]])
    shares = own_counts([{1: 7, 0: 1}, {}], rows)
    np.testing.assert_allclose(shares[0], [np.log(2) / np.log(21), np.log(8) / np.log(21), 0], atol=1e-6)
    assert not shares[1].any() and own_counts([{1: 7}], rows[:1])[0, 1] == shares[0, 1]
    assert own_counts([{0: 20, 1: 500}], rows[:1])[0, :2].tolist() == [1, 1]


def test_candidates_for_pins_and_shares_are_of_the_decisions_own_places(store):
    pinned, shared = (np.isin(np.arange(store.none + 1), rows) for rows in (range(100), range(100, 300)))
    force = InForce(pins=[("first-of-all", 3, pinned)], shares=[("some", shared, 0.2, None, 1_000)])
    rng = np.random.default_rng(3)
    states, streams = rng.standard_normal((4, DIM)).astype(np.float32), np.arange(4, dtype=np.uint64)
    ks = [2, 10, 20, 10]

    def drawn(at, places):
        of = {"states": states[at], "streams": streams[at]}
        within = Pools(store, Knowledge(store)).within("home", force, ks=places, **of)
        nothing = [()] * len(at)
        return draw(store, histories=nothing, own=nothing, left_out=nothing, within=within, **of)

    together = drawn([0, 1, 2, 3], ks)
    for i, k in enumerate(ks):
        assert drawn([i], [k]) == [together[i]]
    assert drawn([0, 1, 2, 3], [20] * 4) != together  # k decides
