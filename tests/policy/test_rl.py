"""What reinforcement learners hold beyond the contract of every policy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest

from headrace.policy.base import Policy, Steps
from headrace.policy.checks import make_query
from headrace.policy.registry import make
from headrace.policy.rl import checks, network, training
from headrace.policy.rl.dqn import DQN
from headrace.policy.rl.reinforce import Reinforce
from headrace.policy.rl.replay import Replay
from headrace.policy.rl.slateq import SlateQ, best_value

# Small enough that the replay is overwritten and the label network copied within a check.
_SMALL = {"dim": 8, "rl_replay": 128, "rl_label_every": 5, "rl_train_every": 8, "rl_hidden": 16}
_POLICIES: dict[str, Policy] = {
    "dqn, n-step, conservative": DQN(rl_n_step=3, rl_conservative=0.1, contexts=3, **_SMALL),
    "slateq, n-step": SlateQ(rl_n_step=2, contexts=3, **_SMALL),
    "slateq, as published": SlateQ(null_value=False, optimal=False, rl_slate=1, **_SMALL),
    "reinforce, single items": Reinforce(rl_slate=1, rl_priority=0.0, scalars=(), **_SMALL),
    "reinforce, small replay": Reinforce(contexts=1, **_SMALL),
}


@pytest.mark.parametrize("policy", _POLICIES.values(), ids=_POLICIES)
@pytest.mark.parametrize(
    "check",
    [
        checks.check_same_steps_same_bits,
        checks.check_followed_restored_continues_bit_for_bit,
        checks.check_refuses_steps_that_are_not_finite,
        checks.check_padding_of_steps_changes_nothing,
    ],
)
def test_contract_of_following(policy: Policy, check: Callable[[Policy], None]) -> None:
    check(deepcopy(policy))


def test_q_is_the_discounted_return() -> None:
    """All is taken for 0.1, x leads on to 0.1 and then 1, a minute apart; with γ = 0 it is the reward now."""
    gamma = 0.9 ** (1 / 60)
    x, y = checks.first_scores(DQN(dim=6))
    assert abs(x - (0.1 + gamma * 0.1 + gamma**2 * 1.0)) < 0.15 and abs(y - 0.1) < 0.1, (x, y)
    x, y = checks.first_scores(DQN(dim=6, rl_discount=0.0))
    assert abs(x - 0.1) < 0.05 and abs(y - 0.1) < 0.05, (x, y)


@pytest.mark.parametrize("name", ["q", "choice"])
def test_numpy_and_torch_see_the_same_network(name: str) -> None:
    policy = SlateQ(contexts=3, **_SMALL)
    for seed in range(4):
        policy.follow(checks.make_steps(policy, seed=seed))
    query = policy._padded(make_query(policy, rows=5, n=7))
    x = policy._features.joint(query.states[:, None], query.contexts[:, None], query.items, query.scalars)
    ((_, prepared),) = policy._features.chunks(query)
    tensors = {key: training.torch.from_numpy(array) for key, array in policy._networks[name].items()}
    a, v = training.forward(tensors, *map(training.torch.from_numpy, (x, prepared.unit, query.contexts)))
    assert np.allclose(network.advantages(policy._networks[name], prepared), a.numpy(), atol=1e-5)
    assert np.allclose(network.values(policy._networks[name], prepared), v.numpy(), atol=1e-5)


def test_the_best_slate_is_the_best_of_all_slates() -> None:
    random = np.random.default_rng(0)
    v, q = random.exponential(1, (200, 8)), random.normal(5, 2, (200, 8))
    null, mask = random.normal(4, 2, 200), random.random((200, 8)) < 0.8
    mask[:, :3] = True
    got = best_value(v.astype(np.float32), q.astype(np.float32), null.astype(np.float32), mask, 3)
    for row in range(200):
        slates = [list(slate) for slate in combinations(np.flatnonzero(mask[row]), 3)]
        values = [(null[row] + (v[row, s] * q[row, s]).sum()) / (1 + v[row, s].sum()) for s in slates]
        assert np.isclose(got[row], max(values), atol=1e-5)


def test_a_next_slate_is_worth_the_same_to_torch_and_numpy() -> None:
    policy = SlateQ(contexts=2, rl_slate=2, **_SMALL)
    for seed in range(3):
        policy.follow(checks.make_steps(policy, seed=seed, k=5))
    slots = np.arange(64)
    batch = training.Batch.of(policy._batch(slots) | {"weights": np.ones(64, np.float32)})
    nets = {
        name: {key: training.torch.from_numpy(array) for key, array in net.items()}
        for name, net in policy._networks.items()
    }
    with training.torch.no_grad():
        got = training._next_value(nets, batch, 2, True).numpy()
        a, value = training.forward(nets["q_label"], batch.next_x, batch.next_states, batch.next_contexts)
        choice, appeal = training.forward(nets["choice"], batch.next_x, batch.next_states, batch.next_contexts)
    there = batch.next_shown.numpy()
    expected = best_value(
        np.exp((choice + appeal[:, None]).numpy()), (value[:, None] + a).numpy(), value.numpy(), there, 2
    )
    assert np.allclose(got, expected, atol=1e-5)


def test_the_normaliser_is_unbiased() -> None:
    """Des Raj's estimate of Σ exp f over 12 candidates, from slates of 4 drawn without replacement."""
    random = np.random.default_rng(0)
    f, appeal = random.normal(0, 1, 12), random.exponential(1, 12)
    n = 40_000
    # Gumbel's trick draws without replacement, one after another, in proportion to `appeal`.
    slates = np.argsort(-(np.log(appeal) + random.gumbel(size=(n, 12))), axis=1)[:, :4]
    above = np.cumsum(appeal[slates], axis=1) - appeal[slates]
    beta = appeal[slates] / (appeal.sum() - above)
    tensor = training.torch.from_numpy
    log_z, log_left = training.log_normalisers(
        tensor(f[slates]), tensor(np.ones((n, 4), bool)), tensor(beta), training.torch.zeros((n, 0))
    )
    z = np.exp(log_z.numpy())
    truth = np.exp(f).sum()
    assert abs(z.mean() - truth) < 6 * z.std() / np.sqrt(n)
    assert (np.exp(log_left.numpy()) >= np.exp(f[slates]) * (1 - 1e-9)).all()


