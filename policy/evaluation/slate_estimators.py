"""Estimators of a slate policy's value per slate, from logged slates and their propensities.

N slates of k positions. `ratios` (N, k): π(a_j | x, a_1..j-1) / μ(a_j | x, a_1..j-1), both given the items above that
were logged; `rewards` (N, k); `shown` (N, k). Contributions are (N, k) by position: their sum over k, averaged over N,
is the estimate. Of the positions not shown nothing is added, and a weight reaches from above across them.

    SIPS         the whole slate's weight on the whole slate's reward: no assumption, the largest variance
    RIPS         a position's reward may depend on the items above it (reward interaction, McInerney et al. 2020)
    cascade-DR   RIPS with a model as control variate (Kiyohara et al. 2022)
    IIPS         a position's reward depends on its own item alone (Li et al. 2018): the other estimators, by column

Item-position propensities of IIPS are marginal over the items above. A log that has only conditional ones gives it the
ratio of those: the value of π's choice at each position below the items that the *logging* policy put above it. At
position 0, and where a log's propensities are marginal, the two are the same.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F64, Bool


def cumulative(ratios: F64) -> F64:
    """ρ_1..j = Π_{l ≤ j} ratio_l (N, k)."""
    return np.cumprod(ratios, axis=1, dtype=np.float64)


def sips(ratios: F64, rewards: F64, shown: Bool) -> F64:
    """c_j = ρ_1..k r_j (Precup et al. 2000; obp: SlateStandardIPS)."""
    return np.where(shown, ratios.prod(axis=1, keepdims=True) * rewards, 0.0)


def iips(ratios: F64, rewards: F64, shown: Bool) -> F64:
    """c_j = ratio_j r_j (Li et al. 2018, arXiv 1804.10488, item-position model; obp: SlateIndependentIPS)."""
    return np.where(shown, ratios * rewards, 0.0)


def rips(ratios: F64, rewards: F64, shown: Bool) -> F64:
    """c_j = ρ_1..j r_j (McInerney et al. 2020, arXiv 2007.12986; obp: SlateRewardInteractionIPS)."""
    return np.where(shown, cumulative(ratios) * rewards, 0.0)


def snrips(ratios: F64, rewards: F64, shown: Bool) -> F64:
    """Σ_j (share shown) Σ_i ρ r / Σ_i ρ, each position normalised by its own weights; influence values.

    McInerney et al. 2020, their normalised estimator.
    """
    rho = np.where(shown, cumulative(ratios), 0.0)
    mean = rho.mean(axis=0)
    share = shown.mean(axis=0)
    safe = np.where(mean > 0, mean, 1.0)
    ratio = (rho * rewards).mean(axis=0) / safe
    influence: F64 = ratio * shown + share * (rho / safe) * (rewards - ratio)
    return np.where(mean > 0, influence, 0.0)


def cascade_dr(ratios: F64, rewards: F64, shown: Bool, *, q: F64, v: F64) -> F64:
    """c_j = ρ_1..j (r_j - Q̂_j) + ρ_1..j-1 E_π[Q̂_j] (Kiyohara et al. 2022, arXiv 2202.01562).

    `q` (N, k): Q̂_j(x, a_1..j), the model of what the positions from j on earn under π; `v` (N, k): its expectation over
    π's item at j, given the items above. For any Q̂ the two corrections have expectation 0, as E[ρ_1..j | x, a_1..j-1] =
    ρ_1..j-1: a wrong model costs variance, not bias. A position that was not shown earns nothing and keeps its terms.
    """
    rho = cumulative(ratios)
    before = np.concatenate([np.ones((len(rho), 1)), rho[:, :-1]], axis=1)
    contributions: F64 = rho * (np.where(shown, rewards, 0.0) - q) + before * v
    return contributions
