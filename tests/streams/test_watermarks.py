"""Event time of one source: it never falls, never passes the wall clock, and moves on while the source is silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.watermarks import IDLE_TICK_MS, Position, SourceClock, Tick, TickPace

NOW = 1_790_000_000_000
NEVER = float("inf")


def make_clock(position: Position | None = None, *, now_ms: int = NOW) -> SourceClock:
    return SourceClock(position or Position(), now_ms=now_ms, tick_ms=250, idle_after_ms=2_000)


def test_the_largest_event_time_read() -> None:
    clock = make_clock()
    for ts in (NOW - 50, NOW - 20, NOW - 90):
        clock.read(ts, now_ms=NOW)
    assert clock.watermark == NOW - 20


def test_a_wrong_clock_ahead_moves_nothing_past_now() -> None:
    clock = make_clock()
    clock.read(NOW + 240_000, now_ms=NOW)
    assert clock.watermark == NOW


def test_nothing_read_nothing_to_say() -> None:
    assert make_clock().due_ms(caught_up=True) == NEVER


def test_ticks_while_events_come() -> None:
    clock = make_clock()
    clock.read(NOW - 5, now_ms=NOW + 100)
    assert clock.due_ms(caught_up=False) == NOW + 250
    assert clock.tick(now_ms=NOW + 250) == Tick(NOW - 5, idle=False)
    assert clock.due_ms(caught_up=False) == NEVER, "silent, but perhaps only because it is not read"
    clock.read(NOW + 300, now_ms=NOW + 300)
    assert clock.due_ms(caught_up=False) == NOW + 500


def test_the_idle_clock_moves_a_silent_source_on() -> None:
    clock = make_clock()
    clock.read(1_000_000_000_000, now_ms=NOW)  # an old log
    clock.tick(now_ms=NOW + 250)
    assert clock.due_ms(caught_up=True) == NOW + 2_000
    assert clock.tick(now_ms=NOW + 2_000) == Tick(1_000_000_002_000, idle=True)
    assert clock.due_ms(caught_up=True) == NOW + 2_000 + IDLE_TICK_MS
    assert clock.tick(now_ms=NOW + 3_000) == Tick(1_000_000_003_000, idle=True)


def test_the_next_owner_goes_on_from_the_position() -> None:
    clock = make_clock()
    clock.read(NOW - 10, now_ms=NOW)
    after = make_clock(clock.position(41), now_ms=NOW + 60_000)
    assert clock.position(41) == Position(41, NOW - 10, NOW)
    assert after.due_ms(caught_up=True) == NOW + 62_000, "it first gets the chance to be read"
    assert after.tick(now_ms=NOW + 62_000) == Tick(NOW - 10 + 62_000, idle=True)


@given(st.lists(st.tuples(st.integers(0, 5_000), st.none() | st.integers(-10_000, 400_000))))
def test_never_falls_never_passes_now(steps: list[tuple[int, int | None]]) -> None:
    clock, now_ms, before = make_clock(), NOW, 0
    for waited_ms, ahead_ms in steps:
        now_ms += waited_ms
        if ahead_ms is None:
            if clock.due_ms(caught_up=True) <= now_ms:
                clock.tick(now_ms=now_ms)
        else:
            clock.read(now_ms + ahead_ms, now_ms=now_ms)
        assert before <= clock.watermark <= now_ms
        before = clock.watermark


def test_versions_are_cut_at_the_pace_of_one_source() -> None:
    pace = TickPace(250)
    cut = [pace.take(now_ms=NOW + at) for at in (0, 10, 20, 250, 260, 500, 510)]
    assert cut == [True, False, False, True, False, True, False]