def chain(n: int, *, dim: int = 4) -> Steps:
    """One user's n decisions, slates of two, rewards 1, 2, 3, … at the first position, an hour apart."""
    random = np.random.default_rng(1)
    states = random.normal(size=(n + 1, dim)).astype(np.float32)
    items = random.normal(size=(n + 1, 2, dim)).astype(np.float32)
    rewards = np.zeros((n, 2))
    rewards[:, 0] = np.arange(1, n + 1)
    both = np.ones((n, 2), np.bool_)
    return Steps(
        states=states[:-1], contexts=np.zeros((n, 0), np.float32), items=items[:-1],
        scalars=np.zeros((n, 2, 0), np.float32), shown=both, rewards=rewards, propensities=np.full((n, 2), 0.5),
        next_states=states[1:], next_contexts=np.zeros((n, 0), np.float32), next_items=items[1:],
        next_scalars=np.zeros((n, 2, 0), np.float32), next_shown=both, elapsed_s=np.full(n, 3600.0),
        terminal=np.arange(n) == n - 1, ids=np.arange(n, dtype=np.uint64),
    )  # fmt: skip


def some(steps: Steps, rows: slice) -> Steps:
    return replace(steps, **{f.name: c[rows] for f in fields(steps) if (c := getattr(steps, f.name)) is not None})


