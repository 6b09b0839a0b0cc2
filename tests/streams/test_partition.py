"""A user's partition is the one that Kafka's Java client gives his id as a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.partition import partition_of


@pytest.mark.parametrize(
    ("key", "java_hash"),  # from Apache Kafka's own UtilsTest.testMurmur2
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_as_the_java_client(key: str, java_hash: int) -> None:
    assert partition_of(key, 1 << 31) == java_hash & 0x7FFFFFFF
    assert partition_of(key, 7) == (java_hash & 0x7FFFFFFF) % 7


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 64))
def test_stable_and_in_range(user_id: str, partitions: int) -> None:
    assert 0 <= partition_of(user_id, partitions) < partitions
    assert partition_of(user_id, partitions) == partition_of(user_id, partitions)
