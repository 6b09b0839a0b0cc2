"""Micro-batches: everything once, each user in one partition and in order, no record over its size."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.batches import micro_batches
from headrace.streams.messages import MAX_BYTES, Decoder
from headrace.streams.partition import partition_of
from headrace.streams.records import Entry, Erasure, Event, decode_batch
from headrace.streams.settings import Settings

NOW = 1_790_000_000_000


def make_event(i: int, user: str, text: str = "") -> Event:
    return Event(f"e{i}", user, "comment", NOW, NOW, text=text)


@given(
    st.lists(st.tuples(st.sampled_from(["u1", "u2", "u3", "ü4"]), st.integers(0, 900))),
    st.integers(1, 5),
    st.integers(200, 2_000),
)
def test_everything_once_in_order_within_size(rows: list[tuple[str, int]], partitions: int, limit: int) -> None:
    entries: list[Entry] = [make_event(i, user, "x" * size) for i, (user, size) in enumerate(rows)]
    by_user: dict[str, list[Entry]] = {}
    for partition, n_entries, record in micro_batches(
        entries, partitions=partitions, limit_bytes=limit, source="events/0", watermark=7, idle=False
    ):
        batch = decode_batch(record)
        assert (batch.source, batch.watermark, batch.idle, batch.tick) == ("events/0", 7, False, False)
        assert len(batch.entries) == n_entries > 0
        assert n_entries == 1 or len(record) <= limit + 32
        for entry in batch.entries:
            assert partition_of(entry.user_id, partitions) == partition
            by_user.setdefault(entry.user_id, []).append(entry)
    assert by_user == {
        user: mine for user in ("u1", "u2", "u3", "ü4") if (mine := [e for e in entries if e.user_id == user])
    }


def test_kinds_stay_in_the_order_read() -> None:
    entries: list[Entry] = [make_event(0, "u"), Erasure("u", NOW, NOW), make_event(1, "u")]
    ((_, _, record),) = micro_batches(entries, partitions=4, limit_bytes=10_000, source="s", watermark=0, idle=True)
    assert decode_batch(record).entries == entries


@pytest.mark.parametrize(
    "filling",
    [
        {"text": "x" * (MAX_BYTES - 150)},
        {"context": {f"{i:x}": 1 for i in range(100_000)}},  # what grows most: short names, numbers of one digit
        {"shown": ["a"] * 10_000},
    ],
    ids=lambda filling: next(iter(filling)),
)
def test_the_largest_message_takes_at_most_twice_its_bytes(filling: dict[str, object]) -> None:
    raw = json.dumps(
        {"event_id": "e", "user_id": "u", "item_id": "i", "type": "view", "ts": NOW, **filling}, separators=(",", ":")
    ).encode()
    assert len(raw) <= MAX_BYTES
    event = Decoder(Settings()).event(raw, now_ms=NOW, sent_ms=NOW)
    assert isinstance(event, Event)
    ((_, _, record),) = micro_batches(
        [event], partitions=1, limit_bytes=100_000, source="events/0", watermark=NOW, idle=False
    )
    assert len(record) <= 2 * len(raw)
