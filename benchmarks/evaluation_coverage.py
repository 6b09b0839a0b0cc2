"""Coverage of every kind of interval in made-up logs whose truth is known: see evaluation.py.

Users are the clusters: each has a taste for everything or for nothing, and comes one to eight times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.policy.evaluation import estimators as single
from headrace.policy.evaluation import intervals as iv
from headrace.policy.evaluation import slate_estimators as slates
from headrace.policy.evaluation.estimators import Rounds
from headrace.policy.evaluation.reward_model import fit, folds, predict

Figures = dict[str, Any]

USERS = 300  # in a log of single items
SLATE_USERS = {"": 800, ", ESS below 100": 300}  # the second is what `--min-ess` refuses by default
EARNS = np.array([[0.10, 0.30, 0.20, 0.05], [0.40, 0.15, 0.10, 0.20]])  # by kind of visit and action
MU = np.array([[0.4, 0.2, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]])
PI = np.array([[0.1, 0.7, 0.1, 0.1], [0.6, 0.1, 0.1, 0.2]])
TRUTH = float((PI * EARNS).sum(axis=1) @ [0.5, 0.5])
BELOW = 0.5  # of a slate's position: an item below one of the same kind earns so much


def coverage(runs: int) -> Figures:
    """How often the interval held the truth, and how wide it was (median)."""
    held: dict[str, list[bool]] = {}
    width: dict[str, list[float]] = {}
    ess: dict[str, list[float]] = {}

    def count(name: str, found: iv.Interval, truth: float) -> None:
        held.setdefault(name, []).append(found.low <= truth <= found.high)
        width.setdefault(name, []).append(found.high - found.low)

    truth = slate_truth()
    for run in range(runs):
        rng = np.random.default_rng([11, run])
        singles, sample = bandit_intervals(rng)
        ess.setdefault("single items", []).append(sample)
        for name, found in singles.items():
            count(name, found, TRUTH)
        for note, users in SLATE_USERS.items():
            found_of, sample = slate_intervals(rng, users)
            ess.setdefault(f"slates{note}", []).append(sample)
            for name, found in found_of.items():
                count(f"{name}{note}", found, truth)
        peeked, naive = peeking(rng)
        held.setdefault("anytime, looked at after every user", []).append(peeked)
        held.setdefault("fixed-sample interval, looked at after every user", []).append(naive)
    return {
        "runs": runs,
        "users": USERS,
        "slate_users": list(SLATE_USERS.values()),
        "median_ess": {name: float(np.median(found)) for name, found in ess.items()},
        "held": {name: float(np.mean(found)) for name, found in held.items()},
        "median_width": {name: float(np.median(found)) for name, found in width.items()},
        "truth": {"bandit": TRUTH, "slates": truth},
    }


def visits(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Who came, what kind of visit, what was shown, what it earned: each user has a taste for everything or nothing."""
    who = np.repeat(np.arange(users), rng.integers(1, 9, users))
    kind = rng.integers(0, 2, len(who))
    action = (rng.random(len(who))[:, None] > MU[kind].cumsum(axis=1)).sum(axis=1)
    taste = rng.choice([-0.5, 0.5], users)[who]
    reward = (rng.random(len(who)) < EARNS[kind, action] * (1 + taste)).astype(float)
    return who, kind, action, reward


def bandit_intervals(rng: np.random.Generator) -> tuple[dict[str, iv.Interval], float]:
    """The intervals, and the effective sample."""
    who, kind, action, reward = visits(rng, USERS)
    n = len(who)
    w = PI[kind, action] / MU[kind, action]
    x = np.concatenate([np.eye(8)[kind * 4 + action], np.ones((n, 1))], axis=1)
    fold = folds(who)
    beta = fit(x, reward, fold, ridge=1.0).coefficients[fold]
    every = beta[:, :8].reshape(n, 2, 4)[np.arange(n), kind] + beta[:, -1:]
    r = Rounds(reward, w, np.ones(n, np.bool_), every[np.arange(n), action], (PI[kind] * every).sum(axis=1))
    table = {"IPS": single.ips(r), "SNIPS": single.snips(r), "DR": single.dr(r), "SNDR": single.sndr(r)}
    sums = iv.by_user(np.stack(list(table.values()), axis=1), who)
    found = {f"bootstrap by user, {name}": i for name, i in zip(table, iv.bootstrap(sums), strict=True)}
    ones, most = np.ones((n, 1)), float((PI / MU).max())
    data = iv.bounded_below(reward[:, None], w[:, None], ones, who, least=0.0, most=1.0)
    found["empirical Bernstein"] = iv.empirical_bernstein(data, width=most)
    cut = iv.bounded_below(reward[:, None], w[:, None], ones, who, least=0.0, most=1.0, cap=2.0)
    found["empirical Bernstein, weights cut at 2"] = iv.empirical_bernstein(cut, width=2.0)
    found["anytime, at the end"] = iv.anytime(data)
    return found, iv.diagnose(w[:, None], ones, who).ess


