"""Rewards told for what is still to come, positions weighed, steps, own arms: all functions of the log."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.policy import delays, positions
from headrace.policy.base import Arrays, Meta, Steps
from headrace.policy.features import SCALARS
from headrace.policy.linear import LinUCB
from headrace.policy.snapshot import pack
from headrace.streams import estimates, learning
from headrace.streams.book import Book, Widths
from headrace.streams.estimates import Estimates
from headrace.streams.learning import Learning
from headrace.streams.records import PolicyVersion, Transition, decode_policy_version, encode
from headrace.streams.rewards import Rewards
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy
from tests.factories import T0, make_closed, make_impression, make_log, make_opened, make_outcome, make_transitions

DIM, HOUR = 8, 3_600_000
WIDTHS = Widths(state=DIM, context=1, scalars=len(SCALARS))


class Follower(LinUCB):
    """LinUCB that also counts what it follows."""

    follows = True

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.followed = np.zeros(4)
        self.seen: list[Steps] = []

    def follow(self, steps: Steps) -> None:
        self.seen.append(steps)
        value = (steps.rewards.sum(), steps.elapsed_s.sum(), steps.next_states.sum(dtype=np.float64))
        self.followed += [len(steps.ids), *value]

    def snapshot(self) -> tuple[Arrays, Meta]:
        arrays, meta = super().snapshot()
        return arrays | {"followed": self.followed.copy()}, meta

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        super().restore(arrays, meta)
        self.followed = arrays["followed"].copy()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates after a few decisions and outcomes, a small book, a policy that follows."""
    monkeypatch.setattr(estimates, "_FIRST", 6)
    monkeypatch.setattr(estimates, "_LEAST", 2)
    monkeypatch.setattr(positions, "LEAST", 3)
    monkeypatch.setattr(learning, "Book", lambda size, widths, **rest: Book(size - 100, widths, **rest))
    real = Estimates.__init__
    monkeypatch.setattr(Estimates, "__init__", lambda self, *a, size, **rest: real(self, *a, size=size - 100, **rest))

    def make(settings: Settings, name: str, *, dim: int) -> Any:
        return Follower(dim=dim, contexts=1) if name == "linucb" else make_policy(settings, name, dim=dim)

    monkeypatch.setattr(learning, "make_policy", make)


def make_settings(held: int = 900, **learner: Any) -> Settings:
    return Settings(
        policy={"name": "linucb"},
        learner={"open_decisions": 100 + held, "publish_messages": 8, **learner},
        gate={"guard": False},  # what Follower counts only grows: a guardrail would take it for a fault
    )


def bits(learner: Learning) -> bytes:
    arrays, meta = learner.estimates.snapshot()
    policy, more = learner.policies[0].policy.snapshot()
    return pack(policy | {f"estimates.{name}": array for name, array in arrays.items()}, meta | more)[0]


