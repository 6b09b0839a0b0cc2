"""Placements on real models: who decides there, among which candidates; what the page is about steers it."""

import numpy as np
import pytest

from headrace.policy.behaviour import CoOccurrence, behaviour
from headrace.streams import overview
from headrace.streams.engine import Engine
from headrace.streams.learning import Learning
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import Command, Opened, item_key
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of, version_of
from tests.engine import ITEMS, T0, Log, event, ids, request
from tests.factories import make_impression, make_opened, make_outcome, make_transitions
from tests.test_benchmarks import module

DIM = 8
ANCHOR = "shoes-0"
AFTER = ["garden-3", "garden-2"]  # what is bought and viewed after it; nothing like it


@pytest.fixture
def shop(shared):
    """`shop(arms=..., placements=...)`: an engine on the shared catalogue, with policies of its own."""

    def make(**sections):
        settings = Settings(**sections)
        policies = Policies(settings, shared.items, dim=shared.encoder.dim)
        pairs = CoOccurrence()
        anchor = np.array([item_key(ANCHOR)], np.uint64).tobytes()
        for item, times, kind in ((AFTER[0], 6, "purchase"), (AFTER[1], 3, "purchase")):
            pairs.learn(behaviour([item_key(item)] * times, [kind] * times, [T0] * times, [anchor] * times))
        for shard, (arrays, meta) in pairs.shards().items():
            part = f"co_occurrence/{shard}"
            policies.apply(version_of(part, arrays, meta, version=1, offset=0, replay_from=0, created_ms=0))
        recommender = Recommender(
            settings, items=shared.items, policies=policies, encoder=shared.encoder, texts=shared.recommender.texts
        )
        shared.encoder.flush()
        return Log(Engine(settings, 0, recommender))

    return make


def test_on_a_product_page_what_goes_with_the_item_leads(shop):
    log = shop(arms={"shares": {"item_to_item": 1.0}}, placements={"page": {"k": 4}})
    slates = [log.write(request(user=f"u{i}", placement="page", anchor_item_id=ANCHOR))[0] for i in range(40)]
    assert all(ANCHOR not in ids(slate) for slate in slates)
    best = [max(slate["items"], key=lambda item: item["score"])["item_id"] for slate in slates]
    assert best.count(AFTER[0]) > 30
    without = log.write(request(user="u0", placement="page"))[0]
    assert max(item["score"] for item in without["items"]) < max(item["score"] for item in slates[0]["items"])


def test_a_page_of_what_is_similar_and_complementary_holds_nothing_else(shop, shared):
    page = {"k": 16, "sources": ["similar", "complementary"]}
    few = {"candidates": 10}  # of 10 places one is a neighbour's and one a follower's
    log = shop(arms={"shares": {"item_to_item": 1.0}}, placements={"page": page}, worker=few)
    slate = log.write(request(placement="page", anchor_item_id=ANCHOR))[0]
    row = shared.items.rows[item_key(ANCHOR)]
    nearest = shared.items.ids[shared.items.neighbours(np.array([row]))[0, 0]]
    assert set(ids(slate)) == {nearest, AFTER[0]} and nearest.startswith("shoes")
    assert log.write(request(placement="page"))[0]["items"] == []  # nothing is looked at: an answer, and it is empty
    assert log.of(Opened)[-1].slate == ids(slate)


# -- who decides ------------------------------------------------------------------------------------------------------


def test_a_placement_has_its_own_arms_and_policy(shop):
    shares = {"policy": 0.5, "popular": 0.5}
    log = shop(
        arms={"shares": shares},
        policy={"name": "linucb"},
        placements={"email": {"arms": ["popular"]}, "page": {"policy": "item_to_item"}, "home": {"arms": ["policy"]}},
    )
    told = {}
    for placement in ("default", "email", "page", "home"):
        asked = [request(user=f"u{i}", placement=placement) for i in range(60)]
        told[placement] = {(s["policy"]["arm"], s["policy"]["name"]) for s in log.write(*asked)}
    nothing_learned = ("policy", "popular")
    assert told["default"] == {nothing_learned, ("popular", "popular")}
    assert told["email"] == {("popular", "popular")}
    assert told["page"] == {("policy", "item_to_item"), ("popular", "popular")}
    assert told["home"] == {nothing_learned}


