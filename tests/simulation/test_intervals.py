"""Bootstrap intervals by user, against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.simulation.intervals import by_user


def test_independent_users_give_the_textbook_interval() -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(1.0, 2.0, 4_000)
    found = by_user(np.arange(4_000), rewards)
    half = 1.96 * rewards.std() / 4_000**0.5
    assert found.decisions == 4_000 and found.mean == pytest.approx(rewards.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_a_users_decisions_hang_together() -> None:
    """A hundred copies of each decision tell no more than the decision itself."""
    rng = np.random.default_rng(1)
    rewards = rng.normal(0.0, 1.0, 200)
    once = by_user(np.arange(200), rewards)
    copied = by_user(np.repeat(np.arange(200), 100), np.repeat(rewards, 100))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=1e-9)


def test_edges() -> None:
    nothing = by_user(np.zeros(0, np.int64), np.zeros(0))
    assert nothing.decisions == 0 and np.isnan(nothing.mean)
    alone = by_user(np.zeros(5, np.int64), np.arange(5.0))
    assert alone.low == alone.mean == alone.high == 2.0
