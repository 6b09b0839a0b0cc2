"""Rules in a worker's hands: candidates, slates and messages under what is in force. The rules are given as arrays."""

import numpy as np
import pytest

from headrace.streams.records import Opened
from headrace.streams.rules.in_force import InForce
from headrace.streams.rules.personal import note_shown, shown_often
from headrace.streams.state import UserState
from headrace.streams.versions import make_policy
from tests.engine import DAY, HOUR, ITEMS, T0, Log, event, ids, request

NAMES = [name for name, _, _ in ITEMS]


class Rules:
    def __init__(self, **force):
        self.force = InForce(version=7, **force)

    def at(self, placement, now):
        return self.force


@pytest.fixture
def under(make, shared):
    """`under(rules, **settings)`: a log whose worker decides under them."""

    def made(rules, **sections):
        log = Log(make(**sections))
        log.engine.recommender.describer.rules = rules
        return log

    return made


@pytest.fixture
def members(shared):
    """`members("toys-0")`: the items of these names, or whose names begin so, as a mask over rows."""

    def named(*names):
        mask = np.zeros(len(shared.items.keys), np.bool_)
        for row, item in enumerate(shared.items.ids):
            mask[row] = item.startswith(names)
        return mask

    return named


def test_what_is_excluded_is_neither_a_candidate_nor_shown(under, members):
    log = under(Rules(allowed=~members("toys"), excluding=["no-toys"]))
    slates = log.write(*[event("click", user=f"u{i}", item="toys-1") for i in range(20)])
    assert all(len(ids(slate)) == 10 and not any(item.startswith("toys") for item in ids(slate)) for slate in slates)
    assert all("unmet" not in slate for slate in slates)


def test_a_slate_that_rules_leave_too_short_says_which(under, members):
    (slate,) = under(Rules(allowed=members("toys"), excluding=["toys-only"])).write(event("click", item="shoes-1"))
    assert sorted(ids(slate)) == sorted(NAMES[12:])
    assert slate["unmet"] == ["toys-only"]


def test_only_what_rules_leave_is_drawn_for_a_request_with_candidates(under, members):
    log = under(Rules(allowed=~members("toys"), excluding=["no-toys"]))
    (slate,) = log.write(request(candidates=["toys-0", "shoes-0", "coffee-0"]))
    assert sorted(ids(slate)) == ["coffee-0", "shoes-0"]


def test_a_pin_is_where_it_belongs_and_is_named(under, members):
    log = under(Rules(pins=[("campaign", 2, members("garden-3"))]))
    slates = log.write(*[event("click", user=f"u{i}", item="shoes-1") for i in range(20)])
    assert {ids(slate)[2] for slate in slates} == {"garden-3"}
    assert {slate["items"][2]["propensity"] for slate in slates} == {1.0}
    assert all(slate["rules"] == ["campaign"] for slate in slates)
    assert all(o.restricted and o.rules == ["campaign"] and o.rules_at == 7 for o in log.of(Opened))


def test_a_pin_of_what_cannot_be_shown_is_told(under, members):
    log = under(Rules(pins=[("campaign", 0, members("garden-3"))]))
    (slate,) = log.write(event("purchase", item="garden-3"))
    assert len(ids(slate)) == 10 and "garden-3" not in ids(slate)
    assert slate["unmet"] == ["campaign"]


def test_a_cap_is_kept(under, members):
    toys = np.where(members("toys"), 0, -1).astype(np.int32)
    log = under(Rules(caps=[("few-toys", toys, 1)]))
    slates = log.write(*[event("click", user=f"u{i}", item="toys-0") for i in range(30)])
    counts = [sum(item.startswith("toys") for item in ids(slate)) for slate in slates]
    assert max(counts) == 1
    assert all(("few-toys" in slate.get("rules", [])) is (n == 1) for slate, n in zip(slates, counts, strict=True))


def test_a_share_is_kept_by_the_partition_also_through_a_restart(under, members, make):
    rules = Rules(shares=[("toys", members("toys"), 0.3, None, 100)])
    log = under(rules, placements={"default": {"k": 4}})
    slates = []
    for i in range(30):
        slates += log.write(event("click", user=f"u{i}", item="shoes-0", at=T0 + i))
    shown = [sum(item.startswith("toys") for item in ids(slate)) for slate in slates]
    assert 0.29 <= sum(shown) / 120 <= 0.45
    from headrace.streams.changelog import decode_progress

    again = make(states=dict(log.engine.states), progress=decode_progress(log.engine.progress()))
    assert again.exposure.accounts == log.engine.exposure.accounts != {}


def test_what_was_shown_often_enough_is_not_shown_again(under, members):
    log = under(Rules(frequency=[("not-again", members("shoes"), 2, DAY)]), decisions={"assume_shown": True})

    def shown(at):
        return ids(log.write(event("click", item="shoes-0", at=at), at=at)[0])

    seen = [item for i in range(6) for item in shown(T0 + i * 1000)]
    assert [seen.count(name) for name in NAMES[:4]] == [2, 2, 2, 2]  # popular with everybody, first otherwise
    assert max(seen.count(name) for name in NAMES[4:]) > 2
    assert set(NAMES[:4]) & set(shown(T0 + 2 * DAY))


