"""Intervals for a value per decision, for decisions that come in clusters: one user's hang together.

Everything here works on sums by user: S_g of what his decisions contribute, n_g their number; the value is
E[S] / E[n]. Users are drawn independently, decisions of one user need not be.

    bootstrap               two-sided, users drawn whole, studentised; approximate, right for large effective samples
    empirical_bernstein     two-sided, holds at every sample size; needs bounded contributions, so weights are cut
    anytime                 two-sided and valid at every moment of a run that somebody watches; no bound above needed

The last two take IPS contributions: see `bounded_below`, which makes from r and w the pair that both of them want.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from headrace.policy.base import F64, I64

_CHUNK = 4_000_000  # numbers of a bootstrap's counts held at a time
_GROUPS = 4_000  # a bootstrap draws so many: more users are put together, which leaves them independent


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class ByUser:
    """Sums by user: `sums` (G, E) of E estimators' contributions, `counts` (G,). Users stand as they came first."""

    sums: F64
    counts: F64

    @property
    def means(self) -> F64:
        """The estimates (E,)."""
        means: F64 = self.sums.sum(axis=0) / self.counts.sum()
        return means

    @property
    def errors(self) -> F64:
        """Their cluster-robust standard errors (E,), by linearisation of the ratio."""
        g, total = len(self.counts), self.counts.sum()
        left = self.sums - self.means * self.counts[:, None]
        errors: F64 = np.sqrt((left**2).sum(axis=0) * g / max(g - 1, 1)) / total
        return errors

    def grouped(self, most: int) -> ByUser:
        """At most so many groups of users; the same estimates."""
        if len(self.counts) <= most:
            return self
        group = np.arange(len(self.counts)) % most
        sums = np.stack([np.bincount(group, column) for column in self.sums.T], axis=1).astype(np.float64)
        return ByUser(sums, np.bincount(group, self.counts).astype(np.float64))