def slate_visits(rng: np.random.Generator, users: int, k: int, policy: np.ndarray) -> tuple[np.ndarray, ...]:
    who = np.repeat(np.arange(users), rng.integers(1, 5, users))
    kind = rng.integers(0, 2, len(who))
    action = (rng.random((len(who), k))[..., None] > policy[kind].cumsum(axis=1)[:, None]).sum(axis=2)
    repeated = np.zeros(action.shape, np.bool_)
    for j in range(1, k):
        repeated[:, j] = (action[:, :j] == action[:, j : j + 1]).any(axis=1)
    taste = rng.choice([-0.5, 0.5], users)[who][:, None]
    chance = EARNS[kind[:, None], action] * np.where(repeated, BELOW, 1.0) * (1 + taste)
    return who, kind, action, (rng.random(chance.shape) < chance).astype(float)


def slate_truth(k: int = 3) -> float:
    """The target's value a slate, over every slate that it can show."""
    total = 0.0
    for kind in (0, 1):
        for slate in np.ndindex(*(4,) * k):
            chance = PI[kind, list(slate)].prod()
            earns = [EARNS[kind, a] * (BELOW if a in slate[:j] else 1.0) for j, a in enumerate(slate)]
            total += 0.5 * chance * sum(earns)
    return float(total)


def slate_intervals(rng: np.random.Generator, users: int, k: int = 3) -> tuple[dict[str, iv.Interval], float]:
    """The intervals, and the effective sample of positions with all above them."""
    who, kind, action, rewards = slate_visits(rng, users, k, MU)
    n, shown = len(who), np.ones((len(who), k), np.bool_)
    ratios = PI[kind[:, None], action] / MU[kind[:, None], action]
    x = np.concatenate([np.eye(8)[kind[:, None] * 4 + action], np.ones((n, k, 1))], axis=2)
    expected = np.zeros((n, k, 9))
    expected[..., :8] = (np.eye(2)[kind][:, :, None] * PI[kind][:, None, :]).reshape(n, 1, 8)
    expected[..., 8] = 1
    p = predict(x.astype(np.float32), expected.astype(np.float32), rewards, shown, folds(who), ridge=1.0)
    table = {
        "RIPS": slates.rips(ratios, rewards, shown),
        "SNRIPS": slates.snrips(ratios, rewards, shown),
        "cascade-DR": slates.cascade_dr(ratios, rewards, shown, q=p.q_onwards, v=p.v_onwards),
    }
    sums = iv.by_user(np.stack([c.sum(axis=1) for c in table.values()], axis=1), who)
    found = {f"bootstrap by user, {name}": i for name, i in zip(table, iv.bootstrap(sums), strict=True)}
    return found, iv.diagnose_worst(slates.cumulative(ratios), shown.astype(np.float64), who).ess


def peeking(rng: np.random.Generator, users: int = 1_000) -> tuple[bool, bool]:
    """Whether the truth was inside at every look, one after each user: of the anytime interval, and of mean ± 1.96 s,
    which was made for one look (from the 50th user on)."""
    who, kind, action, reward = visits(rng, users)
    w = PI[kind, action] / MU[kind, action]
    ones = np.ones((len(who), 1))
    data = iv.bounded_below(reward[:, None], w[:, None], ones, who, least=0.0, most=1.0)
    edge = np.log(2 / 0.05)
    low = iv.log_capital(data.below, data.counts, data.least, TRUTH).max()
    high = iv.log_capital(-data.above, data.counts, -data.most, -TRUTH).max()
    sums = iv.by_user(reward * w, who)
    left = sums.sums[:, 0] - TRUTH * sums.counts
    z = np.cumsum(left) / np.sqrt(np.cumsum(left**2))
    return bool(max(low, high) < edge), bool((np.abs(z[50:]) < 1.96).all())
