"""One partition of the worker with real models and no Kafka: what a record of `interactions` leads to."""

import numpy as np
import pytest

from headrace.policy.features import SCALARS
from headrace.streams.changelog import PROGRESS, decode_progress, user_key
from headrace.streams.decisions import recommendation_name
from headrace.streams.errors import Fatal
from headrace.streams.records import (
    Behaviour,
    Closed,
    Erased,
    Erasure,
    Opened,
    Outcome,
    item_key,
)
from headrace.streams.state import UserState
from tests.engine import DAY, HOUR, ITEMS, MINUTE, T0, Log, counted, event, ids

# -- duplicates, erasures, time ---------------------------------------------------------------------------------------


def test_duplicates_within_and_across_records_are_counted_and_change_nothing(log):
    log.write(event("view", item="toys-0", id="a"), event("view", item="toys-0", id="a"))
    assert (counted(log, "events", "view", "applied"), counted(log, "events", "view", "duplicate")) == (1, 1)
    before = log.engine.states[user_key("u")]
    assert log.write(event("view", item="toys-0", id="a")) == []
    assert counted(log, "events", "view", "duplicate") == 1
    assert log.engine.states[user_key("u")] == before
    assert log.engine.counts["events/view/applied"] == 1
    assert log.engine.counts["events/view/duplicate"] == 2


def test_an_erased_user_is_gone_and_his_late_events_are_dropped(log):
    log.write(event("view", item="toys-0"), event("click", item="toys-1"))
    log.write(Erasure("u", T0 + MINUTE, 0))
    assert user_key("u") not in log.engine.states
    assert log.effects.changes[user_key("u")] is None
    assert [c.closed_as for c in log.of(Closed)] == ["erased"]
    assert log.of(Erased) == [Erased("u", T0 + MINUTE)]
    assert log.engine.open_decisions == 0
    assert log.write(event("view", item="toys-0", at=T0 + MINUTE)) == []
    assert counted(log, "events", "view", "erased") == 1
    (slate,) = log.write(event("view", item="toys-0", at=T0 + 2 * MINUTE))  # he comes back as somebody new
    assert slate["user_id"] == "u"
    assert UserState.unpack(log.engine.states[user_key("u")]).count == 1


def test_an_erasure_in_the_middle_of_a_record_drops_what_came_before_it(log):
    slates = log.write(event("view", item="toys-0"), Erasure("u", T0, 0), event("view", user="v", item="toys-0"))
    assert [s["user_id"] for s in slates] == ["v"]
    assert user_key("u") not in log.engine.states


def test_triggers_older_than_the_set_age_get_no_slate(log):
    log.write(at=T0 + DAY)
    assert log.write(event("view", item="toys-0"), at=T0 + DAY) == []
    assert counted(log, "stale_triggers") == 1
    assert counted(log, "events", "view", "applied") == 1  # it is history all the same


def test_a_tick_closes_what_has_had_its_time(log):
    (slate,) = log.write(event("click", item="toys-0"))
    name = slate["recommendation_id"]
    log.write(event("impression", recommendation_id=name, at=T0 + MINUTE))
    log.write(event("click", item=slate["items"][3]["item_id"], recommendation_id=name, at=T0 + MINUTE))
    log.write(at=T0 + 6 * DAY, tick=True)
    assert log.of(Closed) == []
    log.write(at=T0 + 8 * DAY, tick=True)
    closed = {c.recommendation_id: c for c in log.of(Closed)}[name]
    assert (closed.closed_as, closed.rewards[3], sum(closed.rewards)) == ("shown", 1.0, 1.0)
    assert log.engine.open_decisions == 0


def test_open_decisions_a_user_are_capped_and_the_cap_is_counted(make):
    log = Log(make(worker={"pending": 3}))
    for i in range(5):
        log.write(event("view", item="toys-0", at=T0 + i))
    assert log.engine.open_decisions == 3
    assert log.engine.counts["pending_capped"] == 2
    assert [c.closed_as for c in log.of(Closed)] == ["unshown", "unshown"]


# -- what is learned from ---------------------------------------------------------------------------------------------


def test_a_decision_is_opened_with_all_that_learning_needs(log, shared):
    (slate,) = log.write(event("click", item="shoes-0"))
    (opened,) = log.of(Opened)
    d, m = shared.encoder.dim, len(SCALARS)
    assert opened.recommendation_id == slate["recommendation_id"]
    assert opened.slate == ids(slate)
    assert np.frombuffer(opened.propensities).tolist() == [i["propensity"] for i in slate["items"]]
    assert np.frombuffer(opened.state, np.float32).shape == (d,)
    assert np.frombuffer(opened.items, np.float16).shape == (10 * d,)
    assert np.frombuffer(opened.scalars, np.float32).shape == (10 * m,)
    assert {item_key(i) for i in opened.slate} <= set(np.frombuffer(opened.candidates, np.uint64).tolist())
    assert [b.item for b in log.of(Behaviour)] == [item_key("shoes-0")]


