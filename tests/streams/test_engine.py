"""One partition of the worker with real models and no Kafka: what a record of `interactions` leads to."""

import itertools

import msgspec
import numpy as np
import pytest

from headrace.policy.snapshot import pack
from headrace.streams.decisions import recommendation_name
from headrace.streams.engine import PROGRESS, Engine, decode_progress, user_key
from headrace.streams.models import load_models
from headrace.streams.recommend import Recommender
from headrace.streams.records import (
    Batch,
    Behaviour,
    Closed,
    Erased,
    Erasure,
    Event,
    Item,
    Opened,
    Outcome,
    PolicyVersion,
    Request,
    decode_transitions,
    item_key,
)
from headrace.streams.settings import Settings
from headrace.streams.state import UserState

T0 = 1_790_000_000_000
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
TITLES = {
    "shoes": ["Trail running shoe", "Road running shoe", "Waterproof hiking boot", "Leather walking shoe"],
    "coffee": ["Espresso coffee beans", "Dark roast ground coffee", "Decaf coffee pods", "Filter coffee blend"],
    "garden": ["Steel garden spade", "Garden watering can", "Pruning shears", "Terracotta flower pot"],
    "toys": ["Wooden toy train", "Plush teddy bear", "Board game for four", "Building blocks set"],
}
ITEMS = [(f"{category}-{i}", category, title) for category, titles in TITLES.items() for i, title in enumerate(titles)]
PLACEMENTS = {"default": {"k": 10}, "home": {"k": 3}}  # policies are made for so many context columns
_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared():
    """Models with a catalogue of sixteen titles. `Settings()` of a test must not change what they are made of."""
    models = load_models(Settings(placements=PLACEMENTS))
    vectors = models.recommender.texts.encode([title for _, _, title in ITEMS]).astype(np.float16)
    for offset, ((item, category, title), vector) in enumerate(zip(ITEMS, vectors, strict=True)):
        models.items.apply(Item(item, 0, offset, vector.tobytes(), item, 10.0 + offset, category, title=title))
    models.items.settle()
    return models


@pytest.fixture
def make(shared):
    """`make(consumed={...})`: an engine with settings of its own on the shared models."""

    def engine(*, states=None, progress=None, **sections):
        sections["placements"] = PLACEMENTS | sections.get("placements", {})
        settings = Settings(**sections)
        texts = shared.recommender.texts
        recommender = Recommender(
            settings, items=shared.items, policies=shared.policies, encoder=shared.encoder, texts=texts
        )
        shared.encoder.flush()
        return Engine(settings, 0, recommender, states=states, progress=progress)

    return engine


class Log:
    """A partition of `interactions`: numbers records, applies and accepts them, keeps what came out."""

    def __init__(self, engine):
        self.engine, self.offset = engine, -1
        self.slates, self.records, self.effects = [], [], None

    def write(self, *entries, at=None, tick=False, expect_failure=False):
        self.offset += 1
        at = T0 if at is None else at
        batch = Batch("events/0", at, entries=list(entries), tick=tick)
        # what is applied is what was on the wire
        batch = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)
        self.effects = self.engine.apply(batch, self.offset)
        self.engine.accept(self.effects)
        assert expect_failure or not self.effects.failed
        slates = [msgspec.json.decode(message) for _, message in self.effects.recommendations]
        self.slates += slates
        self.records += [r for raw in self.effects.transitions for r in decode_transitions(raw).records]
        return slates

    def of(self, kind):
        return [r for r in self.records if isinstance(r, kind)]


@pytest.fixture
def log(make):
    return Log(make())


def event(kind="view", *, user="u", item=None, at=T0, **more):
    return Event(more.pop("id", f"e{next(_numbers)}"), user, kind, at, at, item_id=item, **more)


def ids(slate):
    return [item["item_id"] for item in slate["items"]]


def counted(log, *name):
    return log.effects.counts[name]


# -- slates -----------------------------------------------------------------------------------------------------------


def test_an_event_gets_a_slate_as_the_contract_says(log):
    (slate,) = log.write(event("click", item="shoes-0", id="e-81f3", context={"device": "mobile"}))
    assert slate["user_id"] == "u"
    assert slate["ts"] == T0
    assert slate["trigger"] == {"kind": "event", "id": "e-81f3"}
    assert slate["placement"] == "default"
    assert slate["schema"] == 1
    assert slate["encoder_version"].startswith("sha256:")
    assert slate["policy"]["arm"] in ("policy", "item_to_item", "popular", "random")
    assert "request_id" not in slate
    assert len(set(ids(slate))) == 10
    assert [item["position"] for item in slate["items"]] == list(range(10))
    assert all(0 < item["propensity"] <= 1 and item["reason"] for item in slate["items"])


