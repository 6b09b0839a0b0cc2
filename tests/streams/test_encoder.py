"""A user's state is a function of his history alone, bit for bit: of no cache, no restart and no company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.export.defaults import ensure_user
from headrace.export.names import GAP_THRESHOLDS, type_code
from headrace.streams.encoder import History, UserEncoder

N_USERS, MOST_EVENTS = 12, 140


def make_user(seed: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint32]]:
    """A long history: keys (0 is an unknown item), types, seconds that now and then run backwards."""
    random = np.random.default_rng(seed)
    keys = random.integers(0, 50, MOST_EVENTS).astype(np.uint64)
    seconds = 1_700_000_000 + np.cumsum(random.integers(-50, 50_000, MOST_EVENTS))
    return keys, random.integers(0, 64, MOST_EVENTS).astype(np.uint8), seconds.astype(np.uint32)


USERS = [make_user(seed) for seed in range(N_USERS)]


def history(user: int, count: int, window: int = 50) -> History:
    keys, types, seconds = USERS[user]
    held = slice(max(0, count - window), count)
    return History(f"u{user}", count, keys[held], types[held], seconds[held], GENERATIONS[: len(keys[held])])


GENERATIONS = np.zeros(50, np.uint8)
VECTORS = np.random.default_rng(9).standard_normal((50, 64)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
VECTORS[0] = 0


def lookup(keys: NDArray[np.uint64], generations: NDArray[np.uint8]) -> NDArray[np.float32]:
    return VECTORS[keys.astype(np.int64)]


def make_encoder(**changes: int) -> UserEncoder:
    return UserEncoder(ensure_user(), **{"cache_bytes": 0, **changes})


def truth(user: int, count: int, encoder: UserEncoder) -> bytes:
    """Alone, on an empty cache."""
    ask = user, count, encoder.window
    if ask not in _TRUTH:
        encoder.flush()
        _TRUTH[ask] = encoder.encode([history(*ask)], lookup)[0].tobytes()
    return _TRUTH[ask]


_TRUTH: dict[tuple[int, int, int], bytes] = {}


@pytest.fixture(scope="module")
def fresh() -> UserEncoder:
    return make_encoder()


@pytest.fixture(scope="module")
def window_graph() -> Iterator[onnxruntime.InferenceSession]:
    yield onnxruntime.InferenceSession(str(ensure_user() / "window.onnx"), providers=["CPUExecutionProvider"])


Call = st.lists(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, 30)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(calls=st.lists(st.tuples(Call, st.sampled_from(["", "flush", "evict", "restart"])), min_size=1, max_size=8))
def test_the_state_is_a_function_of_the_history_alone(
    fresh: UserEncoder, calls: list[tuple[list[tuple[int, int]], str]]
) -> None:
    """Random users gain random events; caches are lost, users evicted, the process restarted in between."""
    encoder, counts = make_encoder(), [0] * N_USERS
    for call, then in calls:
        asked = []
        for user, more in call:  # a user may come twice in a call
            counts[user] = min(MOST_EVENTS, counts[user] + more)
            asked.append((user, counts[user]))
        states = encoder.encode([history(*ask) for ask in asked], lookup)
        for ask, state in zip(asked, states, strict=True):
            assert state.tobytes() == truth(*ask, fresh), ask
        if then == "flush":
            encoder.flush()
        elif then == "evict":
            encoder.evict(f"u{asked[0][0]}")
        elif then == "restart":
            encoder = make_encoder()


@pytest.mark.parametrize("window", [2, 3, 7, 50])
def test_event_by_event_through_every_move_of_the_window(window: int) -> None:
    encoder, fresh = make_encoder(window=window), make_encoder(window=window)
    for count in range(1, MOST_EVENTS):
        state = encoder.encode([history(0, count, window)], lookup)[0]
        assert state.tobytes() == truth(0, count, fresh), count


def test_the_window_s_start_moves_in_blocks() -> None:
    """The state depends on the events from the block's start on, and on none before."""
    encoder = make_encoder()
    whole = encoder.encode([history(0, 80)], lookup)[0]  # 80 events: the window starts at 50
    for changed, same in ((49, True), (50, False)):
        held = history(0, 80)
        types = held.types.copy()
        types[changed - 30] ^= 1
        encoder.flush()
        state = encoder.encode([held._replace(types=types)], lookup)[0]
        assert (state.tobytes() == whole.tobytes()) is same


