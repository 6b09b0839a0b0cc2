"""The packed user state: what is put in comes out, horizons and windows hold."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.state import Credit, DecisionNotes, UserState, short_hash

KEYS = st.integers(1, 2**64 - 1)


def fields(state: UserState) -> tuple[object, ...]:
    return (
        state.count, state.keys, state.types, state.seconds, state.generations, state.seen, state.pending,
        state.pending_count, list(state.decisions()), state.notes,
    )  # fmt: skip


@given(
    history=st.lists(st.tuples(KEYS, st.integers(0, 63), st.integers(0, 2**41), st.integers(0, 255)), max_size=70),
    seen=st.lists(KEYS, max_size=50),
    decisions=st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.lists(KEYS, max_size=12)), max_size=6),
    consumed=st.dictionaries(KEYS, st.integers(0, 2**32 - 1), max_size=3),
)
def test_what_is_packed_comes_out(history, seen, decisions, consumed):
    state = UserState()
    for key, code, ts, generation in history:
        state.append(key, type_code=code, ts=ts, window=50, generation=generation)
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
    assert again.history_keys().tolist() == [k for k, _, _, _ in history][-50:]
    assert list(again.generations) == [generation for _, _, _, generation in history][-50:]
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


def test_a_state_of_the_release_before_is_read():
    """Schema 1, as it was written: no generations. The contents of then are every item's first."""
    raw = (
        struct.pack("<BIHHHI", 1, 70, 2, 1, 1, 32)  # 70 events, 2 in the history, 1 seen, 1 open decision of 32 bytes
        + struct.pack("<2Q2B2I", 11, 12, 1, 7, 1_790_000_000, 1_790_000_060)
        + struct.pack("<Q", 5)
        + struct.pack("<12sQBBHQ", b"r" * 12, 1_790_000_060_000, 1, 1, 3, 12)
        + msgspec.msgpack.encode([{12: 1_790_000_060}, {13: b"\0" * 128}, {}, []])
    )
    state = UserState.unpack(raw)
    assert (state.count, state.history_keys().tolist(), list(state.types)) == (70, [11, 12], [1, 7])
    assert state.nth_latest_second(1) == 1_790_000_060 and state.generations == b"\0\0"
    assert state.notes is not None and state.notes.consumed == {12: 1_790_000_060}
    assert not state.see(5, horizon=8) and state.shows(12) and state.pending_count == 1
    state.append(14, type_code=2, ts=1_790_000_061_000, window=50, generation=3)
    again = UserState.unpack(state.pack())
    assert fields(again) == fields(state) and again.generations == b"\0\0\3" and again.pack()[0] == 2


def test_fifty_events_and_twenty_open_decisions_take_about_three_kilobytes():
    state = UserState()
    for i in range(60):
        state.append(short_hash(str(i)), type_code=1, ts=1_790_000_000_000 + i, window=50)
        state.see(short_hash("e", str(i)), horizon=32)
    for i in range(20):
        state.open(bytes([i]) * 12, ts=i, arm=0, keys=bytes(80))
    assert len(state.pack()) < 3_100
