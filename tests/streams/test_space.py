"""Another encoder in the middle of the log: heads begin anew, and nothing of two encoders is ever mixed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.export.item_tower import ItemTower
from headrace.policy.snapshot import pack
from headrace.streams import start
from headrace.streams.items import ItemStore
from headrace.streams.learning import Learning
from headrace.streams.policies import Policies
from headrace.streams.records import Opened, PolicyVersion, Transitions, decode_policy_version, encode
from headrace.streams.settings import Settings
from headrace.streams.space import Space
from tests.factories import make_impression, make_log, make_opened, make_outcome, make_transitions

DIM = 8
SHARES = {"policy": 0.5, "lints": 0.3, "random": 0.2}


def make_settings() -> Settings:
    return Settings(
        policy={"name": "linucb"},
        arms={"shares": SHARES},
        learner={"open_decisions": 100, "publish_messages": 8},
        gate={"stage_every": 16},
    )


def changed_over(log: list[Transitions], at: int, late: int, seed: int, dim: int = DIM) -> list[Transitions]:
    """The log as workers write it that take up a new encoder one by one, from message `at` to `at + late`."""
    rng = random.Random(seed)
    return [
        msgspec.structs.replace(message, records=[_encoded(r, i, at, late, rng, dim) for r in message.records])
        for i, message in enumerate(log)
    ]


def _encoded(record: Any, i: int, at: int, late: int, rng: random.Random, dim: int) -> Any:
    if not isinstance(record, Opened) or i < at or (i < at + late and rng.random() < 0.5):
        return record
    fresh = make_opened(record.recommendation_id, d=dim, c=1, k=len(record.slate))
    return msgspec.structs.replace(
        record, encoder_version="sha256:1", encoder_serial=2, state=fresh.state, items=fresh.items
    )


def bits(learner: Learning) -> dict[str, bytes]:
    return {part.policy.name: pack(*part.policy.snapshot())[0] for part in learner.policies}


@example(seed=3, at=20, late=12, kills=[24, 40], dim=16)
@given(
    seed=st.integers(0, 10_000),
    at=st.integers(0, 60),
    late=st.integers(0, 20),
    kills=st.lists(st.integers(1, 70), max_size=3),
    dim=st.sampled_from([DIM, 2 * DIM]),
)
@hypothesis_settings(max_examples=8, deadline=None)
def test_a_killed_learner_changes_over_as_one_that_never_stopped(
    seed: int, at: int, late: int, kills: list[int], dim: int
) -> None:
    log = changed_over(make_log(seed, messages=70, d=DIM, c=1), at, late, seed, dim)
    whole = Learning(make_settings(), dim=DIM)
    issued = {(v.part, v.version): v.sha256 for o, message in enumerate(log) for v in whole.apply(message, o)}
    committed: dict[str, PolicyVersion] = {}
    learner = Learning(make_settings(), dim=DIM)
    for stop in [*sorted(kills), len(log)]:
        learner = Learning(make_settings(), dim=DIM)
        start = learner.resume(decode_policy_version(encode(v)) for v in committed.values())
        for offset in range(start, stop):
            for version in learner.apply(log[offset], offset):
                assert issued[version.part, version.version] == version.sha256
                committed[version.part] = version
    assert bits(learner) == bits(whole) and learner.space == whole.space


def taught(*records: Any, tick: bool = False) -> Transitions:
    return make_transitions(*records, tick=tick)


def opened(name: str, **changes: Any) -> Opened:
    return make_opened(name, d=DIM, c=1, **changes)


def test_what_an_older_encoder_decided_teaches_the_new_head_nothing() -> None:
    learner = Learning(make_settings(), dim=DIM)
    learner.apply(taught(opened("r-1"), make_impression("r-1", positions=[0, 1])), 0)
    assert learner.policies[0].policy.learned == 2
    learner.apply(taught(opened("r-2", encoder_version="sha256:1", encoder_serial=3)), 1)
    assert learner.policies[0].policy.learned == 0
    # An outcome of the old decision, and a worker that has not changed over yet:
    learner.apply(taught(make_outcome("r-1", position=1, reward=5.0)), 2)
    learner.apply(taught(opened("r-3"), make_impression("r-3", positions=[0])), 3)
    assert learner.policies[0].policy.learned == 0 and learner.tally.misfits == 1
    learner.apply(taught(make_impression("r-2", positions=[0])), 4)
    assert learner.policies[0].policy.learned == 1


def test_after_going_back_to_an_encoder_its_first_time_teaches_nothing() -> None:
    learner = Learning(make_settings(), dim=DIM)
    learner.apply(taught(opened("r-1"), make_impression("r-1", positions=[0, 1])), 0)
    learner.apply(taught(opened("r-2", encoder_version="sha256:1", encoder_serial=3)), 1)
    learner.apply(taught(opened("r-3", encoder_serial=4)), 2)
    knew = bits(learner)
    learner.apply(taught(make_outcome("r-1", position=1, reward=5.0)), 3)  # nothing here that it could correct
    assert bits(learner) == knew
    learner.apply(taught(make_impression("r-3", positions=[0])), 4)
    assert bits(learner) != knew


def started(folder: Path, made: dict[str, Any]) -> Settings:
    """Settings whose policy starts from one that has learned something."""
    teacher = Learning(make_settings(), dim=DIM)
    teacher.apply(taught(opened("r-0"), make_impression("r-0", positions=[0, 1])), 0)
    start.write(folder, teacher.policies[0].policy, made=made)
    return Settings(**make_settings().model_dump(exclude={"policy"}), policy={"name": "linucb", "start": str(folder)})


def test_a_start_is_kept_over_a_restart_whether_or_not_it_names_its_encoder(tmp_path: Path) -> None:
    settings = started(tmp_path / "start", made={})
    learner = Learning(settings, dim=DIM)
    versions = learner.apply(taught(tick=True), 0)
    again = Learning(settings, dim=DIM)
    again.resume(versions)
    again.apply(taught(opened("r-1"), make_impression("r-1", positions=[0])), 1)
    assert again.policies[0].policy.learned == 3


def test_a_start_is_not_taken_up_again_by_a_learner_resumed_after_another_encoder_came(tmp_path: Path) -> None:
    settings = started(tmp_path / "start", made={"encoder": "sha256:0"})
    log = [
        taught(tick=True),
        taught(opened("r-1", encoder_version="sha256:1", encoder_serial=2, policy="lints"), tick=True),
        taught(make_impression("r-1", positions=[0]), tick=True),
        taught(tick=True),
    ]
    own = settings.model_copy(update={"learner": settings.learner.model_copy(update={"learn_from": "own"})})
    whole = Learning(own, dim=DIM)
    committed = {v.part: v for offset, message in enumerate(log[:3]) for v in whole.apply(message, offset)}
    assert committed["linucb"].meta["encoder"] == "sha256:0"  # it has not learned anything since
    again = Learning(own, dim=DIM)
    first = again.resume(committed.values())
    for offset in range(first, len(log)):
        again.apply(log[offset], offset)
    whole.apply(log[3], 3)
    assert bits(again) == bits(whole)


def test_a_new_number_for_the_same_encoder_changes_nothing() -> None:
    learner = Learning(make_settings(), dim=DIM)
    learner.apply(taught(opened("r-1"), make_impression("r-1", positions=[0])), 0)
    learner.apply(taught(opened("r-2", encoder_serial=4), make_impression("r-2", positions=[0])), 1)
    assert learner.policies[0].policy.learned == 2
    assert learner.space == Space(DIM, 4, "sha256:0", 0)


def test_heads_of_the_release_before_begin_anew() -> None:
    learner = Learning(make_settings(), dim=DIM)
    learner.apply(taught(opened("r-1"), make_impression("r-1", positions=[0])), 0)
    versions = [
        msgspec.structs.replace(v, meta={name: x for name, x in v.meta.items() if not name.startswith("encoder")})
        for v in learner.apply(taught(tick=True), 1)
    ]
    again = Learning(make_settings(), dim=DIM)
    again.resume(versions)
    assert again.policies[0].policy.learned == 1
    again.apply(taught(opened("r-2")), 2)
    assert again.policies[0].policy.learned == 0


def test_evidence_stages_and_freezes_end_with_the_encoder() -> None:
    learner = Learning(make_settings(), dim=DIM)
    for offset, message in enumerate(make_log(5, messages=70, d=DIM, c=1)):
        learner.apply(message, offset)
    learner.gate.frozen.begin("linucb", 69)
    assert learner.gate.staging.versions("linucb") and learner.gate.values()["policy"][0]
    learner.apply(taught(opened("new", encoder_version="sha256:1", encoder_serial=1)), 70)
    assert not learner.gate.staging.versions("linucb") and "linucb" not in learner.gate.frozen
    assert learner.gate.values()["policy"][0] == 0


@pytest.mark.parametrize(("encoder", "serves"), [("sha256:0", True), ("sha256:1", False), ("", True)])
def test_a_worker_serves_heads_of_its_own_encoder_alone(encoder: str, serves: bool) -> None:
    learner = Learning(make_settings(), dim=DIM)
    learner.apply(taught(opened("r-1"), make_impression("r-1", positions=[0])), 0)
    versions = learner.apply(taught(tick=True), 1)
    items = ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)))
    policies = Policies(make_settings(), items, dim=DIM, encoder_version=encoder)
    for version in versions:
        policies.apply(version)
    assert (policies.serving("policy", "u1").name == "linucb") is serves
