"""A decision's life, one state at a time: joins, windows, returns, what counts as shown."""

import itertools

import pytest

from headrace.streams.decisions import Decisions, arm_code, recommendation_name
from headrace.streams.records import Event, item_key
from headrace.streams.settings import EventType, Settings, builtin_event_types
from headrace.streams.state import UserState

T0 = 1_790_000_000_000
MINUTE, DAY = 60_000, 86_400_000
SLATE = ["a", "b", "c", "d"]
FIRST, SECOND = b"1" * 12, b"2" * 12


@pytest.fixture
def decisions():
    return Decisions(Settings(), ["policy", "random"])


@pytest.fixture
def state():
    """Two open decisions, the second an hour after the first, both with the same slate."""
    state = UserState()
    keys = b"".join(item_key(i).to_bytes(8, "little") for i in SLATE)
    state.open(FIRST, ts=T0, arm=arm_code("policy"), keys=keys)
    state.open(SECOND, ts=T0 + 60 * MINUTE, arm=arm_code("random"), keys=keys)
    return state


_numbers = itertools.count()


def event(kind, *, item=None, at=MINUTE, of=None, **more):
    name = None if of is None else recommendation_name(of)
    return Event(f"e{next(_numbers)}", "u", kind, T0 + at, 0, item_id=item, recommendation_id=name, **more)


def test_an_outcome_that_names_its_decision_is_joined_by_id(decisions, state):
    outcome, word = decisions.join(state, event("click", item="b", of=FIRST))
    assert word == "id"
    assert (outcome.recommendation_id, outcome.positions, outcome.reward) == (recommendation_name(FIRST), [1], 1.0)
    assert (outcome.arm, outcome.matched, outcome.opened_ts) == ("policy", "id", T0)


def test_an_outcome_without_a_name_goes_to_the_latest_decision_known_to_have_shown_the_item(decisions, state):
    assert decisions.join(state, event("click", item="b"))[1] == "unmatched"  # nobody is known to have seen a slate
    decisions.join(state, event("impression", of=FIRST))
    decisions.join(state, event("impression", of=SECOND, at=61 * MINUTE, shown=["a", "b"]))
    outcome, _ = decisions.join(state, event("click", item="b", at=62 * MINUTE))
    assert (outcome.recommendation_id, outcome.matched) == (recommendation_name(SECOND), "item")
    outcome, _ = decisions.join(state, event("purchase", item="d", at=62 * MINUTE))  # the second did not show it
    assert outcome.recommendation_id == recommendation_name(FIRST)
    outcome, _ = decisions.join(state, event("click", item="b", at=20 * MINUTE))  # before the second was taken
    assert outcome.recommendation_id == recommendation_name(FIRST)


@pytest.mark.parametrize(("kind", "window"), [("click", 30 * MINUTE), ("add_to_cart", DAY), ("purchase", 7 * DAY)])
def test_each_type_has_its_own_window(decisions, state, kind, window):
    assert decisions.join(state, event(kind, item="a", of=FIRST, at=window))[1] == "id"
    assert decisions.join(state, event(kind, item="b", of=FIRST, at=window + 1)) == (None, "late")


def test_unknown_decisions_and_items_are_counted_by_name(decisions, state):
    assert decisions.join(state, event("click", item="z", of=FIRST))[1] == "unmatched"
    assert (
        decisions.join(state, event("click", item="a", of=b"9" * 12))[1] == "late"
    )  # one of ours, closed or never his
    foreign = Event("x", "u", "click", T0, 0, item_id="a", recommendation_id="their-own-id")
    assert decisions.join(state, foreign)[1] == "unmatched"
    assert decisions.join(state, event("view", item="a")) == (None, None)  # earns nothing, names nothing


def test_a_return_takes_its_purchase_back_once(decisions, state):
    bought, _ = decisions.join(state, event("purchase", item="c", of=FIRST, order_id="o1"))
    back, word = decisions.join(state, event("return", item="c", at=DAY, order_id="o1"))
    assert word == "id"
    assert back.reward == -bought.reward == -5.0
    assert back.positions == [2]
    assert decisions.join(state, event("return", item="c", at=DAY, order_id="o1"))[1] == "duplicate"
    assert decisions.join(state, event("return", item="a", at=DAY, order_id="o1"))[1] == "unmatched"
    closed = decisions.close_passed(state, now=T0 + 9 * DAY, user_id="u")
    assert closed[0].rewards == [0.0, 0.0, 0.0, 0.0]