@pytest.mark.parametrize("largest", [0.5, 2.0])
def test_reinforce_is_weighed_by_what_the_log_did_and_by_the_slate(largest: float) -> None:
    """Chen et al. 2019, sections 4.3 and 4.4, written out: min(π/β, c) · K (1 - π)^(K-1) · gain, held constant."""
    policy = Reinforce(rl_slate=3, contexts=1, largest_weight=largest, **_SMALL)
    for seed in range(3):
        policy.follow(checks.make_steps(policy, seed=seed, k=4))
    batch = training.Batch.of(policy._batch(np.arange(64)) | {"weights": np.ones(64, np.float32)})
    nets = {
        name: {key: training.torch.from_numpy(array) for key, array in net.items()}
        for name, net in policy._networks.items()
    }
    loss, errors = training.reinforce_errors(nets, batch, size=3, largest_weight=largest, others=2)
    f, value = training.forward(nets["q"], batch.x, batch.states, batch.contexts)
    _, after = training.forward(nets["q_label"], batch.next_x, batch.next_states, batch.next_contexts)
    pool = training._others(nets["q"], batch, 2)
    log_z, log_left = (a.numpy() for a in training.log_normalisers(f, batch.shown, batch.propensities, pool))
    shown, scores, beta = batch.shown.numpy(), f.numpy(), batch.propensities.numpy()
    returns = batch.rewards.numpy() + (batch.later + batch.discounts * after).numpy()[:, None]
    log_pi = np.where(shown, scores - log_left, 0.0)
    weight = np.minimum(np.exp(log_pi) / np.maximum(beta, 1e-9), largest)
    assert (weight[shown] == largest).any() and (weight[shown] < largest).any()
    gain = np.where(shown, returns - value.numpy()[:, None], 0.0)
    gain /= np.sqrt((gain**2).sum() / shown.sum())
    pi = np.minimum(np.exp(scores - log_z[:, None]), 1.0)
    count = shown.sum(axis=1)
    policy_loss = (weight * 3 * (1 - pi) ** 2 * gain * log_pi).sum(axis=1) / count
    td = np.abs(value.numpy() - np.where(shown, returns, 0.0).sum(axis=1) / count)
    assert np.allclose(errors.numpy(), td, atol=1e-5)
    huber = np.where(td < 1, td**2 / 2, td - 0.5)
    assert loss.item() == pytest.approx((huber - policy_loss).mean(), abs=1e-5)


@pytest.mark.parametrize("name", ["dqn", "slateq", "reinforce"])
def test_a_user_who_comes_back_after_weeks_and_pays_in_yen_is_learned_from(name: str) -> None:
    policy = make(name, dim=8)
    for seed in range(3):
        steps = checks.make_steps(policy, seed=seed)
        policy.follow(replace(steps, elapsed_s=steps.elapsed_s + 30 * 86_400.0, rewards=steps.rewards * 300_000.0))
    arrays, meta = policy.snapshot()
    assert meta["followed"] == 180 and meta["updates"] > 0
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


def test_what_was_not_shown_never_makes_the_normaliser_overflow() -> None:
    f = training.torch.tensor([[0.5, 200.0], [0.1, 0.2]], requires_grad=True)
    shown = training.torch.tensor([[True, False], [True, True]])
    log_z, log_left = training.log_normalisers(f, shown, training.torch.full((2, 2), 0.5), training.torch.zeros((2, 0)))
    (log_z.sum() + log_left[shown].sum()).backward()
    assert f.grad is not None and f.grad.isfinite().all() and f.grad[0, 1] == 0
    assert np.isclose(log_z[0].item(), 0.5 + np.log(2))


