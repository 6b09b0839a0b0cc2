from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from headrace.policy import trunk
from headrace.policy.base import Examples
from headrace.policy.checks import bits, corrections, make_examples, make_query, take
from headrace.policy.linear import LinTS
from headrace.policy.memory import Memory
from headrace.policy.neural_linear import NeuralLinear


def small(**changes: int | float) -> NeuralLinear:
    return NeuralLinear(dim=6, **{"memory": 80, "first_training": 50, "train_every": 60, "steps": 4, **changes})  # type: ignore[arg-type]


def learn(policy: NeuralLinear, *, batches: int, n: int = 20) -> list[Examples]:
    learned = [make_examples(policy, n=n, seed=i, first_id=i * n) for i in range(batches)]
    for batch in learned:
        policy.learn(batch)
    return learned


def test_before_training_it_is_bayesian_regression_on_x_and_z() -> None:
    policy = small()
    learned = learn(policy, batches=2)
    f = np.vstack([np.concatenate(policy._parts(batch), axis=1) for batch in learned])
    r = np.concatenate([batch.rewards for batch in learned])
    precision = np.eye(f.shape[1]) + f.T @ f
    assert np.allclose(policy.head.theta, np.linalg.solve(precision, f.T @ r), atol=1e-8)
    a, b = policy.noise()
    mu = policy.head.theta
    assert np.isclose(a, 6 + 40 / 2) and np.isclose(b, 6 + (r @ r - mu @ precision @ mu) / 2)


def test_after_training_the_sums_over_x_are_of_all_and_those_over_z_of_the_memory() -> None:
    policy = small()
    learned = learn(policy, batches=11)  # trained at 50 → 60, then 120, then 180 → 180: 220 examples in all
    assert policy._trainings == 3 and policy._trained_at == 180
    wide = policy._wide
    parts = [policy._parts(batch) for batch in learned]
    x, z = np.vstack([x for x, _ in parts]), np.vstack([z for _, z in parts])
    number = np.arange(220)
    kept = (number >= 180) | ((number >= 100) & (number % 2 == 1))
    r = np.concatenate([batch.rewards for batch in learned])
    assert np.allclose(policy.head.precision[:wide, :wide], np.eye(wide) + x.T @ x)
    assert np.allclose(policy.head.precision[wide:, wide:], np.eye(z.shape[1]) + z[kept].T @ z[kept], atol=1e-3)
    assert np.allclose(policy.head.precision[:wide, wide:], x[kept].T @ z[kept], atol=1e-3)
    assert np.allclose(policy.head.moment, np.concatenate([r @ x, r[kept] @ z[kept]]), atol=1e-3)


def test_a_correction_moves_what_its_example_moved() -> None:
    policy = small()
    learned = learn(policy, batches=10)
    names = [name for name, array in vars(learned[0]).items() if array is not None]
    everything = Examples(**{name: np.concatenate([getattr(b, name) for b in learned]) for name in names})
    wide = policy._wide
    # 60 was forgotten, the trunk was trained on 150, its head on 151, and 190 came later.
    for number, deep in ((60, False), (150, False), (151, True), (190, True)):
        before = policy.head.moment.copy()
        example = take(everything, slice(number, number + 1))
        policy.learn(corrections(example, np.array([2.0])))
        x, z = policy._parts(example)
        moved = policy.head.moment - before
        assert np.allclose(moved[:wide], 2 * x[0]) and np.allclose(moved[wide:], 2 * z[0] * deep), number


def test_the_noise_is_estimated() -> None:
    policy = small(memory=2_000, first_training=10**9)
    learn(policy, batches=20, n=100)
    a, b = policy.noise()
    assert 0.08 < np.sqrt(b / a) < 0.13  # the examples' noise is 0.1


def test_corrections_keep_the_sum_of_squares() -> None:
    at_once, later = small(), small()
    examples = make_examples(at_once, n=30)
    at_once.learn(examples)
    later.learn(replace(examples, rewards=examples.rewards - 1.5))
    later.learn(corrections(examples, np.full(30, 1.0)))
    later.learn(corrections(examples, np.full(30, 0.5)))
    assert np.allclose(at_once.noise(), later.noise())


def test_it_learns_what_no_linear_model_can() -> None:
    """The sign of one direction of the state says which way a scalar counts."""

    def truth(states: np.ndarray, scalars: np.ndarray) -> np.ndarray:
        return np.sign(states[..., 0]) * (scalars[..., 0] - 0.5)

    shares = {}
    for policy in (
        NeuralLinear(dim=6, alpha=0.0, memory=4_000, first_training=2_000),
        LinTS(dim=6, alpha=0.0),
    ):
        for i in range(8):
            examples = make_examples(policy, n=1_000, seed=i, first_id=1_000 * i)
            noise = np.random.default_rng(i).normal(0, 0.1, 1_000)
            policy.learn(replace(examples, rewards=truth(examples.states, examples.scalars) + noise))
        query = make_query(policy, rows=200, n=20, seed=99)
        _, scores = policy.distributions(query, np.full((200, 1), -1))
        value = truth(query.states[:, None], query.scalars)
        got = np.take_along_axis(value, np.where(query.mask, scores, -np.inf).argmax(axis=1)[:, None], axis=1).mean()
        shares[policy.name] = got / np.where(query.mask, value, -np.inf).max(axis=1).mean()
    assert shares["neural_linear"] > 0.6 > 0.4 > shares["lints"], shares