def test_an_impression_counts_what_it_showed(under, members):
    log = under(Rules(frequency=[("once", None, 1, DAY)]))
    (slate,) = log.write(event("click", item="shoes-0"))
    shown = ids(slate)[:3]
    log.write(event("impression", recommendation_id=slate["recommendation_id"], shown=shown, at=T0 + 1))
    for i in range(5):
        (slate,) = log.write(event("click", item="shoes-0", at=T0 + 2 + i))
        assert not set(shown) & set(ids(slate))


def test_what_lies_in_the_cart_is_not_shown_until_it_is_taken_out(make):
    log = Log(make())

    def shown(at):  # every candidate that may be shown is
        return {*ids(log.write(request(candidates=["toys-0", "shoes-0"], at=at), at=at)[0])}

    (slate,) = log.write(event("add_to_cart", item="toys-0"))
    assert "toys-0" not in ids(slate)
    for i in range(5):
        assert "toys-0" not in ids(log.write(event("click", item="shoes-0", at=T0 + i))[0])
    assert shown(T0 + 5) == {"shoes-0"}
    log.write(event("remove_from_cart", item="toys-0", at=T0 + HOUR), at=T0 + HOUR)
    assert shown(T0 + HOUR + 1) == {"toys-0", "shoes-0"}


def test_propensities_of_a_position_sum_to_one_over_what_rules_leave(under, members):
    log = under(
        Rules(
            boosts=np.where(members("coffee"), 3, 1).astype(np.float32),
            caps=[("two", np.where(members("coffee"), 0, -1).astype(np.int32), 2)],
            pins=[("first", 0, members("garden"))],
            shares=[("toys", members("toys"), 0.2, 0.5, 100)],
        ),
        decisions={"full_share": 1.0},
    )
    log.write(*[event("click", user=f"u{i}", item="shoes-1") for i in range(10)])
    from headrace.streams import evaluate_records as records
    from headrace.streams.records import Transitions

    engine = log.engine
    found = records.Decisions(engine.settings)
    found.read(Transitions(0, 0, T0, False, log.of(Opened)))
    decisions = list(found._found.values())
    assert len(decisions) == 10 and all(d.bound and d.opened is not None and d.opened.constraints for d in decisions)
    for decision in decisions:
        served = make_policy(engine.settings, decision.opened.policy, dim=found.dim)
        chosen, _, _ = records._rescored([decision], served, 10)
        assert np.allclose(chosen[0, : decision.size], np.frombuffer(decision.propensities, "<f8"))


def test_shares_that_owe_the_whole_slate_restrict_its_first_position(under, members):
    """Neither share owes it alone. 1/p of such a position does not tell how many candidates there were."""
    halves = [("toys", members("toys"), 0.5, None, 100), ("shoes", members("shoes"), 0.5, None, 100)]
    log = under(Rules(shares=halves), placements={"default": {"k": 4}})
    (slate,) = log.write(event("click", item="coffee-0"))
    even = 0.1 / 8  # of eight, not of fifteen
    assert min(abs(slate["items"][0]["propensity"] - p) for p in (even, 0.9 + even)) < 1e-9
    assert all(o.restricted for o in log.of(Opened)) and not log.effects.calibration


def test_a_share_that_owes_all_that_is_left_restricts_the_first_position(under, members):
    log = under(Rules(shares=[("toys", members("toys"), 0.5, None, 100)]), placements={"default": {"k": 4}})
    log.write(request(candidates=["toys-0", "shoes-0"]), request(user="v", candidates=["toys-0", *NAMES[:8]]))
    assert [o.restricted for o in log.of(Opened)] == [True, False]


def test_accounts_of_shares_that_are_gone_go_too(under, members):
    rules = Rules(shares=[("toys", members("toys"), 0.25, 0.5, 100)])
    log = under(rules)
    log.write(event("click", item="shoes-0"))
    assert len(log.engine.exposure.accounts) == 2
    rules.force = InForce(version=8, shares=[("shoes", members("shoes"), 0.25, None, 100)])
    log.write(event("click", item="shoes-0"))
    assert list(log.engine.exposure.accounts) == ["default\0shoes\0least"]


def test_what_was_shown_counts_by_its_time_also_where_it_is_told_late():
    state = UserState()
    for second in (100, 40, 101):
        note_shown(state, [7], second=second, since=0)
    assert list(shown_often(state, most=2, since=60)) == [7]
    assert not list(shown_often(state, most=3, since=60))


def test_a_show_within_the_second_in_which_the_time_begins_counts():
    state = UserState()
    note_shown(state, [7], second=60, since=0)
    now, within = 120_300, 60_000  # shown at 60.9 s, say: 59.4 s ago
    assert list(shown_often(state, most=1, since=(now - within) // 1000)) == [7]
    assert not list(shown_often(state, most=1, since=61))


def test_what_was_shown_before_any_rule_asks_is_forgotten():
    state = UserState()
    note_shown(state, [7, 8], second=10, since=0)
    note_shown(state, [8], second=30, since=0)
    note_shown(state, [9], second=40, since=20)
    assert state.notes.shows == {8: [30], 9: [40]}


def test_who_sees_a_slate_every_fifteen_seconds_is_counted_for_an_hour():
    state = UserState()
    for n in range(240):
        note_shown(state, range(n % 120 * 10, n % 120 * 10 + 10), second=n * 15, since=0)
    assert sorted(shown_often(state, most=2, since=0)) == list(range(1_200))
