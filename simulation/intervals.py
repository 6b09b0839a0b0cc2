"""Means with intervals that know that one user's decisions hang together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    decisions: int
    mean: float
    low: float
    high: float


def by_user(
    users: NDArray[np.int64], rewards: NDArray[np.float64], *, draws: int = 2_000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean reward of decisions, with the percentile interval of a bootstrap that draws users, not decisions.

    `users` and `rewards` are (N,). Nothing to average gives NaN; one user alone gives an interval of no width.
    (Efron & Tibshirani 1993, chapter 13; clusters drawn whole: Davison & Hinkley 1997, section 3.8.)
    """
    if not len(users):
        return Estimate(0, float("nan"), float("nan"), float("nan"))
    _, group = np.unique(users, return_inverse=True)
    total = np.bincount(group, rewards)
    count = np.bincount(group)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), size=draws)
    means = (times @ total) / (times @ count)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(len(users), float(total.sum() / count.sum()), float(low), float(high))