def test_training_leaves_torch_as_it_was_and_gives_the_same_bits_on_any_thread_count() -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        made = []
        for count in (1, 2):
            torch.set_num_threads(count)
            policy = small()
            if count == 2:
                policy.prepare_to_learn()
            learn(policy, batches=4)
            assert torch.get_num_threads() == count and policy._trainings == 1
            made.append(bits(policy))
        assert made[0] == made[1]
    finally:
        torch.set_num_threads(threads)


def test_serving_never_loads_torch() -> None:
    code = """
import sys, numpy as np
from headrace.policy import behaviour, checks, registry, snapshot
for name in registry.POLICIES:
    policy = registry.make(name, dim=8)
    policy.learn(checks.make_examples(policy, n=20))
    served = registry.make(name, dim=8)
    served.restore(*snapshot.unpack(*snapshot.pack(*policy.snapshot())))
    served.decide(checks.make_query(served), 3)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("begun", [0, 3, 7])
def test_memory_does_not_depend_on_when_it_was_begun(begun: int) -> None:
    policy = small()
    whole, late = Memory(25), Memory(25)
    for i in range(12):
        batch = make_examples(policy, n=7, seed=i, first_id=7 * i)
        late_rewards = (
            corrections(make_examples(policy, n=7, seed=i - 1, first_id=7 * (i - 1)), np.full(7, 0.5)) if i else None
        )
        for memory in (whole, late) if i >= begun else (whole,):
            memory.add(batch)
            if late_rewards is not None:
                memory.add(late_rewards)
    first, second = whole.all(), late.all()
    for name in vars(first):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_memory_is_the_latest_examples_in_order() -> None:
    policy = small()
    memory = Memory(10)
    batches = [make_examples(policy, n=n, seed=n, first_id=100 * n) for n in (4, 23, 3)]
    newer = [memory.add(batch)[0].tolist() for batch in batches]
    assert newer[0] == [3, 2, 1, 0] and newer[1] == [-1] * 13 + list(range(9, -1, -1))
    rewards = np.concatenate([batch.rewards for batch in batches])
    assert len(memory) == 10 and np.array_equal(memory.all().rewards, rewards[-10:])
    newer_of_correction, before = memory.add(corrections(take(batches[1], slice(20, 21)), np.array([1.0])))
    assert newer_of_correction.tolist() == [5] and before[0] == batches[1].rewards[20]
    gone, _ = memory.add(corrections(take(batches[0], slice(0, 1)), np.array([1.0])))
    assert gone.tolist() == [-1]


def test_weights_count_in_the_sums_after_training_too() -> None:
    """Every other example is nonsense and weighs nothing: nothing of it is left in the head, trunk and noise."""
    policy = small(memory=400, first_training=100, train_every=100)
    for i in range(10):
        batch = make_examples(policy, n=40, seed=i, first_id=i * 40)
        weights = np.tile([2.0, 0.0], 20)
        policy.learn(replace(batch, rewards=np.where(weights > 0, batch.rewards, 50.0), weights=weights))
    assert policy._trainings >= 2
    a, b = policy.noise()
    assert a == 6 + 400 / 2 and b / a < 1
    memory = policy._remembered.all()
    x, z = policy._parts(memory)
    wide = policy._wide
    late = (np.arange(400) >= policy._trained_at) | (np.arange(400) % 2 == 1)
    w = memory.weights * late
    assert np.allclose(policy.head.precision[wide:, wide:], np.eye(z.shape[1]) + (z.T * w) @ z, atol=1e-3)
    assert np.allclose(policy.head.precision[:wide, wide:], (x.T * w) @ z, atol=1e-3)


def test_a_snapshot_of_the_version_before_keeps_its_noise() -> None:
    """It had no count of weights: without one, all that was learned would look like the residual of a few examples."""
    policy, restored = small(), small()
    learn(policy, batches=6)
    arrays, meta = policy.snapshot()
    del meta["count"]
    restored.restore(arrays, meta)
    assert restored.noise() == pytest.approx(policy.noise())


def test_a_unit_that_hardly_fires_stays_small() -> None:
    """With a full share on average it would be huge where it does fire, and a guardrail would roll the policy back."""
    policy = NeuralLinear(dim=4, contexts=0)
    z = np.full((1_000, trunk.OUT), 0.25, np.float32)
    z[:, 3], z[0, 3] = 0, 0.01  # dying
    z[:, 5] = 0  # dead
    before = policy._trunk["out"].copy()
    policy._scale_trunk(z)
    alive = [unit for unit in range(trunk.OUT) if unit not in (3, 5)]
    np.testing.assert_allclose(np.square(z[:, alive]).mean(axis=0), 1 / trunk.OUT, rtol=1e-5)
    assert z[0, 3] < 0.1 and not z[:, 5].any()
    assert np.abs(policy._trunk["out"][3]).max() <= 4 * np.abs(before[3]).max()
    np.testing.assert_array_equal(policy._trunk["out"][5], before[5])


def test_a_unit_that_hardly_fires_stays_small_however_often_it_is_trained() -> None:
    policy = NeuralLinear(dim=4, contexts=0)
    for _ in range(10):
        z = np.full((1_000, trunk.OUT), 0.25, np.float32)
        z[:, 3], z[0, 3] = 0, 0.01
        policy._scale_trunk(z)
    assert np.linalg.norm(policy._trunk["out"][3]) < 16.01
