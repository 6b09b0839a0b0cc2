"""r = f(outcomes): a function of the set, versioned, the same for worker and learner."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.streams.book import Book, Widths
from headrace.streams.decisions import Decisions, arm_code, recommendation_name
from headrace.streams.records import Closed, Event, Outcome, item_key
from headrace.streams.rewards import Earned, Rewards
from headrace.streams.settings import Settings
from headrace.streams.state import UserState, short_hash
from tests.factories import T0, make_closed, make_opened, make_outcome, make_transitions

HOUR, DAY = 3_600_000, 86_400_000
FUNCTIONS = ("sum", "first", "last", "max")
NAME = b"1" * 12
WIDTHS = Widths(state=8, context=0, scalars=2)


def make_settings(function: str = "sum", **types: Any) -> Settings:
    return Settings(decisions={"reward_function": function}, event_types=types)


def earned(*worths: float) -> list[Earned]:
    return [Earned(ts, ts, worth) for ts, worth in enumerate(worths)]


@pytest.mark.parametrize(("function", "expected"), [("sum", 6.0), ("first", 1.0), ("last", 2.0), ("max", 3.0)])
def test_the_four_functions(function: str, expected: float) -> None:
    rewards = Rewards(make_settings(function))
    assert rewards.total(earned(1.0, 3.0, 2.0)) == expected
    assert rewards.total([]) == 0.0


@pytest.mark.parametrize("function", FUNCTIONS)
@given(order=st.permutations(range(5)))
def test_the_order_of_arrival_has_no_say(function: str, order: list[int]) -> None:
    rewards, outcomes = Rewards(make_settings(function)), earned(1.0, -1.0, 5.0, 5.0, 2.0)
    outcomes[3] = outcomes[3]._replace(ts=outcomes[2].ts)  # at the same time
    assert rewards.total([outcomes[i] for i in order]) == rewards.total(outcomes)


def test_any_change_of_what_rewards_are_made_of_is_a_new_version() -> None:
    versions = [
        Rewards(settings).version
        for settings in (
            make_settings(),
            make_settings("max"),
            make_settings(click={"reward": 2.0}),
            make_settings(purchase={"times": "value"}),
            make_settings(purchase={"window": "1d"}),
            Settings(decisions={"reward_version": "r2"}),
        )
    ]
    assert len(set(versions)) == len(versions)
    assert all(version.startswith("r1-") for version in versions[:5])
    assert Rewards(make_settings(view={"due": False})).version == versions[0], "what earns nothing has no say"


# -- worker and learner agree -----------------------------------------------------------------------------------------


def make_state() -> UserState:
    state = UserState()
    state.open(NAME, ts=T0, arm=arm_code("policy"), keys=b"".join(item_key(i).to_bytes(8, "little") for i in "abc"))
    return state


def told(kind: str, item: str, at: int, number: int) -> Event:
    order = f"o{item}{number}" if kind == "purchase" else None
    return Event(f"e{number}", "u", kind, T0 + at, 0, item_id=item, order_id=order,
                 recommendation_id=recommendation_name(NAME))  # fmt: skip


HAPPENED = st.lists(
    st.tuples(st.sampled_from(["click", "add_to_cart", "dismiss", "purchase"]), st.sampled_from("abc"),
              st.integers(0, 1_000_000), st.booleans()), max_size=8,
)  # fmt: skip


@given(happened=HAPPENED, function=st.sampled_from(FUNCTIONS), late=st.booleans(), other=st.booleans())
@hypothesis_settings(max_examples=80, deadline=None)
def test_whatever_happens_worker_and_learner_agree_and_returns_are_exact(
    happened: list[tuple[str, str, int, bool]], function: str, late: bool, other: bool
) -> None:
    """Outcomes in any order, some purchases returned before or after the end; the learner's version may be another."""
    worker = make_settings(function)
    learner = make_settings(function, click={"reward": 3.0}) if other else worker
    decisions, state = Decisions(worker, ["policy"]), make_state()
    log: list[Outcome | Closed] = []

    def join(event: Event) -> None:
        outcome, _ = decisions.join(state, event)
        log.extend([outcome] if outcome is not None else [])

    for number, (kind, item, at, _) in enumerate(happened):
        join(told(kind, item, at, number))
    if late:
        log += decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")
    for number, (kind, item, at, returned) in enumerate(happened):
        if kind == "purchase" and returned:
            join(Event(f"r{number}", "u", "return", T0 + at + 9 * DAY, 0, item_id=item, order_id=f"o{item}{number}"))
    if not late:
        log += decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")

    def expected(settings: Settings, position: int) -> float:
        rewards = Rewards(settings)
        return rewards.total([
            Earned(T0 + at, _hash(kind, number), rewards.worth(kind, None, None))
            for number, (kind, item, at, returned) in enumerate(happened)
            if "abc".index(item) == position and not (kind == "purchase" and returned)
        ])  # fmt: skip

    by_worker = dict.fromkeys(range(3), 0.0)
    for record in log:
        if isinstance(record, Outcome):
            by_worker[record.positions[0]] += record.reward
    assert by_worker == pytest.approx({p: expected(worker, p) for p in range(3)})
    if not late and isinstance(log[-1], Closed) and log[-1].closed_as == "shown":
        assert log[-1].rewards == pytest.approx([by_worker[p] for p in log[-1].shown])

    book = Book(10, WIDTHS, rewards=Rewards(learner))
    book.read(make_transitions(make_opened(recommendation_name(NAME), d=8, m=2, ts=T0)), 0)
    by_learner = dict.fromkeys(range(3), 0.0)
    for offset, record in enumerate(log, 1):
        lessons = book.read(make_transitions(record), offset)
        for position, reward in zip(lessons.positions, lessons.rewards, strict=True):
            by_learner[position] += reward
    assert by_learner == pytest.approx({p: expected(learner, p) for p in range(3)})


