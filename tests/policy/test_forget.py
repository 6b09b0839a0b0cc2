"""An erased user's examples leave memories and replays; everybody else's stay what and where they were."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.policy import checks
from headrace.policy.memory import Memory
from headrace.policy.neural_linear import NeuralLinear
from headrace.policy.registry import make
from headrace.policy.rl.checks import make_steps
from headrace.policy.rl.replay import Replay

ANN, BOB = np.uint64(17), np.uint64(23)
_SHAPE: dict[str, Any] = {"dim": 6, "contexts": 2}


def owned(batch: Any, *, every: int = 3) -> Any:
    """Each `every`-th row is Ann's, the others are Bob's."""
    n = len(batch.ids)
    return replace(batch, owners=np.where(np.arange(n) % every == 0, ANN, BOB))


def test_a_memory_blanks_his_rows_and_moves_nobody_elses() -> None:
    policy, memory = make("linucb", **_SHAPE), Memory(50)
    batches = [owned(checks.make_examples(policy, n=30, seed=i, first_id=30 * i)) for i in range(2)]
    for batch in batches:
        memory.add(batch)
    before, hers = memory.all(), np.isin(np.arange(10, 60) % 30 % 3, 0)

    memory.forget(np.array([ANN]))

    after = memory.all()
    assert not after.states[hers].any() and not after.items[hers].any() and not after.weights[hers].any()
    np.testing.assert_array_equal(after.states[~hers], before.states[~hers])
    np.testing.assert_array_equal(after.weights[~hers], 1)
    newer, _ = memory.add(checks.corrections(batches[1], np.ones(30)))
    assert (newer[::3] == -1).all() and (np.delete(newer, np.s_[::3]) >= 0).all()


def test_what_was_forgotten_is_trained_on_no_more() -> None:
    """Ann's rewards could not be more misleading; a trunk trained after she was forgotten does not know them."""
    made = NeuralLinear(**_SHAPE, memory=300, first_training=10_000, steps=16)
    batch = owned(checks.make_examples(made, n=200))
    wild = replace(batch, rewards=np.where(batch.owners == ANN, 1e3, batch.rewards))
    trunks = []
    for examples in (batch, wild):
        policy = deepcopy(made)
        policy.remember(examples)
        policy.forget(np.array([ANN]))
        policy._fresh = 200
        policy._train()
        trunks.append(policy._trunk["wide"])
    np.testing.assert_array_equal(*trunks)


@pytest.mark.parametrize("priority", [0.0, 0.5])
def test_a_replay_never_draws_him_again_also_after_a_restart(priority: float) -> None:
    replay = Replay(64, priority=priority)
    replay.add(owned(make_steps(make("dqn", **_SHAPE), n=90)))

    replay.forget(np.array([ANN]))

    again = Replay(64, priority=priority)
    again.restore(replay.arrays(), replay.added)
    for held in (replay, again):
        assert 40 <= held.there < len(held) == 64
        slots, _ = held.draw(2_000, np.random.default_rng(1))
        assert len(np.unique(slots)) == held.there
        assert held.rows(slots)["states"].any(axis=1).all()
        assert ANN not in held.arrays()["owners"]
        later, _, _ = held.chained(slots, 3, gamma_s=0.9, mean=False)
        assert np.isfinite(later).all()


def test_a_replay_of_the_release_before_is_read() -> None:
    replay = Replay(64, priority=0.5)
    replay.add(make_steps(make("dqn", **_SHAPE), n=20))
    old = {name: array for name, array in replay.arrays().items() if name not in ("owners", "blank")}
    again = Replay(64, priority=0.5)
    again.restore(old, 20)
    again.forget(np.array([ANN]))
    assert again.there == 20


@pytest.mark.parametrize("name", ["dqn", "slateq", "reinforce"])
def test_it_goes_on_learning(name: str) -> None:
    policy = make(name, **_SHAPE, rl_replay=64)
    policy.follow(owned(make_steps(policy, n=60)))
    policy.forget(np.array([ANN, BOB]))
    policy.follow(make_steps(policy, n=60, seed=1))
    arrays, _ = policy.snapshot()
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