@pytest.mark.usefixtures("eager")
@example(seed=1, kills=[30, 60, 61], held=10, weights=True, learn_from="all", partitions=2)
@given(
    seed=st.integers(0, 10_000),
    kills=st.lists(st.integers(1, 90), max_size=3),
    held=st.sampled_from([5, 20, 900]),
    weights=st.booleans(),
    learn_from=st.sampled_from(["all", "own"]),
    partitions=st.sampled_from([1, 2]),
)
@hypothesis_settings(max_examples=15, deadline=None)
def test_a_killed_learner_tells_rewards_and_follows_steps_as_one_that_never_stopped(
    seed: int, kills: list[int], held: int, weights: bool, learn_from: str, partitions: int
) -> None:
    log = make_log(seed, messages=90, d=DIM, c=1, pace_ms=HOUR // 3, partitions=partitions)
    settings = make_settings(held, position_weights=weights, learn_from=learn_from)
    whole = Learning(settings, dim=DIM)
    for offset, message in enumerate(log):
        whole.apply(message, offset)
    committed: dict[str, PolicyVersion] = {}
    learner = Learning(settings, dim=DIM)
    for stop in [*sorted(kills), len(log)]:
        learner = Learning(settings, dim=DIM)
        start = learner.resume(decode_policy_version(encode(v)) for v in committed.values())
        for offset in range(start, stop):
            committed |= {v.part: v for v in learner.apply(log[offset], offset)}
    assert bits(learner) == bits(whole)


@pytest.mark.usefixtures("eager")
def test_the_test_above_tests_something() -> None:
    tables, followed = {}, 0.0
    for held in (20, 900):
        learner = Learning(make_settings(held, position_weights=True), dim=DIM)
        for offset, message in enumerate(make_log(1, messages=300, d=DIM, c=1, pace_ms=HOUR // 3)):
            learner.apply(message, offset)
            tables |= {(held, table.offset): table for table in learner.estimates._tables}
        policy = learner.policies[0].policy
        assert isinstance(policy, Follower)
        followed += policy.followed[0]
    assert len(tables) > 6 and followed > 5
    assert max(t.multipliers.max() for t in tables.values()) > 1.5
    assert any(t.theta(0) is not None for t in tables.values())


# -- rewards still to come --------------------------------------------------------------------------------------------


def make_book(*, share: float = 0.25, outstanding: bool = True) -> tuple[Book, Estimates]:
    """A book with one table: of all purchases `share` come within an hour, the rest by ten hours."""
    rewards = Rewards(Settings())
    made = Estimates(rewards.kinds, ["default"], size=100, outstanding=outstanding, position_weights=False)
    factors = np.ones((len(rewards.kinds), delays.STAGES))
    by_age = np.where(delays.EDGES_MS < HOUR, share, np.where(delays.EDGES_MS < 10 * HOUR, 0.5, 1.0))
    factors[rewards.kinds.index("purchase")] = delays.multipliers(by_age)
    made._tables.append(estimates.Table(-1, 1, factors, np.ones((1, 100))))
    return Book(100, WIDTHS, rewards=rewards, estimates=made), made


def read(book: Book, offset: int, *records: Transition, at: int = 0) -> list[tuple[int, float, bool]]:
    message = msgspec.structs.replace(make_transitions(*records), event_time=T0 + at)
    lessons = book.read(message, offset)
    return list(zip(lessons.positions, lessons.rewards, lessons.fresh, strict=True))


def bought(**changes: Any) -> Transition:
    return make_outcome(position=1, reward=5.0, type="purchase", ts=T0 + HOUR // 2, **changes)


def test_a_purchase_stands_for_those_to_come_and_for_itself_in_the_end() -> None:
    book, _ = make_book()
    read(book, 0, make_opened(d=DIM, c=1), make_impression(positions=[0, 1, 2]))
    assert read(book, 1, bought(), at=HOUR // 2) == [(1, 20.0, False)]  # a quarter has come
    told = 20.0
    for offset, hours in enumerate(range(1, 14), 2):
        told += sum(reward for _, reward, _ in read(book, offset, at=hours * HOUR))
        assert told == pytest.approx(10.0 if 2 <= hours < 8 else 5.0 if hours > 12 else told)
    assert read(book, 50, make_closed(rewards={0: 0.0, 1: 5.0, 2: 0.0}), at=99 * HOUR) == []


def test_a_close_tells_what_was_earned_however_early_it_comes() -> None:
    book, _ = make_book()
    read(book, 0, make_opened(d=DIM, c=1), make_impression(positions=[0, 1, 2]), bought())
    assert read(book, 1, make_closed(rewards={0: 0.0, 1: 5.0, 2: 0.0}), at=HOUR // 2) == [(1, -15.0, False)]
    back = make_outcome(position=1, reward=-5.0, type="return", ts=T0 + 30 * HOUR)
    assert read(book, 2, back, at=30 * HOUR) == [(1, -5.0, False)]


def test_what_is_not_allowed_for_is_told_as_it_comes() -> None:
    book, _ = make_book(outstanding=False)
    read(book, 0, make_opened(d=DIM, c=1), make_impression(positions=[0, 1, 2]))
    assert read(book, 1, bought(), at=HOUR // 2) == [(1, 5.0, False)]
    assert read(book, 2, at=20 * HOUR) == []


def test_a_clicks_reward_is_not_touched_by_the_delay_of_purchases() -> None:
    book, _ = make_book()
    read(book, 0, make_opened(d=DIM, c=1), make_impression(positions=[0, 1, 2]))
    assert read(book, 1, make_outcome(position=1, reward=1.0)) == [(1, 1.0, False)]


def test_only_random_slates_tell_what_a_position_is_worth() -> None:
    book, made = make_book()
    for offset, policy in enumerate(("linucb", "random", "random")):
        name = f"r-{offset}"
        read(book, offset, make_opened(name, d=DIM, c=1, policy=policy), make_impression(name, positions=[0, 1]))
        read(book, offset, make_outcome(name, position=1), make_outcome(name, position=1))
    assert made._shown[0, :3].tolist() == [2, 2, 0]
    assert made._rewarded[0, :3].tolist() == [0, 2, 0]


def test_position_weights_divide_rewards_and_weigh_examples() -> None:
    book, made = make_book()
    made.position_weights = True
    theta = np.ones((1, 100))
    theta[0, 1] = 0.5
    made._tables[0] = estimates.Table(-1, 1, made._tables[0].multipliers, theta)
    message = make_transitions(make_opened(d=DIM, c=1), make_impression(positions=[0, 1]), make_outcome(position=1))
    examples = book.read(message, 0).examples(WIDTHS)
    assert examples is not None and examples.weights is not None
    assert examples.weights.tolist() == [1.0, 0.5, 0.5]
    assert examples.rewards.tolist() == [0.0, 0.0, 2.0]
    assert examples.positions.tolist() == [0, 0, 0], "the place is in the weight"


def test_a_change_of_rewards_or_of_how_they_are_told_begins_anew_from_the_log() -> None:
    log = make_log(3, messages=60, d=DIM, c=1)
    before = Settings(policy={"name": "linucb"}, learner={"publish_messages": 8})
    first, committed = Learning(before, dim=DIM), {}
    for offset, message in enumerate(log):
        committed |= {v.part: v for v in first.apply(message, offset)}
    for after in (
        Settings(policy={"name": "linucb"}, learner={"publish_messages": 8}, event_types={"click": {"reward": 2.0}}),
        Settings(policy={"name": "linucb"}, learner={"publish_messages": 8, "outstanding": False}),
    ):
        changed, fresh = Learning(after, dim=DIM), Learning(after, dim=DIM)
        assert changed.resume(committed.values()) == 0
        for offset, message in enumerate(log):
            changed.apply(message, offset)
            fresh.apply(message, offset)
        np.testing.assert_array_equal(
            changed.policies[0].policy.snapshot()[0]["moment"], fresh.policies[0].policy.snapshot()[0]["moment"]
        )
    again = Learning(before, dim=DIM)
    again.resume(committed.values())
    assert again.policies[0].known >= 0


# -- steps and arms ---------------------------------------------------------------------------------------------------


def test_a_closed_decision_and_the_next_become_one_step() -> None:
    book = Book(100, WIDTHS)
    first, second = make_opened("r-1", d=DIM, c=1), make_opened("r-2", d=DIM, c=1, k=2)
    book.read(make_transitions(first, make_impression(positions=[0, 2]), make_outcome(position=2)), 0)
    book.read(make_transitions(second), 1)
    closed = make_closed(rewards={0: 0.0, 2: 1.0}, next_recommendation_id="r-2", elapsed_ms=90_000)
    steps = book.read(make_transitions(closed, closed), 2).steps(WIDTHS)
    assert steps is not None and len(steps.ids) == 1, "once"
    assert steps.shown.tolist() == [[True, False, True]]
    assert steps.rewards.tolist() == [[0.0, 0.0, 1.0]]
    assert (steps.elapsed_s.tolist(), steps.terminal.tolist()) == ([90.0], [False])
    assert steps.next_shown.tolist() == [[True, True]]
    np.testing.assert_array_equal(steps.states[0], np.frombuffer(first.state, "<f4"))
    np.testing.assert_array_equal(steps.next_states[0], np.frombuffer(second.state, "<f4"))
    np.testing.assert_array_equal(steps.next_items[0].ravel(), np.frombuffer(second.items, "<f2").astype(np.float32))
    np.testing.assert_array_equal(steps.propensities[0], np.frombuffer(first.propensities, "<f8"))


def test_no_next_decision_is_terminal_and_one_that_is_not_held_is_no_step() -> None:
    book = Book(100, WIDTHS)
    book.read(make_transitions(make_opened("r-1", d=DIM, c=1), make_opened("r-2", d=DIM, c=1)), 0)
    steps = book.read(make_transitions(make_closed("r-1", rewards={0: 1.0})), 1).steps(WIDTHS)
    assert steps is not None and steps.terminal.tolist() == [True] and not steps.next_shown.any()
    lost = make_closed("r-2", rewards={0: 1.0}, next_recommendation_id="r-9", elapsed_ms=1_000)
    assert book.read(make_transitions(lost), 2).steps(WIDTHS) is None


@pytest.mark.parametrize("closed_as", ["unshown", "altered", "erased"])
def test_what_nobody_saw_is_no_step(closed_as: str) -> None:
    book = Book(100, WIDTHS)
    book.read(make_transitions(make_opened(d=DIM, c=1)), 0)
    assert book.read(make_transitions(make_closed(closed_as=closed_as)), 1).steps(WIDTHS) is None


def test_a_policy_may_learn_from_its_own_arms_alone() -> None:
    """Its own decisions, and those its stand-in took in its arm; not those of another arm."""
    shares = {"policy": 0.4, "lints": 0.3, "random": 0.3}
    taken = [("policy", "linucb"), ("policy", "popular"), ("lints", "lints"), ("random", "random"), ("lints", "linucb")]
    records: list[Transition] = []
    for number, (arm, policy) in enumerate(taken):
        name = f"r-{number}"
        records += [make_opened(name, d=DIM, c=1, arm=arm, policy=policy), make_impression(name, positions=[0])]
    counts = {}
    for learn_from in ("all", "own"):
        settings = Settings(policy={"name": "linucb"}, arms={"shares": shares}, learner={"learn_from": learn_from})
        learner = Learning(settings, dim=DIM)
        learner.apply(make_transitions(*records), 0)
        counts[learn_from] = {p.policy.name: p.policy.snapshot()[1]["learned"] for p in learner.policies}
    assert counts == {"all": {"linucb": 5, "lints": 5}, "own": {"linucb": 3, "lints": 1}}


# -- crawlers and hot users -------------------------------------------------------------------------------------------


def test_what_busy_users_do_teaches_nothing() -> None:
    book = Book(100, WIDTHS)
    lessons = book.read(make_transitions(make_opened("r-1", d=DIM, c=1), make_opened("r-2", d=DIM, c=1, busy=True)), 0)
    assert (lessons.busy, len(book)) == (1, 1)
    outcome = make_outcome("r-1", position=0, busy=True)
    lessons = book.read(make_transitions(outcome, make_outcome("r-1", position=1)), 1)
    assert (lessons.positions, lessons.busy, len(book)) == ([], 1, 0)


@pytest.mark.usefixtures("eager")
def test_the_gate_counts_rewards_as_they_came() -> None:
    """What is allowed for outcomes still to come is taken back later: to a guardrail that looks like a collapse."""
    log = make_log(1, messages=90, d=DIM, c=1, pace_ms=HOUR // 3)
    learned, evidence = [], []
    for outstanding in (True, False):
        learner = Learning(make_settings(outstanding=outstanding), dim=DIM)
        for offset, message in enumerate(log):
            learner.apply(message, offset)
        learned.append(learner.policies[0].policy.snapshot()[0]["moment"])
        evidence.append(learner.gate._ledger.arrays()["rewards"])
    assert not np.allclose(*learned)
    np.testing.assert_allclose(*evidence)
    assert evidence[0].any()
