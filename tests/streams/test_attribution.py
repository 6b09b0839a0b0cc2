"""What entries do for items: the quick way held against leaving them out of the history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.export.defaults import ensure_user
from headrace.export.item_tower import ItemTower
from headrace.export.names import GAP_THRESHOLDS
from headrace.policy.behaviour import CoOccurrence, Popularity, behaviour
from headrace.policy.checks import make_examples
from headrace.policy.registry import make as policy_of
from headrace.streams.candidates import RECENT
from headrace.streams.describe import Ask
from headrace.streams.encoder import UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.own import own_counts, own_items
from headrace.streams.reasons.attribution import Attribution
from headrace.streams.reasons.left_out import scalars_without
from headrace.streams.recent import NEAR, Recent, recent_of
from headrace.streams.records import Item, Request, item_key
from headrace.streams.rules.exposure import Exposure
from headrace.streams.scalars import scalars
from headrace.streams.state import Notes, UserState
from tests.streams.test_encoder import History, history, lookup

DIM, ITEMS, T0 = 8, 60, 1_790_000_000


class Known:
    """Behaviour as `policies.Policies` has it, of a seeded shop."""

    def __init__(self, store: ItemStore) -> None:
        self.store, self.popular, self.pairs = store, Popularity(), CoOccurrence(cap=8)
        rng = np.random.default_rng(3)
        items = [item_key(f"i{i}") for i in rng.integers(0, ITEMS, 900).tolist()]
        before = [np.array(items[max(0, n - 4) : n][::-1], "<u8").tobytes() for n in range(900)]
        types = np.where(rng.random(900) < 0.3, "purchase", "view").tolist()
        seen = behaviour(items, types, [T0 * 1000 + n for n in range(900)], before)
        self.popular.learn(seen)
        self.pairs.learn(seen)

    def popularity(self, rows: Any) -> Any:
        return self.popular.scores(self.store.keys[rows])

    def co_occurrence(self, recent: Any, keys: Any) -> Any:
        return self.pairs.scores(recent, keys)

    def shares(self, recent: Any, keys: Any) -> Any:
        return self.pairs.shares(recent, keys)


@pytest.fixture(scope="module")
def store() -> ItemStore:
    store = ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)))
    vectors = np.random.default_rng(0).standard_normal((ITEMS, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    for i, vector in enumerate(vectors):
        price = None if i % 7 == 0 else 1.0 + i
        store.apply(Item(f"i{i}", 0, i, vector.tobytes(), f"{i}", price, ("", "a", "b", "b/c")[i % 4] or None))
    store.settle()
    return store


def ask(rng: np.random.Generator, entries: int, *, anchor: str | None = None, taken: bool = False) -> Ask:
    """A user of few items, some of them twice, some unknown to the catalogue."""
    state = UserState()
    for n in range(entries):
        name = f"i{rng.integers(0, 25)}" if rng.random() < 0.9 else f"unknown {n}"
        state.append(item_key(name), type_code=1, ts=(T0 + 60 * n) * 1000, window=50)
    if taken:
        state.notes = Notes(taken={int(state.history_keys()[0]): 4, int(state.history_keys()[-1]): 1})
    asked = Request("q", "u", T0 * 1000, T0 * 1000, anchor_item_id=anchor) if anchor else None
    return Ask("u", state, "policy", "event", "e", 0, 0, "default", {}, b"", 0, asked)


def without(one: Ask, j: int) -> Ask:
    """Without the j-th latest entry, which is the anchor where there is one."""
    if one.request is not None:
        if j == 0:
            return replace(one, request=None)
        j -= 1
    left = UserState.unpack(one.state.pack())
    if j < len(left.types):
        left.reorder(np.delete(np.arange(len(left.types)), len(left.types) - 1 - j))
        left.count = len(left.types)
    return replace(one, state=left)


def signals(store: ItemStore, known: Known, asks: list[Ask], rows: Any) -> tuple[Any, Recent]:
    recent = recent_of(asks, store, lambda user: {})
    own = own_counts([own_items(one.state, store.rows) for one in asks], rows)
    found = scalars(
        store, known, rows, store.vectors[rows], history=recent.rows[:, :RECENT], recent=recent.near[:, : NEAR - 1],
        keys=recent.keys[:, :RECENT], own=own,
    )  # fmt: skip
    return found, recent


@pytest.mark.parametrize("entries", [RECENT, 3])
def test_signals_without_an_entry_are_those_of_a_history_without_it(store: ItemStore, entries: int) -> None:
    rng, known = np.random.default_rng(1), Known(store)
    lengths = (0, 1, 2, 5, 6, 9, 10, 11, 12, 30)
    asks = [ask(rng, n, taken=n == 9) for n in lengths] + [ask(rng, n, anchor="i4") for n in lengths]
    rows = rng.integers(0, 25, (len(asks), 7))
    columns, recent = signals(store, known, asks, rows)
    states = [one.state for one in asks]
    found = scalars_without(store, known, recent, states, rows, store.vectors[rows], columns, entries=entries)
    assert found.shape == (len(asks), entries, *columns.shape[1:])
    changed = 0
    for j in range(entries):
        wanted, _ = signals(store, known, [without(one, j) for one in asks], rows)
        there = recent.codes[:, j] != 255
        np.testing.assert_allclose(found[there, j], wanted[there], atol=2e-6)
        changed += int((np.abs(wanted[there] - columns[there]) > 1e-3).sum())
    assert changed > 100 * entries


def test_the_state_before_the_latest_event_is_the_one_of_a_history_without_it() -> None:
    encoder = UserEncoder(ensure_user(), cache_bytes=0)
    counts = [1, 2, 26, 50, 52, 70, 99, 140]
    for turn in range(2):  # stepped, and from the cache
        found = encoder.encoded([history(0, n)._replace(user=f"{n}") for n in counts], lookup)
        fresh = UserEncoder(ensure_user(), cache_bytes=0)
        for i, n in enumerate(counts):
            held = int(encoder.held(np.array([n]))[0])
            window = windowed(history(0, n), held - 1, skip=1)
            expected = fresh.encode([window._replace(user=f"{n} {turn}")], lookup)[0]
            assert found.before[i].tobytes() == expected.tobytes(), (turn, n)


def windowed(whole: History, length: int, *, skip: int = 0, gone: int | None = None) -> History:
    """The latest `length` events but for the last `skip`, as a history of no more; without the one `gone` back."""
    end = len(whole.keys) - skip
    kept = np.arange(end - length, end)
    if gone is not None:
        kept = np.delete(kept, len(kept) - 1 - gone)
    return History(
        whole.user, len(kept), whole.keys[kept], whole.types[kept], whole.seconds[kept], whole.generations[: len(kept)]
    )


def test_states_from_the_sums_are_near_those_of_histories_without_an_entry() -> None:
    """The sums are exact, and so all but what the transformer adds: far nearer than the state as it is."""
    encoder = UserEncoder(ensure_user(), cache_bytes=0)
    users, counts = list(range(8)), [3, 8, 11, 20, 26, 51, 75, 120]
    whole = [history(user, count) for user, count in zip(users, counts, strict=True)]
    found = encoder.encoded(whole, lookup)
    held = encoder.held(np.array(counts))
    columns = [
        np.stack([np.resize(getattr(h, name)[::-1][:11], 11) for h in whole]) for name in ("keys", "types", "seconds")
    ]
    keys, types, seconds = columns[0], columns[1].astype(np.int64), columns[2].astype(np.int64)
    last = np.arange(1, 11) >= held[:, None]

    def bucket(gaps: Any) -> Any:
        return np.where(last, 0, np.searchsorted(np.array(GAP_THRESHOLDS), gaps, side="right"))

    bridged = np.concatenate([seconds[:, :1], seconds[:, :9]], axis=1) - seconds[:, 1:]
    events = (
        lookup(keys[:, :10].ravel(), np.zeros(80, np.uint8)).reshape(8, 10, -1), types[:, :10],
        bucket(seconds[:, :10] - seconds[:, 1:]), bucket(bridged), held,
    )  # fmt: skip
    near = encoder.sums.without(found.states, found.before, found.sums, *events)
    left = encoder.sums.left(found.sums, *events)
    fresh, ratios = UserEncoder(ensure_user(), cache_bytes=0), []
    for i, (one, length) in enumerate(zip(whole, held.tolist(), strict=True)):
        for j in range(10):
            if j >= length:
                assert near[i, j].tobytes() == found.states[i].tobytes()
                continue
            told = fresh.encoded([windowed(one, length, gone=j)._replace(user=f"{i} {j}")], lookup)
            truth = told.states[0]
            np.testing.assert_allclose(left[i, :, j], told.sums[0], atol=2e-4)
            if j == 0:
                np.testing.assert_allclose(near[i, 0], truth, atol=1e-6)
            else:
                ratios.append(np.linalg.norm(near[i, j] - truth) / np.linalg.norm(found.states[i] - truth))
    assert np.median(ratios) < 0.5


def test_what_a_policy_says_of_its_slate_is_what_leaving_out_says(make: Callable[..., Any]) -> None:
    """item_to_item reads signals alone: exact. A decision's attribution depends on nobody beside it."""
    describer = make().recommender.describer
    rng = np.random.default_rng(2)
    asks = []
    for user in range(4):
        state = UserState()
        for n in range(4 + 3 * user):
            name = f"{('shoes', 'coffee')[user % 2]}-{rng.integers(0, 4)}"
            state.append(item_key(name), type_code=1, ts=(T0 + 60 * n) * 1000, window=50)
        asks.append(Ask(f"u{user}", state, "policy", "event", "e", T0 * 1000, 0, "default", {}, b"", user, None))
    table = describer.describe(asks, describer.encode(asks), False, T0 * 1000, Exposure())
    learned = policy_of("lints", dim=64, contexts=table.query.contexts.shape[1])
    learned.learn(make_examples(learned, n=400))
    slates = learned.decide(table.query, 5, None)
    chosen = np.maximum(slates.index, 0)
    lower = Attribution(describer).lowered(table, learned, chosen, slates.scores)
    assert lower.shape == (4, RECENT, 5) and not lower[0, 4:].any() and lower[0, :4].any()
    alone = describer.describe(asks[2:3], describer.encode(asks[2:3]), False, T0 * 1000, Exposure())
    again = Attribution(describer).lowered(alone, learned, chosen[2:3], slates.scores[2:3])
    assert again.tobytes() == lower[2:3].tobytes()
    three = Attribution(describer, 3).lowered(table, learned, chosen, slates.scores)
    np.testing.assert_allclose(three, lower[:, :3], atol=1e-5)
    # The latest entry is left out exactly, state and signals.
    for i, one in enumerate(asks):
        other = without(one, 0)
        changed = describer.describe([other], describer.encode([other]), False, T0 * 1000, Exposure())
        rows = table.rows[i, chosen[i]]
        own = own_counts([own_items(other.state, describer.items.rows)], rows[None])
        columns = scalars(
            describer.items, describer.policies, rows[None], describer.items.vectors[rows[None]],
            history=changed.recent.rows[:, :RECENT], recent=changed.recent.near[:, : NEAR - 1],
            keys=changed.recent.keys[:, :RECENT], own=own,
        )  # fmt: skip
        query = table.query.take([i])
        asked = replace(
            query, states=changed.query.states, keys=query.keys[:, chosen[i]], items=query.items[:, chosen[i]],
            scalars=columns, mask=np.ones((1, 5), np.bool_),
        )  # fmt: skip
        after = learned.distributions(asked, np.full((1, 1), -1, np.int64))[1][0]
        np.testing.assert_allclose(lower[i, 0], slates.scores[i] - after, rtol=1e-3, atol=1e-4)