def test_a_user_gets_one_slate_a_record_triggered_by_his_last_event(log):
    slates = log.write(
        event("view", item="shoes-0"), event("click", item="shoes-1", id="last"), event("view", user="v", item="toys-1")
    )
    assert {s["user_id"]: s["trigger"]["id"] for s in slates}["u"] == "last"
    assert len(slates) == 2


@pytest.mark.parametrize("kind", ["impression", "dismiss"])
def test_what_makes_nobody_due_gets_no_slate(log, kind):
    assert log.write(event(kind, item=None if kind == "impression" else "toys-1")) == []


def test_a_user_without_history_gets_a_sensible_slate(log):
    (slate,) = log.write(event("search", user="new", text="something nice"))
    assert len(slate["items"]) == 10


def test_the_same_log_gives_the_same_slates_whatever_the_worker_has_cached(make, shared):
    entries = [event("click", user=f"u{i % 7}", item=ITEMS[i % 16][0], at=T0 + i) for i in range(40)]

    def run(*, forget):
        log = Log(make())
        for i in range(0, 40, 5):
            log.write(*entries[i : i + 5])
            if forget:
                shared.encoder.flush()
        return log.slates

    assert run(forget=False) == run(forget=True)


def test_a_slate_does_not_depend_on_who_else_is_in_the_record(make):
    mine = event("click", item="shoes-0", id="mine")
    alone = Log(make()).write(mine)[0]
    others = [event("view", user=f"o{i}", item=ITEMS[i % 16][0]) for i in range(30)]
    among = next(s for s in Log(make()).write(*others, mine) if s["user_id"] == "u")
    assert among == alone


def test_after_a_query_the_slate_moves_towards_it(make, shared):
    """The mean similarity to the query of first places, over users who did the same before."""
    query = shared.encoder.project(shared.recommender.texts.encode_one("coffee beans")[None])[0]
    vectors = {shared.items.ids[r]: shared.items.vectors[r] for r in range(len(shared.items))}

    def towards(*, search):
        log = Log(make(arms={"shares": {"policy": 1.0}}, placements={"default": {"k": 3}}))
        similarity = []
        for i in range(30):
            before = [event("view", user=f"u{i}", item="toys-0"), event("view", user=f"u{i}", item="garden-1")]
            last = event("search", user=f"u{i}", text="coffee beans") if search else event(user=f"u{i}", item="toys-2")
            (slate,) = log.write(*before, last)
            similarity += [float(vectors[item] @ query) for item in ids(slate)]
        return np.mean(similarity)

    learn_to_follow_similarity(shared)
    assert towards(search=True) > towards(search=False) + 0.1


def learn_to_follow_similarity(shared):
    """A policy version that ranks by similarity to the state, so that the test sees states and not chance."""
    from headrace.policy.base import Examples

    policy = shared.policies._make(Settings().policy.name, shared.encoder.dim)
    rng = np.random.default_rng(0)
    n, d, m = 400, shared.encoder.dim, 10
    states = rng.standard_normal((n, d)).astype(np.float32)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    mix = rng.random((n, 1)).astype(np.float32)
    items = mix * states + (1 - mix) * rng.standard_normal((n, d)).astype(np.float32) / np.sqrt(d)
    policy.learn(
        Examples(
            states=states,
            contexts=np.zeros((n, shared.policies.contexts), np.float32),
            items=items,
            scalars=np.zeros((n, m), np.float32),
            propensities=np.full(n, 0.1),
            positions=np.zeros(n, np.int64),
            rewards=(states * items).sum(axis=1).astype(np.float64),
            fresh=np.ones(n, np.bool_),
            ids=np.arange(1, n + 1, dtype=np.uint64),
        )
    )
    data, digest = pack(*policy.snapshot())
    shared.policies.apply(PolicyVersion(policy.name, policy.name, 1, 0, 0, 0, digest, data, {}))


# -- requests ---------------------------------------------------------------------------------------------------------


def request(*, user="u", at=T0, **more):
    return Request(more.pop("id", f"q{next(_numbers)}"), user, at, at, **more)