def _hash(kind: str, number: int) -> int:
    return short_hash(f"{kind}/e{number}")


def test_what_a_worker_told_under_another_version_is_computed_again_and_never_mixed() -> None:
    """A click was worth 1 when it was told, and is worth 3 by the learner's settings: 3, also at the close."""
    book = Book(10, WIDTHS, rewards=Rewards(make_settings(click={"reward": 3.0})))
    book.read(make_transitions(make_opened(d=8, m=2)), 0)
    lessons = book.read(make_transitions(make_outcome(position=1, reward=1.0)), 1)
    assert lessons.rewards == [3.0]
    lessons = book.read(make_transitions(make_closed(rewards={0: 0.0, 1: 1.0})), 2)
    assert list(zip(lessons.positions, lessons.rewards, lessons.fresh, strict=True)) == [(0, 0.0, True)]


def test_a_return_of_a_record_without_its_order_takes_back_what_it_says() -> None:
    book = Book(10, WIDTHS)
    book.read(make_transitions(make_opened(d=8, m=2), make_outcome(position=1, reward=5.0, type="purchase")), 0)
    back = msgspec.structs.replace(make_outcome(position=1, reward=-5.0, type="return"), order=0)
    assert book.read(make_transitions(back), 1).rewards == [-5.0]


def test_a_large_history_of_credits_keeps_what_closed_decisions_need_no_longer_than_a_return_may_come() -> None:
    decisions, state = Decisions(make_settings("max"), ["policy"]), make_state()
    decisions.join(state, told("purchase", "a", HOUR, 1))
    decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")
    assert state.notes is not None and len(state.notes.decisions) == 1
    state.open(b"2" * 12, ts=T0 + 40 * DAY, arm=0, keys=item_key("a").to_bytes(8, "little"))
    decisions.close_passed(state, now=T0 + 60 * DAY, user_id="u")
    assert state.notes.decisions == {} and state.notes.credits == []
