"""The event time of a partition: what a watermark moves and what holds it back."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.clock import EventClock
from headrace.streams.records import Batch


def clock_after(*batches: Batch) -> EventClock:
    clock = EventClock({}, 0)
    for batch in batches:
        clock = clock.advanced(batch)
    return clock


def test_the_slowest_busy_source_holds_the_time_back():
    assert clock_after(Batch("events/0", 100), Batch("events/1", 40), Batch("events/0", 200)).now == 100
    assert clock_after(Batch("events/0", 200), Batch("events/1", 40), Batch("events/1", 150)).now == 200


def test_an_idle_source_holds_nothing_back():
    assert clock_after(Batch("events/0", 100), Batch("events/1", 40, idle=True), Batch("events/0", 200)).now == 200


def test_where_all_are_idle_the_latest_counts():
    assert clock_after(Batch("events/0", 100, idle=True), Batch("events/1", 140, idle=True)).now == 140


def test_a_source_that_knows_no_time_moves_nothing():
    assert clock_after(Batch("events/0", 100), Batch("requests/0", 0)).now == 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1000), st.booleans())))
def test_time_never_falls(steps):
    clock, seen = EventClock({}, 0), 0
    for source, mark, idle in steps:
        clock = clock.advanced(Batch(source, mark, idle=idle))
        assert clock.now >= seen
        seen = clock.now