def test_a_holdout_is_one_at_every_placement(shop):
    shares = {"policy": 0.5, "holdout": 0.5}
    log = shop(arms={"shares": shares}, placements={"home": {"arms": ["policy"]}})
    slates = log.write(*(event("view", user=f"u{i}", item=ITEMS[0][0], placement="home") for i in range(60)))
    assert 10 < len(slates) < 50


def settings_of(**home):
    arms = {"shares": {"policy": 0.5, "popular": 0.5}}
    return Settings(policy={"name": "linucb"}, arms=arms, placements={"home": home}, learner={"outstanding": False})


def learn(learning, *, policy="lints", placement="home", arm="policy", first=0):
    """One message in which a hundred slates are shown and clicked; its versions by part."""
    records = []
    for i in range(first, first + 100):
        name = f"r-{i}"
        records += [
            make_opened(name, user=f"u{i}", d=DIM, c=2, arm=arm, policy=policy, placement=placement),
            make_impression(name, positions=[0, 1, 2]),
            make_outcome(name),
        ]
    message = make_transitions(*records, tick=True)
    return {version.part: version for version in learning.apply(message, first)}


def test_a_placements_policy_is_learned_and_served():
    settings = settings_of(policy="lints")
    learning = Learning(settings, dim=DIM)
    versions = learn(learning)
    assert {"linucb", "lints"} <= versions.keys()
    assert arrays_of(versions["lints"])[1]["learned"] >= 300


def test_a_policy_that_learns_from_its_own_learns_from_its_placement():
    """Also what was popular decided there before it had learned anything."""
    settings = settings_of(policy="lints").model_copy(
        update={"learner": Settings(learner={"learn_from": "own", "outstanding": False}).learner}
    )
    learning = Learning(settings, dim=DIM)
    versions = learn(learning, policy="popular")
    learned = {name: arrays_of(versions[name])[1]["learned"] for name in ("lints", "linucb") if name in versions}
    assert learned.get("lints", 0) >= 300 and not learned.get("linucb", 0)


@pytest.mark.parametrize(
    ("home", "counted"), [({}, True), ({"policy": "linucb"}, False), ({"arms": ["policy"]}, False)]
)
def test_arms_are_compared_where_all_of_them_decide_with_what_they_run_everywhere(home, counted):
    learning = Learning(settings_of(**home), dim=DIM)
    learn(learning, policy="linucb")
    assert learning.gate.values()["policy"] == ((100, 1.0) if counted else (0, 0.0))
    learn(learning, policy="linucb", placement="default", first=100)
    assert learning.gate.values()["policy"][0] == (200 if counted else 100)


def test_what_serves_at_a_placement_is_listed_and_can_be_frozen():
    settings = settings_of(policy="lints")
    assert overview._by_arm(settings, {}) == {
        "linucb": ["policy"], "popular": ["popular"], "lints": ["policy@home"],
    }  # fmt: skip
    learning = Learning(settings, dim=DIM)
    learn(learning)
    learning.gate.wants(Command("c-1", "freeze", "lints", "me", "a test", 1), 0)
    learn(learning, first=100)
    assert "lints" in learning.gate.frozen


# -- what is learned --------------------------------------------------------------------------------------------------


def test_a_taste_of_the_device_is_learned_for_users_never_seen_before():
    """The benchmark in small: better than the best that could be shown to somebody whose device is not known."""
    small = module("placements")
    assert small.device(1, 1_400)[1_000:].mean() > 1.1 * small.best(small.tastes(1).mean(axis=0))


def test_opposite_placements_are_told_apart_by_one_policy():
    rewards, kinds = module("placements").apart(1, 1_400)
    for kind in (0, 1):
        mine = rewards[kinds == kind]
        assert mine[-200:].mean() > 1.25 * mine[:100].mean()