def test_a_query_of_another_text_encoder_is_lost_for_its_user_alone(make: Callable[..., Any]) -> None:
    """Text keys are shared: whoever asked the same of the encoder of now changes nothing for him."""
    describer = make().recommender.describer
    packed = describer.asked.pack("coffee beans")
    key = item_key("a query")

    def asked(user: str, raw: bytes) -> Ask:
        state = UserState()
        state.append(item_key("shoes-0"), type_code=1, ts=T0 * 1000, window=50)
        state.append(key, type_code=12, ts=(T0 + 60) * 1000, window=50)
        state.append(item_key("shoes-1"), type_code=1, ts=(T0 + 120) * 1000, window=50)
        state.notes = Notes(texts={key: raw})
        return Ask(user, state, "policy", "event", "e", T0 * 1000, 0, "default", {}, b"", 1, None)

    def states(*asks: Ask) -> Any:
        describer.encoder.flush()
        table = describer.describe(asks, describer.encode(asks), False, T0 * 1000, Exposure())
        return Attribution(describer)._states(table)

    lost, known = asked("lost", b"xxxx" + packed[4:]), asked("known", packed)
    together = states(lost, known)
    assert together[:1].tobytes() == states(lost).tobytes()
    assert not np.allclose(together[0], together[1])


def test_what_is_being_looked_at_is_an_entry_but_not_in_the_state(make: Callable[..., Any]) -> None:
    describer = make().recommender.describer
    plain, state = ask(np.random.default_rng(5), 0), UserState()
    for n in range(12):
        state.append(item_key(f"{('shoes', 'coffee')[n % 2]}-{n % 4}"), type_code=1, ts=(T0 + 60 * n) * 1000, window=50)
    plain = replace(plain, state=state)
    looking = replace(plain, request=Request("q", "u", T0 * 1000, T0 * 1000, anchor_item_id="toys-1"))

    def states(one: Ask) -> Any:
        return Attribution(describer)._states(describe(one))[0]

    def describe(one: Ask) -> Any:
        return describer.describe([one], describer.encode([one]), False, T0 * 1000, Exposure())

    anchored, without_anchor = states(looking), states(plain)
    assert anchored[0].tobytes() == describe(plain).query.states[0].tobytes()
    np.testing.assert_allclose(anchored[1:], without_anchor[:-1], atol=1e-6)
    assert np.abs(np.diff(anchored, axis=0)).max(axis=1).min() > 1e-3