def test_a_shop_that_shows_one_slate_in_ten_and_four_places_of_ten_teaches_nothing_unseen(log):
    for i in range(20):
        (slate,) = log.write(event("view", user=f"u{i}", item=ITEMS[i % 16][0]))
        if i % 10 == 0:
            shown = ids(slate)[:4]
            log.write(
                event("impression", user=f"u{i}", recommendation_id=slate["recommendation_id"], shown=shown),
                event("click", user=f"u{i}", item=shown[1], recommendation_id=slate["recommendation_id"]),
            )
    log.write(at=T0 + 9 * DAY)
    shown = [c for c in log.of(Closed) if c.closed_as == "shown"]
    assert len(shown) == 2
    assert [c.shown for c in shown] == [[0, 1, 2, 3]] * 2
    taught = {(o.recommendation_id, p) for o in log.of(Outcome) for p in o.positions}
    assert taught == {(c.recommendation_id, p) for c in shown for p in range(4)}


def test_a_crawler_keeps_his_state_and_teaches_nothing_until_he_slows_down(make):
    log = Log(make(worker={"busy_events": 5, "busy_within": "1m"}))
    (first,) = log.write(event("view", item="toys-0"))
    for i in range(1, 8):
        log.write(event("view", item=f"toys-{i % 4}", at=T0 + i * 1_000))
    log.write(event("click", item=ids(first)[0], recommendation_id=first["recommendation_id"], at=T0 + 9_000))
    assert len(log.slates) == 9, "he gets his slates"
    assert len(log.of(Behaviour)) == 5, "the sixth event had five within a minute before it"
    assert [opened.busy for opened in log.of(Opened)] == [False] * 4 + [True] * 5
    assert [outcome.busy for outcome in log.of(Outcome)] == [True]
    assert (log.engine.counts["busy/event"], log.engine.counts["busy/decision"]) == (4, 5)
    log.write(event("view", item="toys-0", at=T0 + 3 * MINUTE))
    assert len(log.of(Behaviour)) == 6 and not log.of(Opened)[-1].busy
    log.write(*(event("view", user=f"u{i}", item="toys-0", at=T0 + 3 * MINUTE) for i in range(9)))
    assert len(log.of(Behaviour)) == 15, "many users are no crawler"


# -- a record that fails ----------------------------------------------------------------------------------------------


@pytest.fixture
def failing(log, monkeypatch):
    """Names of the events that cannot be applied."""
    names, step = set(), type(log.engine)._apply

    def fails(engine, batch, offset, entries, *more):
        if any(entry.event_id in names for entry in entries):
            raise RuntimeError("no")
        return step(engine, batch, offset, entries, *more)

    monkeypatch.setattr(type(log.engine), "_apply", fails)
    return names


def test_an_entry_that_cannot_be_applied_is_set_aside_and_the_others_go_on(log, failing):
    failing.add("bad")
    good = [event("view", user=f"u{i}", item="toys-0") for i in range(6)]
    slates = log.write(*good[:4], event("view", user="x", item="toys-0", id="bad"), *good[4:], expect_failure=True)
    assert len(slates) == 6
    assert [entry.event_id for entry, _ in log.effects.failed] == ["bad"]
    assert user_key("x") not in log.engine.states


def test_when_nothing_can_be_applied_for_several_users_it_ends_and_skips_nothing(log, failing):
    failing.update(("bad-1", "bad-2"))
    with pytest.raises(Fatal, match=r"interactions\[0\]@0: nothing can be applied any more \(2 users.*put back"):
        log.write(event(user="u", item="toys-0", id="bad-1"), event(user="v", item="toys-0", id="bad-2"))
    assert log.engine.applied == -1


def test_failures_in_a_row_count_over_records_and_until_something_is_applied(log, failing):
    failing.add("bad")

    def bad(user):
        return event(user=user, item="toys-0", id="bad")

    log.write(bad("u"), bad("u"), expect_failure=True)  # one user's may be his own data's fault
    log.write(bad("u"), expect_failure=True)
    log.write(event(user="w", item="toys-0"))
    log.write(bad("v"), expect_failure=True)
    log.write(tick=True)
    with pytest.raises(Fatal):
        log.write(bad("u"))


# -- recovery ---------------------------------------------------------------------------------------------------------


def test_an_engine_rebuilt_from_its_changelog_goes_on_as_if_it_had_never_stopped(make):
    changelog = {}

    def commit(log):
        for key, value in log.effects.changes.items():
            if value is None:
                changelog.pop(key, None)
            else:
                changelog[key] = value
        changelog[PROGRESS] = log.engine.progress()

    log = Log(make())
    for i in range(12):
        log.write(event("click", user=f"u{i % 4}", item=ITEMS[i % 16][0], at=T0 + i * HOUR), at=T0 + i * HOUR)
        commit(log)
    progress = decode_progress(changelog.pop(PROGRESS))
    again = Log(make(states=changelog, progress=progress))
    again.offset = log.offset
    assert again.engine.applied == 11
    assert again.engine.counts == log.engine.counts
    assert again.engine.open_decisions == log.engine.open_decisions
    for log_ in (log, again):
        log_.write(event("view", user="u1", item="garden-2", at=T0 + 20 * HOUR, id="next"), at=T0 + 20 * HOUR)
        log_.write(at=T0 + 9 * DAY)
    assert again.slates[-1] == log.slates[-1]
    assert [c for c in log.of(Closed) if c.opened_ts >= T0] == again.of(Closed)


def test_ids_of_recommendations_name_their_place_in_the_log(log):
    (slate,) = log.write(event("view", item="toys-0", id="x"))
    (other,) = log.write(event("view", item="toys-0", id="y"))
    assert slate["recommendation_id"] != other["recommendation_id"]
    assert len(slate["recommendation_id"]) == len(recommendation_name(b"1" * 12)) == 26
