"""Estimators of a target policy's value from the log of another: one number each, and what every round contributes.

N rounds; r (N,) rewards, w (N,) = π(a|x) / μ(a|x) with the *logged* μ, q (N,) = q̂(x, a) of the action taken,
v (N,) = Σ_a π(a|x) q̂(x, a). Each function returns contributions c (N,) whose mean is the estimate. For a
self-normalised estimator, which is a ratio, they are its influence values about the estimate (van der Vaart 1998,
section 20.1), so that the spread of c is the estimator's own and an interval follows from c alone.

For a position of a slate pass its column; `per_slate` sums columns. Rows that were not shown are left out by `shown`
(N,): a position's contribution to its slate is 0 there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace.policy.base import F64, Bool


@dataclass(frozen=True)
class Rounds:
    """What one estimator reads; `q` and `v` only where it has a model."""

    rewards: F64  # (N,)
    weights: F64  # (N,)
    shown: Bool  # (N,)
    q: F64 | None = None  # (N,)
    v: F64 | None = None  # (N,)


def weights(target: F64, propensities: F64) -> F64:
    """w = π / μ, of any shape. Raises ValueError unless 0 < μ ≤ 1 and 0 ≤ π ≤ 1."""
    if not ((propensities > 0) & (propensities <= 1)).all():
        raise ValueError("a propensity is not in (0, 1]")
    if not ((target >= 0) & (target <= 1 + 1e-9)).all():
        raise ValueError("a target's probability is not in [0, 1]")
    ratio: F64 = target / propensities
    return ratio


def on_policy(r: Rounds) -> F64:
    """The logging policy's own value: the rewards as they are."""
    return np.where(r.shown, r.rewards, 0.0)


def ips(r: Rounds) -> F64:
    """c = w r (Horvitz & Thompson 1952; Strehl et al. 2010, arXiv 1003.0120)."""
    return np.where(r.shown, r.weights * r.rewards, 0.0)


def snips(r: Rounds) -> F64:
    """Σ w r / Σ w (Swaminathan & Joachims, NIPS 2015: self-normalised)."""
    return _self_normalised(r, r.rewards)


def dm(r: Rounds) -> F64:
    """c = v, the model's own word (direct method; Dudík et al. 2011, arXiv 1103.4601)."""
    _, v = _model(r)
    return np.where(r.shown, v, 0.0)


def dr(r: Rounds) -> F64:
    """c = v + w (r - q) (Dudík et al. 2011)."""
    q, v = _model(r)
    return np.where(r.shown, v + r.weights * (r.rewards - q), 0.0)


def sndr(r: Rounds) -> F64:
    """(1/n) Σ v + Σ w (r - q) / Σ w (Thomas & Brunskill 2016, arXiv 1604.00923: weighted doubly robust, one step)."""
    q, _ = _model(r)
    return dm(r) + _self_normalised(r, r.rewards - q)


def switch_dr(r: Rounds, tau: float) -> F64:
    """c = v + w 1{w ≤ τ} (r - q) (Wang, Agarwal & Dudík 2017, arXiv 1612.01205)."""
    q, v = _model(r)
    kept = np.where(r.weights <= tau, r.weights, 0.0)
    return np.where(r.shown, v + kept * (r.rewards - q), 0.0)


def dros(r: Rounds, lam: float) -> F64:
    """c = v + ŵ (r - q), ŵ = λ w / (w² + λ) (Su et al. 2020, arXiv 1907.09623, optimistic). λ = 0 is DM, ∞ DR."""
    q, v = _model(r)
    shrunk = r.weights if np.isinf(lam) else _shrunk(r.weights, lam)
    return np.where(r.shown, v + shrunk * (r.rewards - q), 0.0)


def best_tau(r: Rounds) -> float:
    """τ of Switch-DR with the least estimated mean squared error, among quantiles of w."""
    return _tuned(r, _quantiles(r.weights[r.shown]), switch_dr, lambda w, tau: np.where(w <= tau, w, 0.0))


def best_lambda(r: Rounds) -> float:
    """λ of DRos with the least estimated mean squared error."""
    grid = [0.0, *sorted(c * x**2 for x in _quantiles(r.weights[r.shown]) for c in (0.01, 0.1, 1.0)), float("inf")]
    return _tuned(r, grid, dros, lambda w, lam: w if np.isinf(lam) else _shrunk(w, lam))


def _tuned(
    r: Rounds, grid: list[float], estimate: Callable[[Rounds, float], F64], kept: Callable[[F64, float], F64]
) -> float:
    """The parameter with the least variance + bias², both estimated; the bias is E[(w - ŵ)(q - r)]."""
    q, _ = _model(r)
    n = max(len(r.rewards), 2)
    best, least = grid[-1], np.inf
    for parameter in reversed(grid):
        left = np.where(r.shown, (r.weights - kept(r.weights, parameter)) * (r.rewards - q), 0.0)
        error = float(estimate(r, parameter).var()) / n + float(left.mean()) ** 2
        if error < least:
            best, least = parameter, error
    return best


def _quantiles(w: F64) -> list[float]:
    if not len(w):
        return [1.0]
    return sorted({float(x) for x in np.quantile(w, [0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0]) if x > 0}) or [1.0]


def _shrunk(w: F64, lam: float) -> F64:
    shrunk: F64 = np.divide(lam * w, w * w + lam, out=np.zeros_like(w), where=w * w + lam > 0)
    return shrunk


def _model(r: Rounds) -> tuple[F64, F64]:
    if r.q is None or r.v is None:
        raise ValueError("this estimator needs a reward model: pass q and v")
    return r.q, r.v


def _self_normalised(r: Rounds, what: F64) -> F64:
    """p · Σ w y / Σ w with p = the share shown, as influence values about it; all 0 where every weight is 0."""
    w = np.where(r.shown, r.weights, 0.0)
    total = w.sum()
    if total <= 0:
        return np.zeros(len(w))
    share = r.shown.mean()
    ratio = float((w * what).sum() / total)
    influence: F64 = ratio * r.shown + share * (w / w.mean()) * (what - ratio)
    return influence
