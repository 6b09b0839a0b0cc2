"""The gate's records: settings that changed between starts, records that fit no more, what a restart must not lose."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.policy.evaluation.guardrails import Alarm
from headrace.streams.items import ItemStore
from headrace.streams.learning import Learning
from headrace.streams.policies import Policies
from headrace.streams.records import PolicyVersion
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of, version_of
from tests.factories import make_closed, make_impression, make_opened, make_outcome, make_transitions
from tests.streams.test_gate import ARMS, DIM, EVEN, Feed, Shop, make_settings


def changed(record: PolicyVersion, **fields: Any) -> PolicyVersion:
    """The record with other numbers beside its arrays; None takes one away."""
    arrays, meta = arrays_of(record)
    meta = {name: value for name, value in {**meta, **fields}.items() if value is not None}
    stamp = {name: getattr(record, name) for name in ("version", "offset", "replay_from", "created_ms")}
    return version_of(record.part, arrays, meta, **stamp)


def altered(settings: Settings, section: str, **fields: Any) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=fields)})


def restarted(shop: Shop, settings: Settings) -> Shop:
    """The same log and the same records, under other settings."""
    shop.settings = settings
    shop.restart()
    return shop


def make_policies(settings: Settings) -> Policies:
    return Policies(settings, ItemStore(ItemTower(np.eye(DIM, dtype=np.float32))), dim=DIM)


def test_what_is_staged_after_a_rollback_overwrites_the_same_with_and_without_a_restart() -> None:
    def story(*, restart: bool) -> Shop:
        shop, feed = Shop(make_settings(stage_every=2, staged=4, guard=False)), Feed()
        shop.play(feed, EVEN, 11)
        for action in ("rollback", "unfreeze"):
            shop.command(action)
            shop.play(feed, EVEN, 1)
        if restart:
            shop.restart()
        shop.play(feed, EVEN, 4)
        return shop

    whole, killed = story(restart=False), story(restart=True)
    assert killed.learner.gate.staging.table() == whole.learner.gate.staging.table()
    listed = whole.learner.gate.staging.versions("linucb")
    assert len(listed) == 4
    whole.restart()
    assert whole.learner.gate.staging.versions("linucb") == listed, "what is listed is there after a restart"


def test_a_quiet_hour_does_not_push_out_what_was_staged_before_it() -> None:
    shop, feed = Shop(make_settings(stage_every=2, staged=3)), Feed()
    shop.play(feed, EVEN, 9)
    staged = shop.learner.gate.staging.versions("linucb")
    for _ in range(40):
        shop.log.append(make_transitions(tick=True))
        shop.learner.apply(shop.log[-1], len(shop.log) - 1)
    assert shop.learner.gate.staging.versions("linucb")[:-1] == staged[-2:]


def test_a_staged_version_of_other_settings_is_refused_and_a_guardrail_goes_to_what_fits() -> None:
    shop, feed = Shop(make_settings()), Feed()
    shop.play(feed, EVEN, 40)
    restarted(shop, altered(shop.settings, "policy", outer=True))
    version = shop.learner.gate.staging.versions("linucb")[0]
    shop.command("pin", version=version)
    shop.play(feed, EVEN, 1)
    assert shop.done()[-1] == ("refused", "linucb")
    assert version not in shop.learner.gate.staging.versions("linucb")
    shop.learner.gate._alarm = Alarm("norm", "made up")
    shop.play(feed, EVEN, 1)
    assert shop.done()[-1] == ("rollback", "linucb")
    assert "linucb" in shop.learner.gate.frozen


def test_evidence_begins_anew_where_arms_changed_their_shares_and_the_ramp_does_not() -> None:
    settings = make_settings(loss=0.2)
    shop, feed = Shop(settings), Feed(6)
    for _ in range(150):
        decided = "linucb" if feed._random.random() < shop.learner.gate.share else "popular"
        shop.play(feed, {**EVEN, "policy": 0.9 if decided == "linucb" else 0.3}, 1, policy=decided)
    gate = shop.learner.gate
    share = gate.share
    assert share > 0.5
    shop.restart()
    assert shop.learner.gate.values() == gate.values()
    restarted(shop, altered(settings, "arms", shares={"policy": 0.5, "lints": 0.3, "popular": 0.2}))
    assert {decisions for decisions, _ in shop.learner.gate.values().values()} == {0}
    restarted(shop, altered(settings, "arms", shares={**ARMS, "item_to_item": 0.1}))
    assert shop.learner.gate.share == share


def test_what_an_old_champion_earned_is_never_the_baselines() -> None:
    shop, feed = Shop(make_settings(loss=0.2)), Feed()
    opened = make_opened("r-old", d=DIM, c=1, arm="policy", policy="linucb")
    shop.log.append(make_transitions(opened, make_impression("r-old", positions=[0]), tick=True))
    shop.learner.apply(shop.log[-1], 0)
    shop.command("promote", "lints")
    shop.play(feed, EVEN, 1, arm="lints")
    before = shop.learner.gate._ramp.arrays()["sums"].copy()
    shop.log.append(make_transitions(make_outcome("r-old", position=0), tick=True))
    shop.learner.apply(shop.log[-1], len(shop.log) - 1)
    after = shop.learner.gate._ramp.arrays()["sums"]
    assert after[1] > before[1]
    assert (after[3:] == before[3:]).all()


def test_a_share_told_under_other_settings_stops_no_worker() -> None:
    """The record says 30 %, but the settings have neither a limit nor a control any more."""
    shop = Shop(make_settings(loss=0.3))
    shop.play(Feed(), EVEN, 3)
    settings = Settings(policy={"name": "linucb"}, arms={"shares": {"policy": 1.0}})
    policies = make_policies(settings)
    for record in shop.published.values():
        policies.apply(record)
    assert {policies.serving("policy", f"u{n}").name for n in range(100)} == {"linucb"}


def test_who_stands_in_is_the_controls_policy_also_when_the_control_was_promoted() -> None:
    settings = make_settings(loss=0.3)
    shop = Shop(settings)
    shop.play(Feed(), EVEN, 3)
    shop.command("promote", "popular")
    shop.play(Feed(7), EVEN, 1)
    policies = make_policies(settings)
    for record in shop.published.values():
        policies.apply(record)
    assert policies.serving("popular", "u1").name == "linucb"
    assert {policies.serving("policy", f"u{n}").name for n in range(100)} == {"popular"}


@pytest.mark.parametrize(
    "propensities",
    [b"", np.zeros(3).tobytes(), np.full(3, math.nan).tobytes()],
    ids=["none", "zero", "not_finite"],
)
def test_a_poisoned_decision_does_not_end_the_learner(propensities: bytes) -> None:
    shop, feed = Shop(make_settings()), Feed()
    shop.play(feed, EVEN, 20)
    shop.play(feed, EVEN, 1, propensities=propensities)
    shop.play(feed, EVEN, 1)
    assert shop.done() == ([("rollback", "linucb")] if propensities else [])


def test_a_policy_is_not_corrected_in_what_it_never_learned() -> None:
    """Shown while frozen, bought after: b would grow without its example in A."""
    shop, feed = Shop(make_settings(guard=False)), Feed()
    shop.play(feed, EVEN, 5)
    shop.command("freeze")
    shop.play(feed, EVEN, 1)
    shop.log.append(make_transitions(make_opened("r-f", d=DIM, c=1), make_impression("r-f", positions=[0]), tick=True))
    shop.learner.apply(shop.log[-1], len(shop.log) - 1)
    shop.command("unfreeze")
    shop.play(feed, EVEN, 1)
    before = shop.weights(), shop.weights("lints")
    shop.log.append(make_transitions(make_outcome("r-f", position=0), tick=True))
    shop.learner.apply(shop.log[-1], len(shop.log) - 1)
    assert shop.weights() == before[0]
    assert shop.weights("lints") != before[1]


def test_rewards_of_another_version_begin_anew_once_and_a_policy_no_longer_served_does_not_begin_others_anew() -> None:
    settings = make_settings(guard=False)
    shop, feed = Shop(settings), Feed()
    shop.play(feed, EVEN, 20)
    shop.command("freeze", "lints")
    shop.play(feed, EVEN, 20)
    restarted(shop, altered(settings, "learner", outstanding=False))
    shop.play(feed, EVEN, 1)
    assert {str(shop.published[name].meta["rewards"])[-2:] for name in ("linucb", "lints")} == {"00"}
    assert shop.learner.gate.staging.versions("linucb") == []
    known = shop.learner.offset = len(shop.log) - 1
    shop.restart()
    assert [part.known for part in shop.learner.policies] == [known, known]
    assert shop.learner.gate.staging.versions("linucb") == []
    alone = Settings(policy={"name": "linucb"}, arms={"shares": {"policy": 1.0}}, learner={"outstanding": False})
    shop.published["lints"] = msgspec.structs.replace(shop.published["lints"], meta={"rewards": "old"})
    restarted(shop, alone)
    assert shop.learner.policies[0].known == known


def test_versions_of_the_release_before_are_learned_anew_and_raise_no_alarm() -> None:
    """It knew no gate, and told rewards as they came."""
    shop, feed = Shop(make_settings()), Feed()
    shop.play(feed, EVEN, 30)
    shop.play(feed, EVEN, 10, propensities=np.full(3, 0.9).tobytes())
    shop.published = {
        part: changed(record, rewards=None, forgot=None)
        for part, record in shop.published.items()
        if part in ("linucb", "lints")
    }
    shop.restart()
    assert [part.known for part in shop.learner.policies] == [-1, -1]
    fresh = Learning(make_settings(guard=False), dim=DIM)
    for offset, message in enumerate(shop.log):
        fresh.apply(message, offset)
    assert shop.weights() == Shop.weights(msgspec_like(shop, fresh))
    shop.play(feed, EVEN, 3)
    assert shop.done() == []


def msgspec_like(shop: Shop, learner: Learning) -> Shop:
    like = Shop(shop.settings)
    like.learner = learner
    return like


@pytest.mark.parametrize("part", ["gate", "linucb", "estimates"])
def test_a_record_that_lacks_something_is_refused_in_one_line_by_learner_and_worker(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(loss=0.2)
    shop = Shop(settings)
    shop.play(Feed(), EVEN, 40)
    record = shop.published[part]
    arrays, meta = arrays_of(record)
    stamp = {name: getattr(record, name) for name in ("version", "offset", "replay_from", "created_ms")}
    lacking = [changed(record, **{name: None}) for name in meta]
    lacking += [version_of(part, {n: a for n, a in arrays.items() if n != name}, meta, **stamp) for name in arrays]
    lacking += [version_of(part, {**arrays, name: np.zeros(0)}, meta, **stamp) for name in arrays]
    for poisoned in lacking:
        Learning(settings, dim=DIM).resume({**shop.published, part: poisoned}.values())
        make_policies(settings).apply(poisoned)
    assert all("\n" not in line for line in caplog.messages)
    assert caplog.messages


def test_after_a_promotion_the_gates_record_is_the_same_with_and_without_a_restart() -> None:
    def story(*, restart: bool) -> Shop:
        shop, feed = Shop(make_settings(challengers=["lints"])), Feed()
        rates = {"policy": 0.2, "lints": 0.8, "popular": 0.2}
        while ("promote", "lints") not in shop.done():
            assert len(shop.log) < 200
            shop.play(feed, rates, 1)
        if restart:
            shop.restart()
        shop.play(feed, EVEN, 2)
        return shop

    whole, killed = story(restart=False), story(restart=True)
    assert killed.published["gate"].sha256 == whole.published["gate"].sha256


def test_a_poisoned_step_teaches_nothing_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    learner = Learning(Settings(policy={"name": "slateq"}), dim=DIM)
    opened = make_opened("r-1", d=DIM, c=1, propensities=np.zeros(3).tobytes())
    closed = make_closed("r-1", rewards={0: 1.0})
    learner.apply(make_transitions(opened, make_impression("r-1", positions=[0]), closed, tick=True), 0)
    assert "learns nothing from transitions@0" in caplog.text