@pytest.mark.parametrize("pieces", [1, 3, 10])
def test_n_step_returns_follow_the_chain(pieces: int) -> None:
    """Whatever came in one batch, or in many."""
    replay, steps = Replay(32, priority=0.0), chain(10)
    size = -(-10 // pieces)
    for start in range(0, 10, size):
        replay.add(some(steps, slice(start, start + size)))
    gamma = 0.5 ** (1 / 3600)
    later, discounts, last = replay.chained(np.arange(10), 3, gamma_s=gamma, mean=False)
    expected = [0.5 * (t + 2) * (t + 1 < 10) + 0.25 * (t + 3) * (t + 2 < 10) for t in range(10)]
    assert np.allclose(later, expected)
    assert np.allclose(discounts, [0.125] * 7 + [0.0] * 3)
    assert last.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    halves, _, _ = replay.chained(np.arange(10), 3, gamma_s=gamma, mean=True)
    assert np.allclose(halves, later / 2)
    alone, once, same = replay.chained(np.arange(10), 1, gamma_s=gamma, mean=False)
    assert not alone.any() and np.allclose(once, [0.5] * 9 + [0]) and same.tolist() == list(range(10))


def test_a_chain_ends_where_the_replay_forgot() -> None:
    replay = Replay(4, priority=0.0)
    replay.add(chain(10))
    assert len(replay) == 4 and replay.added == 10
    later, _, last = replay.chained(np.array([2, 3, 0, 1]), 2, gamma_s=1.0, mean=False)  # numbers 6, 7, 8, 9
    assert later.tolist() == [8, 9, 10, 0] and last.tolist() == [3, 0, 1, 1]
    restored = Replay(4, priority=0.0)
    restored.restore(replay.arrays(), 10)
    for ours, theirs in zip(restored.chained(np.arange(4), 3, gamma_s=1.0, mean=False),
                            replay.chained(np.arange(4), 3, gamma_s=1.0, mean=False), strict=True):  # fmt: skip
        assert np.array_equal(ours, theirs)


def test_what_surprised_is_drawn_more_often_and_counts_less() -> None:
    replay = Replay(16, priority=1.0)
    replay.add(chain(10))
    replay.reprioritise(np.arange(10), np.array([9.0] + [1.0] * 9, np.float32))
    slots, weights = replay.draw(20_000, np.random.default_rng(0))
    share = (slots == 0).mean()
    assert abs(share - 0.5) < 0.03  # 9 of 18
    assert np.allclose(np.unique(weights[slots == 0]), (1 / 9) ** 0.4, rtol=1e-2) and weights[slots == 1].max() == 1
    even, ones = Replay(16, priority=0.0), np.ones(5, np.float32)
    even.add(chain(10))
    even.reprioritise(np.arange(10), np.array([9.0] + [1.0] * 9, np.float32))
    slots, weights = even.draw(20_000, np.random.default_rng(0))
    assert abs((slots == 0).mean() - 0.1) < 0.02 and np.array_equal(weights[:5], ones)


def test_conservative_learning_holds_what_was_not_shown_for_worse() -> None:
    def advantage_of_shown(conservative: float) -> float:
        policy = DQN(dim=8, rl_conservative=conservative, rl_train_every=4)
        random = np.random.default_rng(0)
        shown, unseen = np.eye(8, dtype=np.float32)[:2]
        for seed in range(12):
            steps = checks.make_steps(policy, seed=seed, k=1)
            # State 0 shows item 0 and earns nothing; item 1 appears in other states.
            at_zero = random.random(60) < 0.5
            states = np.where(at_zero[:, None], shown, unseen).astype(np.float32)
            policy.follow(
                replace(steps, states=states, items=states[:, None], rewards=np.ones((60, 1)) * 0.5,
                        scalars=np.zeros_like(steps.scalars), shown=np.ones((60, 1), bool),
                        terminal=np.ones(60, bool))
            )  # fmt: skip
        query = make_query(policy, rows=1, n=2)
        query.states[0], query.items[0], query.scalars[:], query.mask[:] = shown, [shown, unseen], 0, True
        _, scores = policy.distributions(query, np.array([[-1]]))
        return float(scores[0, 0] - scores[0, 1])

    assert advantage_of_shown(1.0) > advantage_of_shown(0.0) + 0.1


def test_serving_never_loads_torch_and_following_does() -> None:
    code = """
import sys
from headrace.policy import checks, registry, snapshot
from headrace.policy.rl.checks import make_steps
for name in ("dqn", "slateq", "reinforce"):
    policy = registry.make(name, dim=8)
    policy.learn(checks.make_examples(policy, n=20))
    policy.follow(make_steps(policy, n=20))
    served = registry.make(name, dim=8)
    served.restore(*snapshot.unpack(*snapshot.pack(*policy.snapshot())))
    served.decide(checks.make_query(served), 3)
assert "torch" not in sys.modules
policy.follow(make_steps(policy, n=80))
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_options_out_of_range_are_refused() -> None:
    for option in ({"rl_discount": 1.0}, {"rl_horizon_s": 0.0}, {"rl_n_step": 0}, {"rl_replay": 1}, {"rl_rate": 0.0},
                   {"rl_conservative": -1.0}, {"rl_slate": 0}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(option))):
            make("dqn", dim=4, **option)