def test_a_return_reaches_a_purchase_whose_decision_has_closed(decisions, state):
    decisions.join(state, event("purchase", item="c", of=FIRST, order_id="o1", at=6 * DAY))
    decisions.close_passed(state, now=T0 + 20 * DAY, user_id="u")
    back, word = decisions.join(state, event("return", item="c", at=21 * DAY, order_id="o1"))
    assert (word, back.reward, back.recommendation_id) == ("id", -5.0, recommendation_name(FIRST))
    assert decisions.join(state, event("return", item="c", at=60 * DAY, order_id="o1"))[1] in ("late", "duplicate")


def test_the_same_order_line_earns_once(decisions, state):
    decisions.join(state, event("purchase", item="c", of=FIRST, order_id="o1"))
    assert decisions.join(state, event("purchase", item="c", of=FIRST, order_id="o1")) == (None, "duplicate")


def test_rewards_weigh_value_and_quantity_as_the_settings_say(state):
    types = builtin_event_types() | {"purchase": EventType(reward=0.1, times="value_quantity", window=7 * DAY)}
    outcome, _ = Decisions(Settings(event_types=types), ["policy"]).join(
        state, event("purchase", item="a", of=FIRST, value=20.0, quantity=3)
    )
    assert outcome.reward == pytest.approx(6.0)


def test_what_nobody_saw_closes_as_unshown(decisions, state):
    closed = decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")
    assert [c.closed_as for c in closed] == ["unshown", "unshown"]
    assert [c.shown for c in closed] == [[], []]


def test_only_the_positions_an_impression_names_close_as_shown(decisions, state):
    decisions.join(state, event("click", item="b", of=FIRST))
    outcome, _ = decisions.join(state, event("impression", of=FIRST, shown=["a", "b"]))
    assert outcome.positions == [0, 1]
    first, second = decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")
    assert (first.closed_as, first.shown, first.rewards) == ("shown", [0, 1], [0.0, 1.0])
    assert (first.next_recommendation_id, first.elapsed_ms) == (recommendation_name(SECOND), 60 * MINUTE)
    assert (second.closed_as, second.next_recommendation_id) == ("unshown", None)


def test_a_repeated_impression_teaches_only_what_is_new(decisions, state):
    decisions.join(state, event("impression", of=FIRST, shown=["a"]))
    outcome, _ = decisions.join(state, event("impression", of=FIRST, shown=["a", "c"]))
    assert outcome.positions == [2]
    assert decisions.join(state, event("impression", of=FIRST, shown=["a", "c"])) == (None, "id")


@pytest.mark.parametrize("shown", [["a", "z"], ["b", "a"], ["a", "a"]])
def test_a_slate_that_the_shop_altered_has_no_propensity(decisions, state, shown):
    assert decisions.join(state, event("impression", of=FIRST, shown=shown)) == (None, "id")
    assert decisions.join(state, event("click", item="a", of=FIRST)) == (None, "id")  # counted, not learned
    closed = decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")
    assert (closed[0].closed_as, closed[0].shown) == ("altered", [])


def test_a_named_outcome_without_impressions_means_the_whole_slate_was_shown(decisions, state):
    decisions.join(state, event("click", item="d", of=FIRST))
    closed = decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")
    assert (closed[0].closed_as, closed[0].rewards) == ("shown", [0.0, 0.0, 0.0, 1.0])
    assert closed[1].closed_as == "unshown"


def test_a_decision_stays_open_until_its_widest_window_has_passed(decisions, state):
    assert decisions.close_passed(state, now=T0 + 7 * DAY, user_id="u") == []
    assert len(decisions.close_passed(state, now=decisions.expires_at(T0), user_id="u")) == 1


def test_a_shop_that_cannot_tell_may_have_every_slate_assumed_shown(state):
    settings = Settings(decisions={"assume_shown": True})
    decisions = Decisions(settings, ["policy"])
    outcome, word = decisions.join(state, event("click", item="a", at=61 * MINUTE))
    assert (word, outcome.recommendation_id) == ("item", recommendation_name(SECOND))
    assert decisions.close_passed(state, now=T0 + 8 * DAY, user_id="u")[0].closed_as == "shown"