def by_user(contributions: F64, users: I64) -> ByUser:
    """`contributions` (N,) or (N, E), `users` (N,) numbers of users."""
    table = contributions.reshape(len(users), -1)
    _, first, group = np.unique(users, return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[group]  # in the order of their first decisions
    sums = np.stack([np.bincount(group, column) for column in table.T], axis=1)
    return ByUser(sums.astype(np.float64), np.bincount(group).astype(np.float64))


def bootstrap(sums: ByUser, *, level: float = 0.95, draws: int = 1_000, seed: int = 0) -> list[Interval]:
    """Studentised ("bootstrap-t") intervals, one an estimator: users are drawn with replacement, whole.

    t* = (m* - m) / s* of each draw; m - t*_hi s … m - t*_lo s (Efron & Tibshirani 1993, section 12.5; clusters drawn
    whole: Davison & Hinkley 1997, section 3.8). Neither end is nearer than m ± t s of Student's t, whose degrees of
    freedom are those of s² with these tails, 2 G / (kurtosis - 1): with heavy weights t* alone is a little short
    (benchmarks/evaluation.py). A draw without spread says nothing and is left out. One user alone, or contributions
    that are all the same, give an interval of no width.
    """
    mean, error = sums.means, sums.errors
    grouped = sums.grouped(_GROUPS)
    s, n, g = grouped.sums, grouped.counts, len(grouped.counts)
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, size := max(1, _CHUNK // g)):
        rows = min(size, draws - start)
        drawn = rng.integers(0, g, (rows, g)) + g * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * g).reshape(rows, g).astype(np.float64)  # how often each
        total = times @ n
        m = times @ s / total[:, None]  # (R, E)
        # Σ c (S - m n)² = Σ c S² - 2 m Σ c S n + m² Σ c n²
        square = times @ s**2 - 2 * m * (times @ (s * n[:, None])) + m**2 * (times @ n**2)[:, None]
        spread = np.sqrt(np.maximum(square, 0.0) * g / max(g - 1, 1)) / total[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append((m - mean) / np.where(spread > 1e-12 * np.abs(m) + 1e-300, spread, np.nan))
    t = np.concatenate(found)
    left = sums.sums - mean * sums.counts[:, None]
    intervals = []
    for e in range(s.shape[1]):
        known = t[np.isfinite(t[:, e]), e]
        if not len(known) or error[e] == 0:
            intervals.append(Interval(float(mean[e]), float(mean[e])))
            continue
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        student = _student(left[:, e], level)
        low, high = min(low, -student), max(high, student)
        intervals.append(Interval(float(mean[e] - high * error[e]), float(mean[e] - low * error[e])))
    return intervals


def _student(left: F64, level: float) -> float:
    """The quantile of Student's t for a mean whose residuals are `left`, by Cornish and Fisher's expansion."""
    second, fourth = float((left**2).mean()), float((left**4).mean())
    freedom = max(2 * len(left) / max(fourth / second**2 - 1, 1e-9), 3.0) if second > 0 else float(len(left))
    z = NormalDist().inv_cdf((1 + level) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


# -- intervals that hold at every sample size -------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounded:
    """Two sums by user with the same expectation, the value, each bounded on one side by what was known beforehand.

    From r in [least, most] and E[w] = 1 (Karampatziakis, Mineiro & Ramdas 2021, arXiv 2102.09540, section 3):
    Σ (w (r - least) + least) ≥ least · positions, and Σ (most - w (most - r)) ≤ most · positions.
    """

    below: F64  # (G,) sums for the lower end
    least: F64  # (G,) never below this
    above: F64  # (G,) sums for the upper end
    most: F64  # (G,) never above this
    counts: F64  # (G,)

    def clipped(self, low: float, high: float) -> Interval:
        """No value lies beyond what the rewards' own range allows."""
        decisions = float(self.counts.sum())
        return Interval(max(low, float(self.least.sum()) / decisions), min(high, float(self.most.sum()) / decisions))


def bounded_below(
    rewards: F64, weights: F64, shown: F64, users: I64, *, least: float, most: float, cap: float = np.inf
) -> Bounded:
    """`rewards`, `weights`, `shown` (0 or 1) are (N, k). `cap` cuts w: that moves both ends outwards, never inwards.

    Raises ValueError where a reward is not in [least, most].
    """
    inside = shown > 0
    if inside.any() and not least <= rewards[inside].min() <= rewards[inside].max() <= most:
        raise ValueError(f"a reward is not in [{least:g}, {most:g}]")
    w = np.minimum(weights, cap)
    positions = shown.sum(axis=1)
    up = (shown * (w * (rewards - least) + least)).sum(axis=1)
    down = (shown * (most - w * (most - rewards))).sum(axis=1)
    table = by_user(np.stack([up, down, positions], axis=1), users)
    below, above, shown_by_user = table.sums.T
    return Bounded(below, least * shown_by_user, above, most * shown_by_user, table.counts)


def empirical_bernstein(data: Bounded, *, width: float, level: float = 0.95) -> Interval:
    """Holds for any number of users G, where what one decision contributes spans at most `width`.

    For each m, Z_g = S_g - m n_g has mean 0 at the true value; Maurer & Pontil (2009, arXiv 0907.3740, theorem 4) says
    |mean Z| ≤ √(2 V ln(2/δ) / G) + 7 R ln(2/δ) / (3 (G - 1)) with probability 1 - δ on each side, R = width · max n_g.
    `width` is (most - least) · positions · cap where weights were cut at `cap`.
    """
    g = len(data.counts)
    if g < 2:
        return data.clipped(float("-inf"), float("inf"))
    log_term = float(np.log(2 / ((1 - level) / 2)))
    spread = width * float(data.counts.max())

    def outside(m: float, sums: F64) -> bool:
        """Whether the mean of Z(m) is above its bound: m is then too low."""
        z = sums - m * data.counts
        bound = np.sqrt(2 * z.var(ddof=1) * log_term / g) + 7 * spread * log_term / (3 * (g - 1))
        return bool(z.mean() > bound)

    low = _edge(lambda m: outside(m, data.below), _ratio(data.below, data.counts), _reach(data))
    high = -_edge(lambda m: outside(m, -data.above), -_ratio(data.above, data.counts), _reach(data))
    return data.clipped(low, high)


def anytime(data: Bounded, *, level: float = 0.95) -> Interval:
    """Valid at all times at once: whoever looks after every user, and stops when he likes, is wrong with 1 - `level`.

    Betting (Waudby-Smith & Ramdas 2024, arXiv 2010.09686): the capital Π (1 + λ_g (S_g - m n_g)) is a nonnegative
    martingale at the true value m and exceeds 2/δ with probability δ/2 at most (Ville). λ_g is chosen from the users
    before, so that the capital stays positive: only a bound below is needed, and large weights cost nothing else
    (Karampatziakis et al. 2021). Users must stand in the order they came. The number of decisions of one user is taken
    to be at most the largest seen.
    """
    level_of_capital = float(np.log(2 / (1 - level)))
    low = _edge(
        lambda m: bool(log_capital(data.below, data.counts, data.least, m).max(initial=0.0) >= level_of_capital),
        _ratio(data.below, data.counts),
        _reach(data),
    )
    high = -_edge(
        lambda m: bool(log_capital(-data.above, data.counts, -data.most, m).max(initial=0.0) >= level_of_capital),
        -_ratio(data.above, data.counts),
        _reach(data),
    )
    return data.clipped(low, high)


def log_capital(sums: F64, counts: F64, least: F64, m: float) -> F64:
    """ln of the capital after each user (G,) of whoever bets that the value is above `m`.

    λ_g = mean / (variance + mean²) of Z among the users before (their "approximate Kelly"), at most half of what could
    ever cost all capital; 1 unit of Z² is imagined before the first user.
    """
    z = sums - m * counts
    worst = float(np.max(m * counts - least, initial=0.0))
    if worst <= 0:  # Z cannot fall below 0: such an m is refused by the first reward above it
        return np.where(np.cumsum(z) > 0, np.inf, 0.0)
    before = np.arange(1, len(z) + 1)
    first = np.concatenate([[0.0], np.cumsum(z)[:-1]]) / before
    second = (worst**2 + np.concatenate([[0.0], np.cumsum(z**2)[:-1]])) / before
    bet = np.clip(first / second, 0.0, 0.5 / worst)
    return np.cumsum(np.log1p(bet * np.maximum(z, -worst)))


def _edge(refused: Callable[[float], bool], estimate: float, reach: float) -> float:
    """The largest m that is refused, by bisection: from `reach` below the estimate up to it."""
    low, high = estimate - reach, estimate
    if not refused(low):
        return float("-inf")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return low


def _ratio(sums: F64, counts: F64) -> float:
    return float(sums.sum() / counts.sum())


def _reach(data: Bounded) -> float:
    """Further from an estimate than any value can be."""
    low, high = float(data.least.sum()), float(data.most.sum())
    spread = max(high - low, 1e-9) / float(data.counts.sum())
    return abs(_ratio(data.below, data.counts)) + abs(_ratio(data.above, data.counts)) + 2 * spread


# -- diagnostics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagnostics:
    """How far a log carries a target. `ess`: as if so many of its decisions were the target's own."""

    ess: float  # (Σ w)² / Σ w²
    share: float  # ess / decisions
    largest: float  # largest weight
    calibration: float  # Σ w / n: 1 where the logged propensities are true and cover the target
    calibration_error: float  # its standard error, by user


def diagnose(weights: F64, shown: F64, users: I64) -> Diagnostics:
    """`weights` and `shown` (0 or 1) are (N, k). Over all shown positions, scaled to decisions where k > 1."""
    w = weights * shown
    square, count = float((w**2).sum()), float(shown.sum())
    rows = len(w)
    share = float(w.sum()) ** 2 / (square * count) if square > 0 else 0.0
    sums = by_user(w.sum(axis=1), users)
    positions = by_user(shown.sum(axis=1), users)
    per_position = ByUser(sums.sums, positions.sums[:, 0])
    if count == 0:
        return Diagnostics(0.0, 0.0, 0.0, 0.0, 0.0)
    return Diagnostics(
        share * rows, share, float(w.max(initial=0.0)), float(per_position.means[0]), float(per_position.errors[0])
    )


def diagnose_worst(weights: F64, shown: F64, users: I64) -> Diagnostics:
    """Of weights that grow with the position, those of the position that carries least; `ess` in decisions."""
    columns = [j for j in range(weights.shape[1]) if shown[:, j].any()]
    found = [diagnose(weights[:, [j]], shown[:, [j]], users) for j in columns]
    return min(found, key=lambda d: d.share, default=Diagnostics(0.0, 0.0, 0.0, 0.0, 0.0))
