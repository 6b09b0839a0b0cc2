"""Discounting and the change detector, against the sums written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace.policy.base import Examples
from headrace.policy.checks import bits, corrections, make_examples, take
from headrace.policy.fading import KEPT, Fading
from headrace.policy.linear import LinUCB, SquareCB
from headrace.policy.page_hinkley import DELTA, THRESHOLD, PageHinkley
from headrace.policy.registry import make

GAMMA = 0.97


def x_of(policy: LinUCB, e: Examples) -> np.ndarray:
    return policy._features.joint(e.states, e.contexts, e.items, e.scalars, e.positions).astype(np.float64)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_discounting_is_d_linucb(batch: int) -> None:
    """Russac et al. 2019, Algorithm 1, an example at a time, however they are batched."""
    policy = LinUCB(dim=3, scalars=("popularity",), discount=GAMMA, ridge=2.0)
    examples = make_examples(policy, n=60)
    for start in range(0, 60, batch):
        policy.learn(take(examples, slice(start, start + batch)))
    size = policy._features.size
    v, squares, b = 2 * np.eye(size), 2 * np.eye(size), np.zeros(size)
    for x, r in zip(x_of(policy, examples), examples.rewards, strict=True):
        v = GAMMA * v + np.outer(x, x) + (1 - GAMMA) * 2 * np.eye(size)
        squares = GAMMA**2 * squares + np.outer(x, x) + (1 - GAMMA**2) * 2 * np.eye(size)
        b = GAMMA * b + r * x
    assert np.allclose(policy.regression.theta, np.linalg.solve(v, b))
    width = policy.regression.width_root()
    assert np.allclose(width @ width.T, np.linalg.inv(v) @ squares @ np.linalg.inv(v))


def test_a_correction_weighs_what_is_left_of_its_example() -> None:
    policy = LinUCB(dim=3, scalars=("popularity",), discount=GAMMA)
    for i in range(3):
        policy.learn(make_examples(policy, n=10, seed=i, first_id=10 * i))
    late = take(make_examples(policy, n=10, seed=1, first_id=10), [4])  # 15 examples came after it
    before = policy.regression.moment.copy()
    policy.learn(corrections(late, np.array([2.0])))
    assert np.allclose(policy.regression.moment - before, GAMMA**15 * 2 * x_of(policy, late)[0])


def test_a_correction_of_what_is_no_longer_held_weighs_next_to_nothing() -> None:
    policy = LinUCB(dim=3, scalars=("popularity",), discount=0.5)  # 7 are held: .5⁷ < 1 %
    examples = make_examples(policy, n=30)
    policy.learn(examples)
    before = policy.regression.moment.copy()
    policy.learn(corrections(take(examples, [2]), np.array([1.0])))
    moved = policy.regression.moment - before
    assert 0 < np.abs(moved).max() <= 0.5**6 * np.abs(x_of(policy, examples)[2]).max() * 1.001


def test_page_hinkley_finds_a_fall_and_no_rise() -> None:
    random = np.random.default_rng(0)
    for shift, found in ((-1.0, True), (0.0, False), (1.0, False)):
        test = PageHinkley(warm_up=100)
        assert not test.see(random.normal(0, 3, 50_000))
        after = sum(not test.changes and not test.see(random.normal(3 * shift, 3, 10)) for _ in range(100)) * 10
        assert bool(test.changes) is found
        if found:
            assert 0.5 < after / (THRESHOLD / (1 - DELTA)) < 2


def test_page_hinkley_is_its_recursion() -> None:
    random = np.random.default_rng(1)
    z = np.concatenate([random.normal(0, 1, 1_000), random.normal(-0.5, 1, 100)])
    steps, by_hand = PageHinkley(warm_up=0), 0.0
    steps.see(z[:500])
    square, mean = steps._square, min(steps._mean, 0.0)
    steps.see(z[500:])
    for value in z[500:]:
        by_hand = max(0.0, by_hand - float(np.clip((value - mean) / np.sqrt(square), -5, 5)) - DELTA)
    assert np.isclose(steps._sum, by_hand) and by_hand > 20


def reversed_world(policy: SquareCB, *, batches: int, sign: float, first: int) -> list[Examples]:
    made = (make_examples(policy, n=20, seed=first + i, first_id=(first + i) * 20) for i in range(batches))
    return [replace(e, rewards=1 + sign * (e.rewards - 0.1)) for e in made]


def test_a_change_leaves_little_of_what_was_learned() -> None:
    policy = make("squarecb", dim=3, scalars=("popularity",), change_detector=True)
    assert isinstance(policy, SquareCB)
    for batch in reversed_world(policy, batches=100, sign=1.0, first=0):
        policy.learn(batch)
    assert policy.fading.detector and policy.fading.detector.changes == 0
    count, gamma = policy.regression.count, policy.serving()["gamma"][0]
    assert count == 2_000
    fell = make_examples(policy, n=100, seed=999, first_id=10**6)
    policy.learn(replace(fell, rewards=np.full(100, -3.0)))
    assert policy.fading.detector.changes == 1
    assert np.isclose(policy.regression.count, KEPT * count + 100)
    assert policy.serving()["gamma"][0] < gamma / 2  # explores as it did when it was young


def test_late_rewards_are_waited_for() -> None:
    """Every reward comes 50 examples late, and no change is seen in that; then rewards stop coming, and one is."""
    policy = make("linucb", dim=3, scalars=("popularity",), change_detector=True)
    assert isinstance(policy, LinUCB) and policy.fading.detector
    random = np.random.default_rng(0)
    waiting: list[Examples] = []
    for i in range(600):
        batch = make_examples(policy, n=10, seed=i, first_id=i * 10)
        policy.learn(replace(batch, rewards=np.zeros(10)))
        waiting.append(corrections(batch, 0.5 + 0.3 * random.standard_normal(10)))
        if len(waiting) > 5:
            late = waiting.pop(0)
            if i < 400:
                policy.learn(late)
        assert policy.fading.detector.changes == 0 or i > 400, i
    assert policy.fading.detector.changes > 0


def test_a_gap_that_is_always_there_is_no_change() -> None:
    test = PageHinkley(warm_up=1_000)
    random = np.random.default_rng(2)
    for _ in range(500):
        assert not test.see(random.normal(-0.3, 1, 100))


def test_where_rewards_come_too_late_nothing_is_judged() -> None:
    """They come for examples that are no longer held: all that is seen of them would look like a fall."""
    policy = make("linucb", dim=3, scalars=("popularity",), change_detector=True)
    assert isinstance(policy, LinUCB)
    waiting: list[Examples] = []
    for i in range(120):
        batch = make_examples(policy, n=500, seed=i, first_id=i * 500)
        policy.learn(replace(batch, rewards=np.zeros(500)))
        waiting.append(corrections(batch, np.ones(500)))
        if len(waiting) > 40:  # 20,000 examples late
            policy.learn(waiting.pop(0))
    assert policy.fading.changes == 0


def test_other_options_go_on_with_what_was_learned() -> None:
    """A snapshot of one kind of fading starts another; a restart under the same options changes no bit."""
    plain = make("linucb", dim=4)
    plain.learn(make_examples(plain, n=50))
    for options in ({"discount": 0.99}, {"change_detector": True}, {}):
        other = make("linucb", dim=4, **options)
        other.restore(*plain.snapshot())
        assert isinstance(other, LinUCB) and isinstance(plain, LinUCB)
        assert np.allclose(other.regression.theta, plain.regression.theta)
        other.learn(make_examples(plain, n=5, seed=1, first_id=50))
        back = make("linucb", dim=4)
        back.restore(*other.snapshot())
        assert np.allclose(back.regression.covariance, other.regression.covariance)
    assert bits(back) == bits(other)


def test_values_out_of_range_are_refused() -> None:
    for name, options, says in (
        ("linucb", {"discount": 0.0}, "discount is 0"),
        ("linucb", {"discount": 1.1}, "discount is 1"),
        ("neural_linear", {"discount": 0.9}, "neither discount nor change_detector"),
        ("epsilon_greedy", {"epsilon": 1.5}, "epsilon is 1"),
        ("softmax", {"temperature": 0.0}, "temperature is 0"),
        ("squarecb", {"gamma_scale": 0.0}, "gamma_scale must be above 0"),
        ("linucb", {"largest_weight": 0.5}, "largest_weight is 0"),
    ):
        with pytest.raises(ValueError, match=says):
            make(name, dim=4, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discount is -1"):
        Fading(discount=-1.0)


def test_weight_three_is_the_example_three_times_in_the_width_too() -> None:
    """Ṽ fades by γ² within a weight as between examples."""
    heavy, thrice = (LinUCB(dim=3, scalars=("popularity",), discount=GAMMA) for _ in range(2))
    examples = make_examples(heavy, n=20)
    heavy.learn(replace(examples, weights=np.full(20, 3.0)))
    rows = np.repeat(np.arange(20), 3)
    thrice.learn(replace(take(examples, rows), ids=np.arange(60, dtype=np.uint64)))
    assert np.allclose(heavy.regression.squares, thrice.regression.squares)
    assert np.allclose(heavy.regression.precision, thrice.regression.precision)
