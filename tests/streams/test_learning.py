"""Learning: what is learned is a function of the log, and a learner that was killed ends where the others end."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.policy.neural_linear import NeuralLinear
from headrace.policy.snapshot import SnapshotError, pack
from headrace.streams import learning, parts
from headrace.streams.book import Book
from headrace.streams.learning import Learning
from headrace.streams.records import PolicyVersion, Transitions, decode_policy_version, encode
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of, make_policy
from tests.factories import (
    make_behaviour,
    make_closed,
    make_impression,
    make_log,
    make_opened,
    make_outcome,
    make_transitions,
)

DIM = 8


def make_settings(name: str = "linucb", **learner: int) -> Settings:
    learner = {"open_decisions": 100, "publish_messages": 8, **learner}
    return Settings(policy={"name": name}, learner=learner)


def make_learning(settings: Settings) -> Learning:
    return Learning(settings, dim=DIM)


def log_of(seed: int, messages: int, **changes: Any) -> list[Transitions]:
    return make_log(seed, messages=messages, d=DIM, c=1, **changes)  # one placement: one context feature


def latest(versions: list[PolicyVersion], into: dict[str, PolicyVersion] | None = None) -> dict[str, PolicyVersion]:
    return {**(into or {}), **{v.part: v for v in versions}}


def bits(learner: Learning) -> dict[str, bytes]:
    """Everything the learner would publish if every part fell due now."""
    found = {part.policy.name: part.policy.snapshot() for part in learner.policies}
    for name, model in learner.behaviour.models.items():
        model._shards.changes[:] = 1
        found |= {f"{name}/{shard}": given for shard, given in model.shards().items()}
    return {part: pack(arrays, meta)[0] for part, (arrays, meta) in found.items()}


@pytest.fixture
def small_book(monkeypatch: pytest.MonkeyPatch) -> None:
    """A book smaller than the settings allow: decisions fall out of it within a short log."""
    monkeypatch.setattr(learning, "Book", lambda size, widths, **rest: Book(size - 100, widths, **rest))


@pytest.fixture
def small_neural(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neural-linear whose memory overflows and whose trunk is trained within a short log."""

    def make(settings: Settings, name: str, *, dim: int) -> Any:
        if name != "neural_linear":
            return make_policy(settings, name, dim=dim)
        return NeuralLinear(dim=dim, contexts=1, memory=24, first_training=12, train_every=16, steps=3)

    monkeypatch.setattr(learning, "make_policy", make)


@pytest.mark.usefixtures("small_neural", "small_book")
@example(seed=1, name="neural_linear", kills=[(30, True), (60, True)], held=3, thin=1)
@example(seed=2, name="linucb", kills=[(20, False), (55, True)], held=3, thin=3)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["linucb", "lints", "neural_linear"]),
    kills=st.lists(st.tuples(st.integers(1, 70), st.booleans()), max_size=3),
    held=st.sampled_from([3, 10, 900]),
    thin=st.integers(1, 4),
)
@hypothesis_settings(max_examples=15, deadline=None)
def test_a_killed_learner_ends_bit_for_bit_where_one_that_never_stopped_ends(
    seed: int, name: str, kills: list[tuple[int, bool]], held: int, thin: int
) -> None:
    """Killed at any message, with or without its last versions committed, and publishing more or less often."""
    log = log_of(seed, 70)
    settings = make_settings(name, open_decisions=100 + held)
    whole = make_learning(settings)
    issued = {(v.part, v.version): v.sha256 for o, message in enumerate(log) for v in whole.apply(message, o)}

    committed: dict[str, PolicyVersion] = {}
    stops = [*sorted(kills), (len(log), True)]
    learner = make_learning(settings)
    for stop, commits_last in stops:
        learner = make_learning(settings)
        start = learner.resume(decode_policy_version(encode(v)) for v in committed.values())
        for offset in range(start, stop):
            versions = learner.apply(log[offset], offset, publish=offset % thin == 0)
            assert all(issued.get((v.part, v.version), v.sha256) == v.sha256 for v in versions)
            assert all(v.version > committed[v.part].version for v in versions if v.part in committed)
            if commits_last or offset < stop - 1:
                committed = latest(versions, committed)
    assert bits(learner) == bits(whole)


def test_an_outcome_is_in_the_next_version() -> None:
    learner = make_learning(make_settings())
    learner.apply(make_transitions(make_opened(d=DIM, c=1), make_impression(positions=[0, 1, 2])), 0)
    before = latest(learner.apply(make_transitions(tick=True), 1))["linucb"]
    learner.apply(make_transitions(make_outcome(position=1, reward=5.0)), 2)
    after = latest(learner.apply(make_transitions(tick=True), 3))["linucb"]
    np.testing.assert_array_equal(arrays_of(before)[0]["precision"], arrays_of(after)[0]["precision"])
    assert not arrays_of(before)[0]["moment"].any()
    assert arrays_of(after)[0]["moment"].any()
    assert (learner.tally.fresh, learner.tally.corrections) == (3, 1)


