"""Verdicts, and that looking often promotes no more than was said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headrace.policy.evaluation.gate import Gate, boundary
from headrace.policy.evaluation.ledger import Ledger


def make_ledger(champion: float, challenger: float, *, each: int = 40_000, seed: int = 0) -> Ledger:
    """Rewards of 0 or 1 at these rates."""
    random, ledger = np.random.default_rng(seed), Ledger(["champion", "challenger", "other"])
    for arm, rate in (("champion", champion), ("challenger", challenger)):
        ledger.add(arm, random.integers(0, 512, each), np.ones(each), (random.random(each) < rate).astype(np.float64))
    return ledger


def verdict(gate: Gate, ledger: Ledger, **more: int):  # type: ignore[no-untyped-def]
    return gate.verdict(ledger, champion="champion", challenger="challenger", **more)


def test_better_worse_and_unclear() -> None:
    better, worse = verdict(Gate(), make_ledger(0.1, 0.12)), verdict(Gate(), make_ledger(0.12, 0.1))
    unclear = verdict(Gate(), make_ledger(0.1, 0.1))
    assert better.decision == "promote"
    assert 0 < better.lower < better.lift < better.upper
    assert better.decisions == 80_000
    assert better.reason.startswith("better: +")
    assert worse.decision == "keep"
    assert worse.upper < 0
    assert "not better by the margin of 0.0%" in worse.reason
    assert unclear.decision == "waiting"
    assert unclear.lower < 0 < unclear.upper
    assert better.challenger_value / better.champion_value - 1 == pytest.approx(better.lift)


def test_margin_is_of_the_champions_value() -> None:
    ledger = make_ledger(0.1, 0.12)
    lower = verdict(Gate(), ledger).lower
    for margin, expected in ((lower * 0.8, "promote"), (lower * 1.2, "waiting"), (0.5, "keep")):
        found = verdict(Gate(margin=margin), ledger)
        assert found.decision == expected
        assert (found.lower > margin) == (expected == "promote")


def test_too_little_is_waited_for() -> None:
    few = verdict(Gate(min_decisions=1_000), make_ledger(0.1, 0.9, each=999))
    assert (few.decision, few.lower, few.upper) == ("waiting", -10, 10)
    assert few.reason == "champion has 999 of the 1,000 shown decisions that are needed"
    ledger = make_ledger(0.1, 0.1)
    hot = Ledger(["champion", "challenger"])
    hot.add("champion", np.arange(512), np.full(512, 100.0), np.full(512, 10.0) + np.arange(512) % 2)
    hot.add("challenger", np.arange(512), np.full(512, 100.0), np.where(np.arange(512) == 7, 90.0, 10.0))
    assert "too few users" in verdict(Gate(), hot).reason  # one bucket carries the challenger's variance
    assert verdict(Gate(), ledger).decision == "waiting"
    empty = verdict(Gate(), Ledger(["champion", "challenger"]))
    assert (empty.lift, empty.decisions, empty.decision) == (0, 0, "waiting")


def test_rewards_below_0_and_a_champion_worth_nothing() -> None:
    ledger = make_ledger(0.0, 0.1)
    assert "too few users" in verdict(Gate(), ledger).reason
    random = np.random.default_rng(0)
    ledger.add("champion", np.arange(512), np.zeros(512), random.normal(-5, 3, 512))  # returns
    found = verdict(Gate(margin=0.1), ledger)
    assert found.champion_value < 0 < found.challenger_value
    assert found.decision == "promote"
    assert math.isfinite(found.lift) and math.isfinite(found.upper)


def test_several_challengers_share_the_error() -> None:
    ledger = make_ledger(0.1, 0.12)
    alone, one_of_four = verdict(Gate(), ledger), verdict(Gate(), ledger, challengers=4)
    assert one_of_four.lower < alone.lower
    assert one_of_four.lower == verdict(Gate(error=0.0125), ledger).lower


def test_boundary_is_closest_where_it_was_planned() -> None:
    at = np.geomspace(1e2, 1e7, 400)
    values = [boundary(t, error=0.05, planned=50_000) for t in at]
    assert at[int(np.argmin(values))] == pytest.approx(50_000, rel=0.05)
    assert 2.5 < min(values) < 2.9
    assert boundary(50_000, error=0.01, planned=50_000) > min(values)


def test_brownian_paths_cross_the_boundary_no_more_often_than_said() -> None:
    """4,000 driftless random walks, looked at every step from 1/50 of what was planned to 20 times as much."""
    random, planned, error = np.random.default_rng(0), 5_000, 0.05
    crossed, sums = np.zeros(4_000, np.bool_), np.zeros(4_000)
    for step in range(1, 1_001):
        sums += random.normal(0, 10, 4_000)  # 100 decisions a step
        crossed |= sums / math.sqrt(100 * step) > boundary(100 * step, error=error, planned=planned)
    assert 0.01 < crossed.mean() < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 4_000)


def test_looking_all_the_time_promotes_an_equal_challenger_seldom() -> None:
    """150 runs of clustered users, each looked at 60 times; a plain z-test promotes many times as often."""
    random, gate = np.random.default_rng(0), Gate(min_decisions=500, planned=10_000)
    promoted = peeked = 0
    for _ in range(150):
        ledger = Ledger(["champion", "challenger"], buckets=256)
        arm, rate = random.random(2_000) < 0.5, random.beta(0.05 * 20, 0.95 * 20, 2_000)
        bucket = random.integers(0, 256, 2_000)
        won = lost = False
        for _ in range(60):
            user = random.integers(0, 2_000, 400)
            reward = (random.random(400) < rate[user]).astype(np.float64)
            for name, mine in (("champion", False), ("challenger", True)):
                of = arm[user] == mine
                ledger.add(name, bucket[user[of]], np.ones(of.sum()), reward[of])
            found = verdict(gate, ledger)
            won |= found.decision == "promote"
            p = (found.champion_value + found.challenger_value) / 2
            lost |= found.challenger_value - found.champion_value > 1.645 * math.sqrt(4 * p / max(found.decisions, 1))
        promoted, peeked = promoted + won, peeked + lost
    assert promoted <= 150 * 0.05 + 5 * math.sqrt(150 * 0.05 * 0.95)
    assert peeked > max(3 * promoted, 20)


def test_values_out_of_range_are_refused() -> None:
    for wrong in ({"error": 0.0}, {"error": 0.6}, {"margin": -0.1}, {"min_decisions": 0}, {"planned": 0}):
        with pytest.raises(ValueError, match=r"error is|margin is|must be at least"):
            Gate(**wrong)


def test_bounds_are_those_of_the_difference_at_the_margin() -> None:
    """new - (1 + margin) old has the variance of both, the champion's scaled along."""
    gate, ledger = Gate(margin=0.5), make_ledger(0.1, 0.12)
    found, old, new = verdict(gate, ledger), ledger.value("champion"), ledger.value("challenger")
    error = math.sqrt(new.variance + 1.5**2 * old.variance)
    far = error * boundary(80_000, error=gate.error, planned=gate.planned) / old.mean
    assert (found.lower, found.upper) == pytest.approx((found.lift - far, found.lift + far))
