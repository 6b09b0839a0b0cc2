"""Each rule sees what it is for, is silent on what is healthy, and goes on after a restart as if nothing had been."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from headrace.policy.checks import make_examples
from headrace.policy.evaluation.guardrails import Alarm, Guardrails
from headrace.policy.neural_linear import NeuralLinear
from headrace.policy.registry import make
from headrace.policy.rl.checks import make_steps


def feed(guard: Guardrails, rate: float, *, decisions: int, seed: int = 0, version: int = 1, at_once: int = 5):  # type: ignore[no-untyped-def]
    """Rewards of 0 or 1; (decisions until an alarm, the alarm) or (decisions, None)."""
    rewards = np.random.default_rng(seed).binomial(at_once, rate, decisions // at_once)
    for call, reward in enumerate(rewards.tolist(), start=1):
        if alarm := guard.rewarded(arm="policy", version=version, decisions=at_once, reward=float(reward)):
            return call * at_once, alarm
    return decisions, None


# -- reward -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_a_policy_that_earns_little_is_seen_within_500_decisions(rate: float, seed: int) -> None:
    guard = Guardrails()
    assert feed(guard, rate, decisions=6_000, seed=seed)[1] is None
    took, alarm = feed(guard, rate * 0.1, decisions=2_000, seed=seed + 100, version=2)
    assert took <= 500
    assert alarm is not None and alarm.rule == "reward"
    assert alarm.reason.startswith("version 2 earns 0")
    assert guard.last_good == 1


@pytest.mark.parametrize("rate", [0.03, 0.3])
def test_a_healthy_policy_is_left_alone(rate: float) -> None:
    assert feed(Guardrails(), rate, decisions=100_000, seed=1) == (100_000, None)


def test_a_better_policy_and_the_hour_of_the_day_are_no_alarm() -> None:
    guard = Guardrails()
    for hour in range(48):
        rate = 0.1 * (1 + 0.3 * math.sin(2 * math.pi * hour / 24))
        assert feed(guard, rate, decisions=2_000, seed=1_000 + hour)[1] is None
    assert feed(guard, 0.3, decisions=5_000)[1] is None


def test_rewards_of_any_unit_and_late_ones() -> None:
    """Purchases of 40 beside clicks of .5; decisions when they are shown and rewards when they come."""
    random, guard = np.random.default_rng(0), Guardrails()
    for _ in range(10_000):
        assert guard.rewarded(arm="policy", version=1, decisions=1, reward=0.0) is None
        if random.random() < 0.2:
            worth = 40.0 if random.random() < 0.05 else 0.5
            assert guard.rewarded(arm="policy", version=1, decisions=0, reward=worth) is None
    clicks = Guardrails()
    assert feed(clicks, 0.2, decisions=5_000)[1] is None
    silent = [clicks.rewarded(arm="policy", version=2, decisions=1, reward=0.0) for _ in range(200)]
    assert silent[0] is None and silent[-1] is not None


@pytest.mark.parametrize("control", [None, "popular"])
def test_a_fall_of_the_control_arm_is_taken_into_account(control: str | None) -> None:
    """Everybody clicks a third as much; where the control arm shows it, the policy is not to blame."""
    random, guard, alarms = np.random.default_rng(0), Guardrails(control=control), 0
    for rate in np.repeat([0.3, 0.1], 4_000).tolist():
        guard.rewarded(arm="popular", version=0, decisions=10, reward=float(random.binomial(10, rate / 2)))
        alarms += guard.rewarded(arm="policy", version=1, decisions=1, reward=float(random.random() < rate)) is not None
    assert (alarms > 0) == (control is None)


def test_other_arms_are_ignored_and_nothing_is_said_before_the_warm_up() -> None:
    guard = Guardrails(warm_up=1_000)
    assert feed(guard, 0.3, decisions=900)[1] is None
    assert feed(guard, 0.0, decisions=90)[1] is None
    for _ in range(500):
        assert guard.rewarded(arm="random", version=9, decisions=5, reward=0.0) is None
    assert guard.last_good == 1


def test_the_last_good_version_is_from_before_the_trouble() -> None:
    guard = Guardrails()
    assert guard.last_good is None
    for version in range(1, 20):
        assert feed(guard, 0.2, decisions=400, version=version, seed=version)[1] is None
    assert guard.last_good in (17, 18)  # 18 came 800 decisions before the end, of which some may be in suspicion
    for version in range(20, 40):
        if feed(guard, 0.0, decisions=50, version=version)[1]:
            break
    assert 16 <= guard.last_good <= 18
    guard.reset()
    assert feed(guard, 0.2, decisions=5_000, version=guard.last_good, seed=99)[1] is None


# -- calibration ------------------------------------------------------------------------------------------------------


def decide(guard: Guardrails, *, logged: float, true: float, decisions: int, seed: int = 0) -> Alarm | None:
    """One item of 10 is drawn with the chance `true` and the rest evenly; `logged` is what is logged as its chance."""
    random, alarm = np.random.default_rng(seed), None
    for _ in range(decisions):
        first = random.random() < true
        alarm = alarm or guard.decided(3, expected=10, observed=1 / (logged if first else (1 - logged) / 9))
    return alarm


def test_right_propensities_are_no_alarm() -> None:
    assert decide(Guardrails(floor=0.1), logged=0.91, true=0.91, decisions=20_000) is None


@pytest.mark.parametrize(("true", "side"), [(1.0, "too large"), (0.6, "too small"), (0.97, "too large")])
def test_wrong_propensities_are(true: float, side: str) -> None:
    alarm = decide(Guardrails(floor=0.1), logged=0.91, true=true, decisions=2_000)
    assert alarm is not None and alarm.rule == "calibration"
    assert "version 3" in alarm.reason


def test_a_propensity_of_0_is_an_alarm() -> None:
    alarm = Guardrails().decided(3, expected=10, observed=math.inf)
    assert alarm is not None and alarm.rule == "calibration"
    assert Guardrails().decided(3, expected=0, observed=0) is None


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_versions_of_a_learning_policy_pass_and_a_blown_up_one_does_not() -> None:
    trained = NeuralLinear(dim=12, memory=500, first_training=200, train_every=500, steps=8)
    for policy in (make("lints", dim=12), trained):
        guard = Guardrails()
        for batch in range(25):
            policy.learn(make_examples(policy, n=60, seed=batch, first_id=60 * batch))
            assert guard.check_arrays(*policy.snapshot()) is None
        arrays, meta = policy.snapshot()
        blown = {key: array * 1_000 if array.dtype.kind == "f" else array for key, array in arrays.items()}
        alarm = guard.check_arrays(blown, meta)
        assert alarm is not None and alarm.rule == "norm"
        assert guard.check_arrays(arrays, meta) is None  # what was refused did not become usual


@pytest.mark.parametrize("name", ["linucb", "squarecb", "neural_linear"])
def test_a_shop_that_opens_is_no_alarm(name: str) -> None:
    """Versions of a few examples each, then of hundreds: sums over examples grow, what is served does not."""
    guard, policy = Guardrails(), make(name, dim=12)
    for batch, n in enumerate([3] * 20 + [900] * 2):
        policy.learn(make_examples(policy, n=n, seed=batch, first_id=1_000 * batch))
        assert guard.check_arrays(*policy.snapshot()) is None


def test_users_who_come_back_later_are_no_alarm() -> None:
    guard, policy = Guardrails(), make("dqn", dim=12, rl_replay=64)
    for batch, longer in enumerate([1.0] * 8 + [200.0] * 2):
        steps = make_steps(policy, n=32, seed=batch)
        policy.follow(replace(steps, elapsed_s=steps.elapsed_s * longer))
        assert guard.check_arrays(*policy.snapshot()) is None
    arrays, meta = policy.snapshot()
    assert any(name.startswith("adam.") for name in arrays)
    alarm = guard.check_arrays({**arrays, "q.out": arrays["q.out"] * 1_000}, meta)
    assert alarm is not None and alarm.reason.startswith("q.out is ")


def test_arrays_that_begin_as_zeros_are_watched_too() -> None:
    guard = Guardrails()
    for size in (0.0, 0.5, 1.0, 2.0):
        assert guard.check_arrays({"w": np.full(4, size)}, {}) is None
    for size in (50.0, 1e300):
        alarm = guard.check_arrays({"w": np.full(4, size)}, {})
        assert alarm is not None and alarm.rule == "norm"
    assert guard.check_arrays({"w": np.full(4, 3.0), "new": np.full(2, 1e6)}, {}) is None  # nothing to hold it against


def test_numbers_that_are_none() -> None:
    guard = Guardrails()
    for bad in (np.nan, np.inf):
        alarm = guard.check_arrays({"a": np.ones(3), "b": np.array([1.0, bad])}, {})
        assert alarm == Alarm("not_finite", "b holds a number that is not finite")
    alarm = guard.check_arrays({"n": np.arange(3)}, {"alpha": math.nan, "policy": "lints"})
    assert alarm == Alarm("not_finite", "alpha is nan")
    alarm = guard.rewarded(arm="policy", version=4, decisions=1, reward=math.nan)
    assert alarm is not None and alarm.rule == "not_finite"


# -- state ------------------------------------------------------------------------------------------------------------


def test_restored_goes_on_as_if_it_had_never_stopped() -> None:
    guard, other = Guardrails(control="popular"), Guardrails(control="popular")
    feed(guard, 0.2, decisions=3_000)
    guard.rewarded(arm="popular", version=0, decisions=50, reward=4.0)
    guard.check_arrays({"w": np.ones(4)}, {})
    decide(guard, logged=0.9, true=0.95, decisions=30)
    feed(guard, 0.0, decisions=40, version=2)
    other.restore(guard.arrays())
    assert feed(guard, 0.0, decisions=900, version=2) == feed(other, 0.0, decisions=900, version=2)
    assert guard.last_good == other.last_good == 1
    for name, array in guard.arrays().items():
        assert np.array_equal(array, other.arrays()[name]), name


def test_refuses_foreign_state_and_limits() -> None:
    guard = Guardrails()
    arrays = guard.arrays()
    for name in ("averages", "begins", "wealth"):
        with pytest.raises(ValueError, match=f"lacks '{name}'"):
            guard.restore({key: array for key, array in arrays.items() if key != name})
    for wrong in ({"floor": 0.0}, {"memory": 0}, {"norm_ratio": 1.0}, {"tolerance": 0.6}):
        with pytest.raises(ValueError, match=r"floor is|out of range"):
            Guardrails(**wrong)
