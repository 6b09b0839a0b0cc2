"""No profiling: slates without a history, nothing remembered, nothing learned; and back again."""

from __future__ import annotations

import msgspec
import pytest

from headrace.streams.changelog import user_key
from headrace.streams.messages import Decoder
from headrace.streams.people import optout
from headrace.streams.people.merging import absorb
from headrace.streams.records import Behaviour, Closed, Erased, Event, Opened, Outcome
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from tests.engine import MINUTE, T0, event, ids, request


def refuse(**more):
    return event("dismiss", text="profiling", **more)


def state_of(log, user="u"):
    return UserState.unpack(log.engine.states[user_key(user)])


def read(message):
    return Decoder(Settings()).event(msgspec.json.encode(message), now_ms=T0, sent_ms=T0)


def test_the_contract():
    told = {"event_id": "e", "user_id": "u", "type": "dismiss", "ts": T0}
    assert isinstance(read({**told, "text": "profiling"}), Event)
    assert isinstance(read({**told, "type": "like", "text": "profiling"}), Event)
    assert read({**told, "text": "something"}).reason == "missing"
    assert read({**told, "type": "view", "text": "profiling"}).reason == "missing"
    about_an_item = read({**told, "text": "profiling", "item_id": "i1"})
    assert optout.choice(about_an_item.type, about_an_item.item_id, about_an_item.text) is None


def test_his_slates_are_those_of_somebody_nobody_knows(log):
    """Same request, same random numbers, same arm: known, refused, and never seen."""
    for item in ("coffee-0", "coffee-1", "coffee-2"):
        log.write(event(item=item))
    log.write(event("search", text="espresso"))
    known = log.write(request(id="q1"))[0]
    assert any(log.of(Opened)[-1].state)

    log.write(refuse())
    assert state_of(log).keys == b"" and not state_of(log).notes.texts
    log.write(event(item="coffee-3"), event("search", text="filter coffee"))
    states = [opened.state for opened in log.of(Opened)]
    slate = log.write(request())[0]

    opened = log.of(Opened)[-1]
    assert not any(opened.state) and any(states[0])
    assert {i["reason"] for i in slate["items"]} <= {"popular now", "something new to you"}
    assert slate["policy"]["arm"] == known["policy"]["arm"]
    assert state_of(log).keys == b""


def test_nothing_is_learned_from_him_and_what_was_is_forgotten(log):
    log.write(event(item="toys-0"))
    log.records.clear()
    log.write(refuse(id="no"))
    assert [type(r) for r in log.records] == [Closed, Erased]
    assert log.of(Closed)[0].closed_as == "erased"

    log.records.clear()
    slate = log.write(event(item="toys-1"))[0]
    log.write(event("click", item=ids(slate)[0], recommendation_id=slate["recommendation_id"]))
    assert not log.of(Behaviour)
    assert all(record.busy for record in (*log.of(Opened), *log.of(Outcome)))
    assert log.of(Outcome), "his clicks are counted for their arm"
    assert log.engine.counts["busy/decision"] == 0


def test_what_he_bought_and_has_in_his_cart_is_still_left_out(log):
    log.write(refuse())
    log.write(event("purchase", item="garden-0"), event("add_to_cart", item="garden-1"))
    slate = log.write(request(k=16))[0]
    assert len(slate["items"]) == 14 and not {"garden-0", "garden-1"} & {*ids(slate)}


def test_he_takes_it_back_and_begins_anew(log):
    log.write(event(item="toys-0"))
    log.write(refuse(at=T0 + 1000))
    log.write(event("like", text="profiling", at=T0 + 2000))
    assert not optout.refused(state_of(log))
    log.write(event(item="toys-1", at=T0 + 3000))
    assert len(state_of(log).types) == 1
    assert not log.of(Opened)[-1].busy


@pytest.mark.parametrize("refuses_last", [True, False])
def test_the_latest_choice_counts_in_whatever_order_they_come(log, refuses_last):
    first, last = refuse(at=T0 + 1000 + 5000 * refuses_last), event("like", text="profiling", at=T0 + 3000)
    log.write(last)
    log.write(first)
    assert optout.refused(state_of(log)) == refuses_last


@pytest.mark.parametrize("refuses_last", [True, False])
def test_within_a_second_too_the_latest_choice_counts(log, refuses_last):
    first, last = [refuse(at=T0 + 100), event("like", text="profiling", at=T0 + 900)], refuse(at=T0 + 950)
    log.write(*([*first, last] if refuses_last else [last, *first]))
    assert optout.refused(state_of(log)), "in whatever order they come"
    log.write(event("like", text="profiling", at=T0 + 950))
    assert not optout.refused(state_of(log)), "of equally late ones the one that comes last"


@pytest.mark.parametrize("mine_first", [True, False])
@pytest.mark.parametrize(
    ("refused_at", "wanted_at", "counts"), [(T0 + 100, T0 + 900, False), (T0 + 900, T0 + 100, True), (T0, T0, True)]
)
def test_within_a_second_the_latest_choice_counts_also_over_a_merge(log, mine_first, refused_at, wanted_at, counts):
    log.write(refuse(user="u", at=refused_at), event("like", text="profiling", user="a", at=wanted_at))
    mine, other = (state_of(log, user) for user in ("ua" if mine_first else "au"))
    absorb(mine, other, user="u", sent_as="a", settings=Settings())
    assert optout.refused(mine) == counts and optout.chosen_at(mine.notes) == max(refused_at, wanted_at)


def test_repeats_and_choices_make_nobody_due(log):
    log.write(refuse(id="no"))
    assert log.write(refuse(id="no")) == []
    assert log.engine.counts["events/dismiss/duplicate"] == 1
    assert log.write(event("like", text="profiling", at=T0 + MINUTE)) == []


def test_it_holds_for_an_id_that_becomes_his():
    mine, other = UserState(), UserState()
    mine.note().profiling = T0 // 1000
    other.append(5, type_code=1, ts=T0, window=50)
    absorb(mine, other, user="u", sent_as="a", settings=Settings())
    assert optout.refused(mine) and mine.keys == b""