def test_a_request_is_answered_with_its_candidates_k_exclude_and_id(log):
    (slate,) = log.write(
        request(id="q-1", k=2, candidates=["shoes-0", "shoes-1", "toys-0", "nobody"], exclude=["toys-0"])
    )
    assert slate["request_id"] == "q-1"
    assert slate["trigger"] == {"kind": "request", "id": "q-1"}
    assert set(ids(slate)) == {"shoes-0", "shoes-1"}


def test_a_request_with_no_eligible_candidate_is_answered_with_an_empty_slate(log):
    (slate,) = log.write(request(candidates=["nobody"]))
    assert slate["items"] == []
    assert log.of(Opened) == []


def test_the_item_being_looked_at_is_not_recommended_and_steers_the_slate(log):
    (slate,) = log.write(request(anchor_item_id="coffee-1"))
    assert "coffee-1" not in ids(slate)


def test_a_repeated_request_is_answered_once(log):
    assert len(log.write(request(id="q-1"), request(id="q-1"))) == 1
    assert log.write(request(id="q-1")) == []


def test_placements_have_their_own_length(make):
    log = Log(make())
    (slate,) = log.write(event("view", item="toys-0", placement="home"))
    assert (slate["placement"], len(slate["items"])) == ("home", 3)
    (slate,) = log.write(event("view", item="toys-0", placement="nowhere"))
    assert (slate["placement"], len(slate["items"])) == ("default", 10)


# -- what may be recommended ------------------------------------------------------------------------------------------


def test_unavailable_and_removed_items_are_left_out_at_once(log, shared):
    def change(item, offset, **more):
        shared.items.apply(Item(item, 0, offset, b"", "", **more))

    try:
        change("coffee-0", 100, available=False)
        change("coffee-1", 101, removed=True)
        slates = [s for i in range(20) for s in log.write(event("view", user=f"u{i}", item="coffee-2"))]
        assert not {"coffee-0", "coffee-1"} & {item for s in slates for item in ids(s)}
    finally:
        vectors = shared.recommender.texts.encode([t for i, _, t in ITEMS if i in ("coffee-0", "coffee-1")])
        for item, offset, vector in zip(("coffee-0", "coffee-1"), (102, 103), vectors.astype(np.float16), strict=True):
            shared.items.apply(Item(item, 0, offset, vector.tobytes(), item, 10.0, "coffee"))
        shared.items.settle()


def consumed_again(make, consumed, *, days):
    """Items of the slates shown `days` after buying shoes-0 and coffee-0."""
    log = Log(make(consumed=consumed, placements={"default": {"k": 16}}))
    log.write(event("purchase", item="shoes-0"), event("purchase", item="coffee-0"))
    later = T0 + int(days * DAY)
    (slate,) = log.write(event("view", item="toys-0", at=later), at=later)
    return set(ids(slate))


def test_consumed_items_are_excluded_kept_or_delayed_as_the_settings_say(make):
    both = {"shoes-0", "coffee-0"}
    assert not both & consumed_again(make, {}, days=30)
    assert both <= consumed_again(make, {"default": "keep"}, days=0)
    rule = {"default": "exclude", "categories": {"coffee": "7d"}, "items": {"shoes-0": "365d"}}
    assert not both & consumed_again(make, rule, days=6)
    assert both & consumed_again(make, rule, days=8) == {"coffee-0"}
    assert both <= consumed_again(make, rule, days=366)


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
    d, m = shared.encoder.dim, 10
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


# -- a record that fails ----------------------------------------------------------------------------------------------


def test_an_entry_that_cannot_be_applied_is_set_aside_and_the_others_go_on(log, monkeypatch):
    step = type(log.engine)._apply

    def fails(engine, batch, offset, entries):
        entries = list(entries)
        if any(getattr(e, "event_id", "") == "bad" for e in entries):
            raise RuntimeError("no")
        return step(engine, batch, offset, entries)

    monkeypatch.setattr(type(log.engine), "_apply", fails)
    good = [event("view", user=f"u{i}", item="toys-0") for i in range(6)]
    slates = log.write(*good[:4], event("view", user="x", item="toys-0", id="bad"), *good[4:], expect_failure=True)
    assert len(slates) == 6
    assert [entry.event_id for entry, _ in log.effects.failed] == ["bad"]
    assert user_key("x") not in log.engine.states


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
