"""Slates: what the contract says of them, what steers them, what may not be in them."""

import numpy as np
import pytest

from headrace.policy.features import SCALARS
from headrace.policy.snapshot import pack
from headrace.streams.records import (
    Item,
    Opened,
    PolicyVersion,
)
from headrace.streams.settings import Settings
from tests.engine import DAY, ITEMS, T0, Log, event, ids, request

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
        learn_to_follow_similarity(log.engine.recommender.policies, shared.encoder.dim)
        similarity = []
        for i in range(30):
            before = [event("view", user=f"u{i}", item="toys-0"), event("view", user=f"u{i}", item="garden-1")]
            last = event("search", user=f"u{i}", text="coffee beans") if search else event(user=f"u{i}", item="toys-2")
            (slate,) = log.write(*before, last)
            assert slate["policy"] == {"name": Settings().policy.name, "version": 1, "arm": "policy"}
            similarity += [float(vectors[item] @ query) for item in ids(slate)]
        return np.mean(similarity)

    assert towards(search=True) > towards(search=False) + 0.1


def learn_to_follow_similarity(policies, d):
    """A policy version that ranks by similarity to the state, so that the test sees states and not chance."""
    from headrace.policy.base import Examples

    policy = policies._make(Settings().policy.name, d)
    rng = np.random.default_rng(0)
    n, m = 400, len(SCALARS)
    states = rng.standard_normal((n, d)).astype(np.float32)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    mix = rng.random((n, 1)).astype(np.float32)
    items = mix * states + (1 - mix) * rng.standard_normal((n, d)).astype(np.float32) / np.sqrt(d)
    policy.learn(
        Examples(
            states=states,
            contexts=np.zeros((n, policies.contexts), np.float32),
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
    policies.apply(PolicyVersion(policy.name, policy.name, 1, 0, 0, 0, digest, data, {}))


# -- requests ---------------------------------------------------------------------------------------------------------


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
