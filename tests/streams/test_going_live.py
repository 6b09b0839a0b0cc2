"""Going live: shadow, ramp and holdout, on the gate and on the engine; what is old by the clock gets no slate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import ValidationError

from headrace.export.item_tower import ItemTower
from headrace.policy.snapshot import pack
from headrace.streams import overview
from headrace.streams.engine import Engine
from headrace.streams.gate import GatePart
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import Closed, Command, Opened, PolicyVersion
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of
from tests.engine import ITEMS, MINUTE, PLACEMENTS, T0, Log, counted, event, request
from tests.streams.test_gate import DIM, EVEN, Feed, Shop, make_settings

USERS = [f"u{n}" for n in range(400)]


def command(shop: Shop, action: str, policy: str, **more: Any) -> None:
    gate = shop.learner.gate
    gate.wants(Command(f"c{gate.commands + 1}", action, policy, "ann", "because", 0, **more), gate.commands + 1)


def lines(shop: Shop) -> list[tuple[str, str, str]]:
    told = [arrays_of(r)[1] for part, r in shop.published.items() if part.startswith("history/")]
    return [(str(m["action"]), str(m["policy"]), str(m["why"])) for m in sorted(told, key=lambda m: m["entry"])]


def make_policies(settings: Settings) -> Policies:
    return Policies(settings, ItemStore(ItemTower(np.eye(DIM, dtype=np.float32))), dim=DIM)


# -- the gate ---------------------------------------------------------------------------------------------------------


def test_a_ramp_is_told_to_workers_outlasts_a_restart_and_starts_the_evidence_anew() -> None:
    shop, feed = Shop(make_settings()), Feed()
    shop.play(feed, EVEN, 20)
    assert shop.learner.gate.values()["policy"][0] > 0
    policies = make_policies(shop.settings)
    before = {user: policies.live.shares.arm(user) for user in USERS}
    command(shop, "ramp", "lints", share=0.7)
    shop.play(feed, EVEN, 1)
    assert shop.learner.gate.values() == {"policy": (0, 0.0), "lints": (0, 0.0), "popular": (0, 0.0)}
    assert lines(shop) == [("ramp", "lints", "because (share 0.4 to 0.7)")]
    policies.apply(shop.published["gate"])
    after = {user: policies.live.shares.arm(user) for user in USERS}
    assert policies.live.shares.told() == pytest.approx({"policy": 0.2, "lints": 0.7, "popular": 0.1}, abs=1e-6)
    assert all(after[user] == "lints" for user in USERS if before[user] != after[user])
    shop.restart()
    assert shop.learner.gate.live.shares.share("lints") == pytest.approx(0.7)
    assert make_policies(shop.settings).live.shares.share("lints") == pytest.approx(0.4), "the record's, not ours"


def test_settings_that_changed_since_a_ramp_stand() -> None:
    shop, feed = Shop(make_settings()), Feed()
    command(shop, "ramp", "lints", share=0.7)
    command(shop, "shadow", "all")
    shop.play(feed, EVEN, 8)
    other = shop.settings.model_copy(
        update={"arms": shop.settings.arms.model_copy(update={"shares": {"policy": 0.5, "lints": 0.3, "popular": 0.2}})}
    )
    policies = make_policies(other)
    policies.apply(shop.published["gate"])
    assert policies.live.shares.share("lints") == pytest.approx(0.3)
    assert policies.live.in_shadow, "the mode's setting is as it was, and so the command holds"


def test_commands_that_cannot_be_obeyed_are_refused_in_one_line() -> None:
    settings = Settings(
        policy={"name": "linucb"},
        arms={"shares": {"policy": 0.8, "popular": 0.1, "quiet": 0.1}, "policies": {"quiet": "none"}},
    )
    shop = Shop(settings)
    for action, name, more in [
        ("ramp", "linucb", {"share": 0.5}),
        ("ramp", "policy", {"share": 1.5}),
        ("ramp", "policy", {"share": 0.8}),
        ("ramp", "policy", {"share": 0.95}),
        ("live", "all", {}),
        ("promote", "none", {}),
        ("promote", "quiet", {}),
    ]:
        command(shop, action, name, **more)
    shop.learner.gate.judge(shop.learner.policies, boundary=1, offset=0, now_ms=0)
    assert [(entry.action, entry.why) for entry in shop.learner.gate._history] == [
        ("refused", "ramp: there is no arm 'linucb': choose one of policy, popular, quiet, or give it a share in "
                    "[arms.shares] (or 0)"),
        ("refused", "ramp: a share lies between 0 and 1, not 1.5"),
        ("refused", "ramp: policy has this share already"),
        ("refused", "ramp: policy can have 0.9 at most, holdouts keep the rest: `headrace policy ramp` of a holdout "
                    "lowers its share"),
        ("refused", "live: it is in mode live already"),
        ("refused", "promote: a holdout gets no slates and decides nothing: promote a policy"),
        ("refused", "promote: a holdout gets no slates and decides nothing: promote a policy"),
    ]  # fmt: skip


@pytest.mark.parametrize("role", [{"challengers": ["holdout"]}, {"control": "holdout"}])
def test_a_holdout_can_be_neither_challenger_nor_control(role: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="the arm 'holdout' is a holdout, which gets no slates"):
        Settings(arms={"shares": {"policy": 0.8, "popular": 0.1, "holdout": 0.1}}, gate=role)


def test_the_list_tells_shares_mode_and_holdout(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        policy={"name": "linucb"},
        arms={"shares": {"policy": 0.8, "popular": 0.1, "holdout": 0.1}},
        live={"shadow": ["lints"]},
    )
    shop = Shop(settings)
    command(shop, "ramp", "policy", share=0.5)
    command(shop, "shadow", "all")
    shop.learner.gate.judge(shop.learner.policies, boundary=1, offset=0, now_ms=0)
    records = {r.part: r for r in shop.learner.gate.publish(boundary=1, offset=0, book=0, created_ms=0)}
    monkeypatch.setattr(overview, "latest", lambda _: records)
    entries = overview.policies(settings)
    assert [(e["policy"], e["arms"], e["shares"], e["mode"]) for e in entries] == [
        ("linucb", ["policy"], {"policy": 0.5}, "shadow"),
        ("popular", ["popular"], {"popular": 0.4}, "shadow"),
        ("none", ["holdout"], {"holdout": 0.1}, "shadow"),
        ("lints", ["shadow"], {}, "shadow"),
    ]
    told = overview.as_lines(entries)
    assert told[1].split()[:3] == ["linucb", "policy", "50%"] and "no slates" in told[3]
    shown = overview.policy(settings, "linucb")
    assert [(line["action"], line["policy"]) for line in shown["history"]] == [("shadow", "all"), ("ramp", "policy")]
    assert [line["action"] for line in overview.policy(settings, "popular")["history"]] == ["shadow"]
    assert told[-1].startswith("in shadow: slates go to `recommendations-shadow`")


# -- the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_log(shared: Any) -> Callable[..., Log]:
    """An engine with settings, and so policies, of its own on the shared catalogue and encoders."""

    def make(**sections: Any) -> Log:
        settings = Settings(placements=PLACEMENTS, **sections)
        policies = Policies(settings, shared.items, dim=shared.encoder.dim)
        texts = shared.recommender.texts
        recommender = Recommender(settings, items=shared.items, policies=policies, encoder=shared.encoder, texts=texts)
        shared.encoder.flush()
        return Log(Engine(settings, 0, recommender))

    return make


def be_in_shadow(log: Any) -> None:
    log.engine.recommender.policies.live.mode = "shadow"


def test_in_shadow_the_shop_gets_nothing_and_nothing_counts_as_shown(make_log: Any) -> None:
    log = make_log(decisions={"assume_shown": True})
    be_in_shadow(log)
    assert log.write(event(item="toys-0")) == []
    [(user, message)] = log.effects.shadow
    slate = msgspec.json.decode(message)
    assert user == "u" and slate["items"] and counted(log, "shadow", slate["policy"]["name"]) == 1
    [opened] = log.of(Opened)
    assert opened.shadow and opened.recommendation_id == slate["recommendation_id"]
    log.write(event("click", item=slate["items"][0]["item_id"], at=T0 + MINUTE))
    assert counted(log, "outcomes", "click", "unmatched") == 1, "nobody saw it there"
    seen = event("impression", recommendation_id=opened.recommendation_id, shown=None, at=T0 + MINUTE)
    log.write(seen)
    log.write(event("click", item=slate["items"][0]["item_id"], at=T0 + 2 * MINUTE))
    assert counted(log, "outcomes", "click", "item") == 1, "the shop said that it was shown"


def test_a_decision_in_shadow_closes_unshown_also_where_slates_are_assumed_shown(make_log: Any) -> None:
    log = make_log(decisions={"assume_shown": True}, worker={"pending": 1})
    be_in_shadow(log)
    log.write(event(item="toys-0"))
    log.engine.recommender.policies.live.mode = "live"
    assert len(log.write(event(item="toys-1"))) == 1
    log.write(event(item="toys-2"))
    assert [closed.closed_as for closed in log.of(Closed)] == ["unshown", "shown"]


def test_a_holdouts_users_are_counted_and_get_no_slate(make_log: Any) -> None:
    log = make_log(arms={"shares": {"policy": 0.5, "holdout": 0.5}})
    arm = log.engine.recommender.policies.live.shares.arm
    users = USERS[:40]
    slates = log.write(*(event(user=user, item="toys-0") for user in users))
    held = [user for user in users if arm(user) == "holdout"]
    assert {slate["user_id"] for slate in slates} == {*users} - {*held} and held
    assert counted(log, "held_out", "holdout") == len(held)
    assert counted(log, "events", "view", "applied") == len(users)
    [answer] = log.write(request(user=held[0], id="q-held"))
    assert answer["items"] == [] and answer["request_id"] == "q-held"
    assert answer["policy"] == {"name": "none", "version": 0, "arm": "holdout"}
    assert [opened.user_id for opened in log.of(Opened)] == [slate["user_id"] for slate in slates]


def test_a_placement_cannot_name_a_holdout_as_who_decides() -> None:
    with pytest.raises(ValidationError, match=r"placements\.page names the arm 'holdout', which gets no slates"):
        Settings(arms={"shares": {"policy": 0.9, "holdout": 0.1}}, placements={"page": {"arms": ["holdout"]}})


def test_a_policy_in_shadow_that_fails_takes_no_slate_from_anybody(make_log: Any) -> None:
    events = [event(user=user, item="toys-0") for user in USERS[:5]]
    served = make_log(arms={"shares": {"popular": 1.0}}).write(*events)
    log = make_log(arms={"shares": {"popular": 1.0}}, live={"shadow": ["random", "popular"], "shadow_share": 1.0})
    policies = log.engine.recommender.policies
    policies._served["random"].policy.floor = None  # no number: it can draw nothing
    assert log.write(*events) == served and not log.effects.failed
    assert {msgspec.json.decode(m)["policy"]["name"] for _, m in log.effects.shadow} == {"popular"}


def test_a_policy_in_shadow_decides_the_same_query_and_touches_nothing(make_log: Any) -> None:
    events = [event(user=user, item=ITEMS[n % len(ITEMS)][0]) for n, user in enumerate(USERS[:60])]
    plain = make_log(arms={"shares": {"popular": 1.0}})
    served = plain.write(*events)
    log = make_log(arms={"shares": {"popular": 1.0}}, live={"shadow": ["random"], "shadow_share": 0.5})
    assert log.write(*events) == served
    beside = {s["recommendation_id"]: s for s in (msgspec.json.decode(m) for _, m in log.effects.shadow)}
    assert 15 < len(beside) < 45 and counted(log, "shadow", "random") == len(beside)
    for slate in served:
        if other := beside.get(slate["recommendation_id"]):
            assert other["policy"] == {"name": "random", "version": 0, "arm": "shadow"}
            assert (other["user_id"], other["ts"]) == (slate["user_id"], slate["ts"])
            assert len({item["item_id"] for item in other["items"]}) == len(slate["items"])
            assert other["items"][0]["propensity"] == pytest.approx(1 / len(ITEMS))
    assert all(not opened.shadow for opened in log.of(Opened))


def test_what_is_old_by_the_clock_is_learned_and_gets_no_slate(make_log: Any) -> None:
    log = make_log()
    at = T0

    def write(*entries: Any, not_before: int) -> list[Any]:
        apply = log.engine.apply
        log.engine.apply = lambda batch, offset: apply(batch, offset, not_before=not_before)
        try:
            return log.write(*entries, at=at)
        finally:
            log.engine.apply = apply

    late = msgspec.structs.replace(event(user="late", item="toys-0", at=at), sent_ms=at - MINUTE)
    old = msgspec.structs.replace(event(user="old", item="toys-0", at=at - MINUTE), sent_ms=at)
    asked = msgspec.structs.replace(request(user="asks", at=at), sent_ms=at - MINUTE)
    slates = write(late, old, asked, event(user="fresh", item="toys-0", at=at), not_before=at - 1)
    assert [slate["user_id"] for slate in slates] == ["fresh"]
    assert counted(log, "stale_triggers") == 3
    assert counted(log, "events", "view", "applied") == 3 and counted(log, "requests", "applied") == 1
    [slate] = write(event(user="late", item="toys-1", at=at), not_before=at - 1)
    assert slate["items"], "its history is complete"
    assert len(log.engine.states) >= 4


def test_the_mode_commanded_outlasts_a_record_whose_arrays_are_damaged() -> None:
    shop = Shop(make_settings())
    command(shop, "shadow", "all")
    shop.play(Feed(), EVEN, 1)
    gate = GatePart(shop.settings)
    gate.resume([msgspec.structs.replace(shop.published["gate"], arrays=b"damaged")], offset=0)
    assert gate.live.in_shadow and gate.commands == 0


def test_a_damaged_record_of_how_to_serve_is_refused() -> None:
    policies = make_policies(make_settings())
    before = policies.live.shares.told()
    data, sha256 = pack({"none": np.zeros(0)}, {"serves": "{}", "live": '{"begun": 1}'})
    policies.apply(PolicyVersion("gate", "gate", 1, 0, 0, 0, sha256, data, {}))
    assert policies.live.shares.told() == before and policies.live.mode == "live"