@settings(max_examples=25, deadline=None)
@given(asks=st.lists(st.tuples(st.integers(0, N_USERS - 1), st.integers(1, MOST_EVENTS)), min_size=1, max_size=10))
def test_steps_equal_the_whole_window(window_graph: onnxruntime.InferenceSession, asks: list[tuple[int, int]]) -> None:
    encoder = make_encoder()
    states = encoder.encode([history(*ask) for ask in asks], lookup)
    for (user, count), state in zip(asks, states, strict=True):
        keys, types, seconds = (array[:count] for array in USERS[user])
        start = -(-max(0, count - 50) // 25) * 25
        gaps = np.diff(seconds.astype(np.int64)[start:], prepend=int(seconds[start]))
        feeds = {
            "vectors": VECTORS[keys[start:].astype(np.int64)][None],
            "types": types[start:].astype(np.int64)[None],
            "gaps": np.searchsorted(GAP_THRESHOLDS, gaps, side="right")[None],
        }
        assert np.abs(window_graph.run(None, feeds)[0][0, -1] - state).max() < 1e-4


def test_many_users_small_cache_any_company(fresh: UserEncoder) -> None:
    """Hundreds of users in one call, more than the cache holds; the batches of 8 and of 64 give the same bits."""
    encoder = make_encoder()
    random = np.random.default_rng(2)
    asks = [(int(random.integers(N_USERS)), int(random.integers(0, MOST_EVENTS))) for _ in range(700)]
    histories = [history(*ask)._replace(user=f"{i}") for i, ask in enumerate(asks)]
    states = encoder.encode(histories, lookup)
    assert encoder.cached_users <= 256
    expected = {ask: truth(*ask, fresh) for ask in set(asks[:150])}
    assert all(state.tobytes() == expected[ask] for ask, state in zip(asks[:150], states, strict=False))
    again = encoder.encode(histories[::-1], lookup)
    assert again[::-1].tobytes() == states.tobytes()


def test_two_threads_give_the_same_bits(fresh: UserEncoder) -> None:
    asks = [(user, 60 + user) for user in range(N_USERS)]
    states = make_encoder(threads=2).encode([history(*ask) for ask in asks], lookup)
    assert [state.tobytes() for state in states] == [truth(*ask, fresh) for ask in asks]


def test_only_new_events_are_looked_up() -> None:
    encoder, asked = make_encoder(), []

    def recording(keys: NDArray[np.uint64], generations: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append(keys.tolist())
        return lookup(keys, generations)

    for count in (40, 41, 41, 51):
        encoder.encode([history(3, count)], recording)
    keys = USERS[3][0].tolist()
    assert asked == [keys[:40], keys[40:41], keys[41:51]]
    assert (encoder.hits, encoder.rebuilt) == (3, 1)  # at 51 the window moves on to one that was stepped along


def test_another_history_under_a_known_name_is_not_taken_for_the_old_one(fresh: UserEncoder) -> None:
    encoder = make_encoder()
    encoder.encode([history(0, 60)], lookup)
    for user, count in ((1, 70), (1, 20)):
        state = encoder.encode([history(user, count)._replace(user="u0")], lookup)[0]
        assert state.tobytes() == truth(user, count, fresh)


def test_a_failed_lookup_leaves_nothing_wrong_behind(fresh: UserEncoder) -> None:
    encoder = make_encoder()
    encoder.encode([history(0, 60)], lookup)

    def failing(keys: NDArray[np.uint64], generations: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise KeyError("no such item")

    with pytest.raises(KeyError):
        encoder.encode([history(0, 63)], failing)
    assert encoder.encode([history(0, 63)], lookup)[0].tobytes() == truth(0, 63, fresh)


def test_states_are_unit_rows_and_zero_without_events() -> None:
    encoder = make_encoder()
    states = encoder.encode([history(0, 10), history(1, 0), history(2, 90)], lookup)
    assert states.shape == (3, encoder.dim) and states.dtype == np.float32
    assert np.allclose(np.linalg.norm(states, axis=1), [1, 0, 1], atol=1e-5)
    assert encoder.encode([], lookup).shape == (0, encoder.dim)


def test_a_history_that_is_too_short_is_refused() -> None:
    held = history(0, 60)
    with pytest.raises(ValueError, match="a history of 60 events must hold the last 50, not 49"):
        make_encoder().encode([held._replace(keys=held.keys[1:])], lookup)


@settings(max_examples=30, deadline=None)
@given(picks=st.lists(st.integers(0, 99), min_size=1, max_size=150))
def test_a_projected_row_does_not_depend_on_its_batch(fresh: UserEncoder, picks: list[int]) -> None:
    vectors = np.random.default_rng(4).standard_normal((100, fresh.text_dim)).astype(np.float32)
    vectors[7] = 0
    together = fresh.project(vectors[picks])
    for pick, row in zip(picks[:10], together, strict=False):
        assert row.tobytes() == fresh.project(vectors[pick : pick + 1])[0].tobytes()
    assert np.allclose(np.linalg.norm(fresh.project(vectors), axis=1), np.arange(100) != 7, atol=1e-5)


def test_a_search_moves_the_state_towards_what_it_says(fresh: UserEncoder) -> None:
    searched = VECTORS[11]
    for user in range(N_USERS):
        before = history(user, 20)
        fresh.flush()
        without = fresh.encode([before], lookup)[0]
        after = History(
            before.user,
            21,
            np.append(before.keys, np.uint64(11)),
            np.append(before.types, np.uint8(type_code("search"))),
            np.append(before.seconds, before.seconds[-1] + np.uint32(5)),
            GENERATIONS[:21],
        )
        assert fresh.encode([after], lookup)[0] @ searched > without @ searched + 0.2
