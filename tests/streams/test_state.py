"""The packed user state: what is put in comes out, horizons and windows hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.state import Credit, DecisionNotes, UserState, short_hash

KEYS = st.integers(1, 2**64 - 1)


def fields(state: UserState) -> tuple[object, ...]:
    return (
        state.count, state.keys, state.types, state.seconds, state.seen, state.pending, state.pending_count,
        list(state.decisions()), state.notes,
    )  # fmt: skip


@given(
    history=st.lists(st.tuples(KEYS, st.integers(0, 63), st.integers(0, 2**41)), max_size=70),
    seen=st.lists(KEYS, max_size=50),
    decisions=st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.lists(KEYS, max_size=12)), max_size=6),
    consumed=st.dictionaries(KEYS, st.integers(0, 2**32 - 1), max_size=3),
)
def test_what_is_packed_comes_out(history, seen, decisions, consumed):
    state = UserState()
    for key, code, ts in history:
        state.append(key, type_code=code, ts=ts, window=50)
    for event in seen:
        state.see(event, horizon=32)
    for i, (name, keys) in enumerate(decisions):
        state.open(name, ts=i, arm=7, keys=b"".join(k.to_bytes(8, "little") for k in keys))
    if consumed:
        notes = state.note()
        notes.consumed = consumed
        notes.decisions[b"x" * 12] = DecisionNotes(shown=[0, 2], altered=False, named=True, rewards={2: 1.5})
        notes.credits.append(Credit(3, b"x" * 12, 2, 1.5, 99))
    again = UserState.unpack(state.pack())
    assert fields(again) == fields(state)
    assert again.count == len(history)
    assert again.history_keys().tolist() == [k for k, _, _ in history][-50:]
    assert [list(d.keys) for d in again.decisions()] == [keys for _, keys in decisions]


@given(st.lists(st.integers(0, 40), max_size=200))
def test_a_repeat_within_the_horizon_is_seen(ids):
    state, latest = UserState(), []
    for i in ids:
        event = short_hash("e", str(i))
        assert state.see(event, horizon=8) == (i not in latest[-8:])
        if i not in latest[-8:]:
            latest.append(i)


def test_an_id_is_not_seen_across_two_others():
    state = UserState()
    state.see(int.from_bytes(b"aaaabbbb", "little"), horizon=8)
    state.see(int.from_bytes(b"ccccdddd", "little"), horizon=8)
    assert state.see(int.from_bytes(b"bbbbcccc", "little"), horizon=8)


def test_the_oldest_decision_closes_first():
    state = UserState()
    for i in range(3):
        state.open(bytes([i]) * 12, ts=100 + i, arm=0, keys=(i + 1).to_bytes(8, "little"))
    assert state.oldest_ts() == 100
    state.close_oldest()
    assert state.oldest_ts() == 101
    assert state.pending_count == 2
    assert not state.shows(1)
    assert state.shows(2)


def test_a_state_of_a_later_release_is_refused():
    raw = b"\x63" + UserState().pack()[1:]
    with pytest.raises(ValueError, match="schema 99"):
        UserState.unpack(raw)


def test_fifty_events_and_twenty_open_decisions_take_about_three_kilobytes():
    state = UserState()
    for i in range(60):
        state.append(short_hash(str(i)), type_code=1, ts=1_790_000_000_000 + i, window=50)
        state.see(short_hash("e", str(i)), horizon=32)
    for i in range(20):
        state.open(bytes([i]) * 12, ts=i, arm=0, keys=bytes(80))
    assert len(state.pack()) < 3_100
