"""What every policy that follows steps must pass; `policy.checks.yield_checks` includes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from headrace.policy.base import Policy, Query, Steps
from headrace.policy.snapshot import pack, unpack


def yield_checks() -> Iterator[Callable[[Policy], None]]:
    yield check_same_steps_same_bits
    yield check_followed_restored_continues_bit_for_bit
    yield check_refuses_steps_that_are_not_finite
    yield check_padding_of_steps_changes_nothing
    yield check_a_late_reward_raises_the_first_action


def make_steps(policy: Policy, *, n: int = 60, k: int = 3, seed: int = 0) -> Steps:
    """Slates of up to k random items, of which one may be taken for a reward of 1; one in ten is the last."""
    random = np.random.default_rng(seed)
    d, c, m = policy.dim, policy.contexts, len(policy.scalars)
    shown, next_shown = random.random((2, n, k)) < 0.9
    shown[:, 0] = True
    rewards = np.zeros((n, k))
    rewards[np.arange(n), random.integers(0, k, n)] = random.random(n) < 0.5
    return Steps(
        states=_directions(random, (n, d)),
        contexts=random.random((n, c), np.float32),
        items=_directions(random, (n, k, d)),
        scalars=random.random((n, k, m), np.float32),
        shown=shown,
        rewards=rewards * shown,
        propensities=random.uniform(0.05, 1, (n, k)),
        next_states=_directions(random, (n, d)),
        next_contexts=random.random((n, c), np.float32),
        next_items=_directions(random, (n, k, d)),
        next_scalars=random.random((n, k, m), np.float32),
        next_shown=next_shown,
        elapsed_s=random.uniform(1, 600, n),
        terminal=random.random(n) < 0.1,
        ids=np.arange(seed * n, (seed + 1) * n, dtype=np.uint64),
    )


def check_same_steps_same_bits(policy: Policy) -> None:
    assert _bits(_followed(policy)) == _bits(_followed(policy)), "the same steps gave other bits"


def check_followed_restored_continues_bit_for_bit(policy: Policy) -> None:
    """snapshot, restore, follow the rest ≡ never stopped."""
    never_stopped, restarted = _followed(policy, batches=5), deepcopy(policy)
    data, digest = pack(*never_stopped.snapshot())
    restarted.restore(*unpack(data, digest))
    assert _bits(restarted) == data, "a snapshot of what was restored differs"
    for seed in range(5, 10):
        for p in (never_stopped, restarted):
            p.follow(make_steps(p, seed=seed))
    assert _bits(restarted) == _bits(never_stopped), "a restart learned something else"


def check_refuses_steps_that_are_not_finite(policy: Policy) -> None:
    policy = _followed(policy)
    before = _bits(policy)
    names = ("states", "items", "rewards", "propensities", "next_states", "next_scalars", "elapsed_s")
    for name in names:
        for bad in (np.nan, np.inf):
            steps = _last_at_odd(make_steps(policy, n=4, seed=99))
            if getattr(steps, name).size:
                getattr(steps, name)[0] = bad
                assert_refused(partial(policy.follow, steps), f"{name} of {bad}")
    steps = make_steps(policy, n=4, seed=99)
    assert_refused(lambda: policy.follow(replace(steps, items=steps.items[..., :-1])), "items of another width")
    assert _bits(policy) == before, "what was refused was learned"


def check_padding_of_steps_changes_nothing(policy: Policy) -> None:
    """What is not shown, or comes after the last step, does not exist: not even what is not a number."""
    clean, dirty = deepcopy(policy), deepcopy(policy)
    for seed in range(4):
        steps = make_steps(policy, seed=seed)
        clean.follow(steps)
        changed = {f.name: column.copy() for f in fields(steps) if (column := getattr(steps, f.name)) is not None}
        for name in ("items", "scalars", "rewards", "propensities"):
            changed[name][~steps.shown] = np.nan
        for name in ("items", "scalars"):
            changed[f"next_{name}"][~steps.next_shown] = np.nan
        for name in ("next_states", "next_contexts", "next_items", "next_scalars", "elapsed_s"):
            changed[name][steps.terminal] = np.nan
        dirty.follow(Steps(**changed))
    assert _bits(clean) == _bits(dirty), "padding changed what was learned"


def check_a_late_reward_raises_the_first_action(policy: Policy) -> None:
    """Of two items that are taken alike, the one that leads on to a reward two steps later is preferred."""
    x, y = first_scores(policy)
    assert x > y, f"{policy.name} scores {x:.3g} and {y:.3g}: the late reward did not count"


def first_scores(policy: Policy) -> tuple[float, float]:
    """A copy's scores of x and y in state 0 of `_three_steps`, after it followed 3,000 of them."""
    policy = deepcopy(policy)
    random = np.random.default_rng(0)
    states = _directions(random, (3, policy.dim))
    items = _directions(random, (4, policy.dim))  # x, y, z, w
    for _ in range(25):
        policy.follow(_three_steps(policy, states, items, random, n=120))
    query = Query(
        states=states[:1],
        contexts=np.zeros((1, policy.contexts), np.float32),
        keys=np.arange(2, dtype=np.uint64)[None],
        items=items[None, :2],
        scalars=np.zeros((1, 2, len(policy.scalars)), np.float32),
        mask=np.ones((1, 2), np.bool_),
        streams=np.zeros(1, np.uint64),
    )
    _, scores = policy.distributions(query, np.array([[-1]]))
    return float(scores[0, 0]), float(scores[0, 1])


def _three_steps(policy: Policy, states: Any, items: Any, random: np.random.Generator, *, n: int) -> Steps:
    """Slates of one. State 0: x leads to state 1, y to the end. State 1: z leads to state 2. State 2: w earns 1.

    All that is shown is taken, for a reward of 0.1.
    """
    at = random.integers(0, 3, n)
    first = random.integers(0, 2, n)
    action = np.where(at == 0, first, at + 1)
    ends = (at == 2) | ((at == 0) & (first == 1))
    following = np.minimum(at + 1, 2)
    after = np.where(following == 1, 2, 3)
    empty = np.zeros((n, 1, len(policy.scalars)), np.float32)
    return Steps(
        states=states[at],
        contexts=np.zeros((n, policy.contexts), np.float32),
        items=items[action][:, None],
        scalars=empty,
        shown=np.ones((n, 1), np.bool_),
        rewards=np.where(at == 2, 1.0, 0.1)[:, None],
        propensities=np.where(at == 0, 0.5, 1.0)[:, None],
        next_states=states[following],
        next_contexts=np.zeros((n, policy.contexts), np.float32),
        next_items=items[after][:, None],
        next_scalars=empty,
        next_shown=np.ones((n, 1), np.bool_),
        elapsed_s=np.full(n, 60.0),
        terminal=ends,
        ids=random.integers(0, 2**62, n, dtype=np.uint64),
    )


def _followed(policy: Policy, *, batches: int = 5) -> Policy:
    policy = deepcopy(policy)
    for seed in range(batches):
        policy.follow(make_steps(policy, seed=seed))
    return policy


def _last_at_odd(steps: Steps) -> Steps:
    """All is shown, and even rows go on: nothing of them is padding."""
    odd = np.arange(len(steps.terminal)) % 2 == 1
    return replace(steps, shown=np.ones_like(steps.shown), next_shown=np.ones_like(steps.next_shown), terminal=odd)


def assert_refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} was not refused")


def _bits(policy: Policy) -> bytes:
    return pack(*policy.snapshot())[0]


def _directions(random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    vectors = random.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
