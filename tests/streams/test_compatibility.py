"""State written by one release is read by the next and by the one before.

tests/data/state-before was written by the release before; tests/records_before.py has its structs.
"""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.streams import records, state
from headrace.streams.changelog import Progress, decode_progress, encode_progress
from headrace.streams.records import decode_batch, decode_item, decode_policy_version, decode_transitions, encode
from headrace.streams.state import Credit, DecisionNotes, UserState, short_hash
from tests import records_before as before
from tests.engine import T0, Log, event

BEFORE = Path(__file__).parents[1] / "data/state-before"


def golden(name):
    return (BEFORE / name).read_bytes()


# -- what the release before has written is read ----------------------------------------------------------------------


def test_states_of_the_release_before():
    small = UserState.unpack(golden("state-small.bin"))
    assert (small.count, small.history_keys().tolist(), small.notes) == (1, [11], None)
    assert small.pack() == golden("state-small.bin"), "and written as they were, where nothing new is to be said"
    full = UserState.unpack(golden("state-full.bin"))
    assert full.count == 60 and full.history_keys().tolist() == list(range(1010, 1060))
    assert not full.see(short_hash("e", "e59"), horizon=32)
    assert [d.recommendation for d in full.decisions()] == [bytes([n]) * 12 for n in (1, 2, 3)]
    notes = full.notes
    assert notes.consumed == {1004: T0 // 1000 + 60, 1003: T0 // 1000 + 90} and notes.taken == {1004: 1, 1003: 2}
    assert notes.decisions[b"\x01" * 12].earned == {1: [(T0, 77, 2.5, 0)]} and notes.decisions[b"\x02" * 12].altered
    assert notes.credits == [Credit(5, b"\x01" * 12, 1, 5.0, T0)]
    assert (notes.known, notes.merged, notes.others, notes.last) == (0, [], b"", 0)
    assert full.last_second() == T0 // 1000 + 59 * 60


def test_an_engine_goes_on_from_the_changelog_of_the_release_before(make):
    progress = decode_progress(golden("progress.bin"))
    log = Log(make(states={b"uu1": golden("state-full.bin"), b"uu2": golden("state-small.bin")}, progress=progress))
    log.offset = log.engine.applied
    assert (log.engine.applied, log.engine.open_decisions, log.engine.users) == (4711, 3, 2)
    log.write(event("click", user="u1", item="toys-0", at=T0 + 5_000_000), at=T0 + 5_000_000)
    assert log.engine.counts["events/view/applied"] == 12
    assert UserState.unpack(log.engine.states[b"uu1"]).count == 61


def test_records_of_the_release_before():
    (opened, outcome, closed, behaviour, erased) = decode_transitions(golden("transitions.bin")).records
    assert (opened.slate, opened.encoder_serial, opened.rules) == (["i1", "i2"], 2, [])
    assert (outcome.order, outcome.busy, closed.rewards, behaviour.item) == (9, True, [0.0, 1.0], 1)
    assert erased.user_id == "u9"
    version = decode_policy_version(golden("policy-version.bin"))
    assert (version.policy, version.offset, version.meta["examples"]) == ("lints", 99, 12)
    first, request, identity, erasure = decode_batch(golden("interactions.bin")).entries
    assert (first.text, first.via, request.candidates, request.via) == ("words", None, ["i1"], None)
    assert (identity.anonymous_id, erasure.of) == ("a1", "")
    assert decode_item(golden("item.bin")).generation == 3


# -- what this release writes is read by the release before -----------------------------------------------------------


def unpacked_before(raw):
    """(header, notes) of a state, by the layout and structs of the release before."""
    schema, count, history, seen, pending_count, pending = before.HEADER.unpack_from(raw)
    assert schema == before.SCHEMA, "another schema would lock the release before out"
    at = before.HEADER.size + 14 * history + 8 * seen + pending
    notes = msgspec.msgpack.decode(raw[at:], type=before.Notes) if at < len(raw) else None
    keys = np.frombuffer(raw, np.uint64, history, before.HEADER.size).tolist()
    return (count, keys, pending_count), notes


def test_states_are_read_by_the_release_before():
    written = UserState.unpack(golden("state-full.bin"))
    notes = written.note()
    notes.known, notes.merged, notes.others, notes.last = 1, ["a1", "a2"], b"8 bytes.", T0 // 1000
    notes.cart, notes.shows = {1003: 5}, {1003: [6, 7]}
    notes.decisions[b"\x03" * 12] = DecisionNotes(shown=[1], altered=False, named=True, rewards={1: 0.5}, shadow=True)
    (count, keys, open_decisions), found = unpacked_before(written.pack())
    assert (count, keys, open_decisions) == (60, list(range(1010, 1060)), 3)
    assert found.consumed == notes.consumed and found.taken == notes.taken
    assert found.decisions[b"\x03" * 12].rewards == {1: 0.5}
    assert [c.order for c in found.credits] == [5]


def test_progress_is_read_by_the_release_before():
    raw = encode_progress(Progress(7, {"events/0": (T0, True)}, T0, {"identities/merged": 2}))
    found = msgspec.msgpack.decode(raw, type=before.Progress)
    assert (found.offset, found.clock, found.counts) == (7, {"events/0": (T0, True)}, {"identities/merged": 2})


TRAVELLING = [
    "Event", "Request", "Identity", "Erasure", "Opened", "Outcome", "Closed", "Behaviour", "Erased", "Item",
    "PolicyVersion", "Batch", "Transitions", "Notes", "DecisionNotes", "Credit", "Progress",
]  # fmt: skip


def said(kind):
    """A type by its names alone."""
    return re.sub(r"\w+(\.\w+)*\.", "", str(kind))


@pytest.mark.parametrize("name", TRAVELLING)
def test_structs_have_only_grown_at_their_ends(name):
    """And what was added has a default. So either release reads what the other one writes."""
    ours = Progress if name == "Progress" else getattr(records, name, None) or getattr(state, name)
    then, now = msgspec.structs.fields(getattr(before, name)), msgspec.structs.fields(ours)
    assert [field.name for field in now][: len(then)] == [field.name for field in then]
    if name not in ("Batch", "Transitions"):  # of kinds of entries and records there may be more
        assert [said(field.type) for field in now][: len(then)] == [said(field.type) for field in then]
    assert all(not field.required for field in now[len(then) :])


def test_transitions_and_versions_are_read_by_the_release_before():
    again = decode_transitions(golden("transitions.bin"))
    found = msgspec.msgpack.decode(encode(again), type=before.Transitions)
    assert found == msgspec.msgpack.decode(golden("transitions.bin"), type=before.Transitions)
    version = decode_policy_version(golden("policy-version.bin"))
    assert msgspec.msgpack.decode(encode(version), type=before.PolicyVersion).meta == version.meta
    batch = decode_batch(golden("interactions.bin"))
    old = msgspec.msgpack.decode(encode(batch), type=before.Batch)
    assert old == msgspec.msgpack.decode(golden("interactions.bin"), type=before.Batch)
