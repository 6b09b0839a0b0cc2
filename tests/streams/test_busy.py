"""Who is a crawler or a hot user: so many history events within so long."""

from __future__ import annotations

import pytest

from headrace.streams.busy import Busy
from headrace.streams.settings import Worker
from headrace.streams.state import UserState

T0 = 1_790_000_000_000


def make_state(*seconds: int, window: int = 50) -> UserState:
    state = UserState()
    for second in seconds:
        state.append(7, type_code=0, ts=T0 + 1_000 * second, window=window)
    return state


@pytest.mark.parametrize(
    ("seconds", "at", "busy"),
    [
        ((0, 1, 2, 3), 4, False),  # fewer than five
        ((0, 1, 2, 3, 4), 5, True),
        ((0, 1, 2, 3, 4), 59, True),
        ((0, 1, 2, 3, 4), 60, False),
        ((0, 50, 55, 58, 59), 61, False),
        ((0, 50, 55, 58, 59, 60), 61, True),  # the latest five count
    ],
)
def test_the_last_events_lie_within_the_time(seconds: tuple[int, ...], at: int, busy: bool) -> None:
    rule = Busy(Worker(busy_events=5, busy_within="1m"))
    assert rule.at(make_state(*seconds), T0 + 1_000 * at) is busy


def test_a_short_history_is_held_to_the_same_rate() -> None:
    rule = Busy(Worker(history=3, busy_events=6, busy_within="1m"))
    state = make_state(0, 10, 20, window=3)
    assert [rule.at(state, T0 + 1_000 * s) for s in (29, 30)] == [True, False]


def test_the_rule_can_be_turned_off() -> None:
    rule = Busy(Worker(busy_events=2, busy_within=0))
    state = make_state(*[10] * 40)
    assert not rule.at(state, T0) and not rule.at(state, T0 + 10_000), "not even for events out of order"