def test_zero_at_once_and_a_correction_later_are_the_final_reward() -> None:
    """The same decision, learned step by step and learned when it closed, gives one model."""
    opened, rewards = make_opened(d=DIM, c=1), {0: 0.0, 1: 5.0, 2: 0.0}
    gradual, final = make_learning(make_settings()), make_learning(make_settings())
    told = [opened, make_impression(positions=[0, 1, 2]), make_outcome(position=1, reward=5.0)]
    for offset, record in enumerate(told):
        gradual.apply(make_transitions(record), offset)
    gradual.apply(make_transitions(make_closed(rewards=rewards)), 3)
    final.apply(make_transitions(opened, make_closed(rewards=rewards)), 0)
    for a, b in zip(*(x.policies[0].policy.snapshot()[0].values() for x in (gradual, final)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_versions_fall_on_ticks_and_after_so_many_messages_if_something_was_learned() -> None:
    learner = make_learning(make_settings(publish_messages=4))
    shown = [make_opened(d=DIM, c=1), make_impression(positions=[0])]
    published = {}
    for offset in range(12):
        records = shown if offset == 0 else [make_outcome(position=0)] if offset in (5, 6) else []
        versions = learner.apply(make_transitions(*records, tick=offset == 5), offset)
        published[offset] = [v.version for v in versions if v.part == "linucb"]
    assert published == {offset: {3: [1], 5: [2], 9: [3]}.get(offset, []) for offset in range(12)}


def test_behaviour_is_published_a_few_shards_at_a_time_each_in_its_turn() -> None:
    learner = make_learning(make_settings())
    seen: dict[str, PolicyVersion] = {}
    for offset in range(16):
        records = [make_behaviour(item, previous=(item + 1,)) for item in range(1, 200)] if offset == 0 else []
        published = learner.apply(make_transitions(*records, tick=True), offset)
        versions = [v for v in published if v.policy in learner.behaviour.models]
        assert 0 < len(versions) <= 5
        assert not {v.part for v in versions} & seen.keys()
        seen = latest(versions, seen)
    assert seen.keys() == {f"popularity/{n}" for n in range(16)} | {f"co_occurrence/{n}" for n in range(64)}
    assert learner.apply(make_transitions(tick=True), 16) == []


def test_a_resumed_learner_reads_no_more_than_it_lacks() -> None:
    log = log_of(3, 400, repeats=0.0)
    settings = make_settings()
    first = make_learning(settings)
    committed: dict[str, PolicyVersion] = {}
    for offset, message in enumerate(log):
        committed = latest(first.apply(message, offset), committed)
    again = make_learning(settings)
    start = again.resume(committed.values())
    opened = sum(type(r).__name__ == "Opened" for message in log[start:] for r in message.records)
    assert 100 <= opened < 110
    for offset in range(start, len(log)):
        again.apply(log[offset], offset)
    assert again.tally.fresh == 0 or again.offset < len(log) - 1
    assert bits(again) == bits(first)


def test_what_was_learned_before_is_not_counted_again() -> None:
    log = log_of(5, 60)
    first = make_learning(make_settings())
    committed: dict[str, PolicyVersion] = {}
    for offset, message in enumerate(log):
        committed = latest(first.apply(ticked(message), offset), committed)
    again = make_learning(make_settings())
    for offset in range(again.resume(committed.values()), 60):
        again.apply(ticked(log[offset]), offset)
    assert first.tally.fresh > 0
    assert (again.tally.fresh, again.tally.corrections, again.tally.unmatched, again.tally.sent_ms) == (0, 0, 0, [])


def ticked(message: Transitions) -> Transitions:
    return make_transitions(*message.records, tick=True)


def test_vectors_of_another_size_are_learned_anew_when_they_come_and_numbers_go_on() -> None:
    log = log_of(7, 60)
    narrow = make_learning(make_settings())
    committed: dict[str, PolicyVersion] = {}
    for offset, message in enumerate(log):
        committed = latest(narrow.apply(message, offset), committed)
    wide = Learning(make_settings(), dim=2 * DIM)
    for offset in range(wide.resume(committed.values()), len(log)):
        wide.apply(log[offset], offset)
    assert bits(wide) == bits(narrow)  # the workers' encoder decides, not the settings'
    new = make_opened("new", d=2 * DIM, c=1, encoder_version="sha256:wide", encoder_serial=1)
    wide.apply(make_transitions(new, make_impression("new", positions=[0])), 60)
    (version,) = [v for v in wide.apply(make_transitions(tick=True), 61) if v.part == "linucb"]
    assert version.version > committed["linucb"].version
    assert wide.tally.misfits == 0 and wide.policies[0].policy.dim == 2 * DIM


def test_every_arm_that_learns_has_its_part() -> None:
    shares = {"policy": 0.5, "lints": 0.3, "random": 0.1, "twin": 0.1}
    settings = Settings(policy={"name": "linucb"}, arms={"shares": shares, "policies": {"twin": "neural_linear"}})
    assert [part.policy.name for part in make_learning(settings).policies] == ["linucb", "lints", "neural_linear"]


def test_a_version_whose_bytes_were_changed_is_refused() -> None:
    learner = make_learning(make_settings())
    learner.apply(make_transitions(make_opened(d=DIM, c=1), make_impression(positions=[0])), 0)
    version, _ = learner.apply(make_transitions(tick=True), 1)  # the policy, the gate
    bent = bytearray(version.arrays)
    bent[-1] ^= 1
    with pytest.raises(SnapshotError):
        arrays_of(msgspec.structs.replace(version, arrays=bytes(bent)))


def test_a_part_that_learns_nothing_is_published_again_in_a_long_while() -> None:
    learner = make_learning(make_settings())
    learner.apply(make_transitions(make_opened(d=DIM, c=1), make_impression(positions=[0])), 0)
    assert learner.apply(make_transitions(tick=True), 1)
    assert not learner.apply(make_transitions(tick=True), 2)
    assert learner.apply(make_transitions(tick=True), 1 << parts._CHECKPOINT_BITS)
