"""q̂(x, a): what an action earns in a context, fitted so that no user's reward is predicted by a model that saw him.

Cross-fitting (Chernozhukov et al. 2018, arXiv 1608.00060): users fall into K folds; fold f is predicted by the model of
all others. Ridge for rewards of any size, logistic for rewards of 0 and 1. The last feature is a constant 1 and is not
shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.policy.base import F32, F64, I64, Bool

FOLDS = 5
_NEWTON_STEPS = 25
_CLOSE = 1e-8
_RIDGES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)


def folds(users: I64, n_folds: int = FOLDS) -> I64:
    """The fold (N,) of each row: a mixed bit pattern of its user's number, so equal users share one in every run."""
    z = users.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    chosen: I64 = (z % np.uint64(n_folds)).astype(np.int64)
    return chosen


class CrossFitted:
    """One weight vector a fold (K, D): `predict(x, fold)` is the word of the model that has not seen that fold."""

    def __init__(self, coefficients: F64, *, ridge: float, logistic: bool) -> None:
        self.coefficients = coefficients
        self.ridge = ridge
        self.logistic = logistic

    def predict(self, x: F64, fold: I64) -> F64:
        """q̂ for `x` (N, ..., D) of the folds (N,)."""
        scores: F64 = np.einsum("n...d,nd->n...", x, self.coefficients[fold], optimize=True)
        return _sigmoid(scores) if self.logistic else scores


def fit(x: F64, rewards: F64, fold: I64, *, logistic: bool = False, ridge: float | None = None) -> CrossFitted:
    """`x` (M, D) with a last column of ones, `rewards` (M,), `fold` (M,) in 0 … K - 1 with K = its largest + 1, ≥ 2.

    `ridge` > 0 is the penalty on every weight but the constant's; None takes, of a few, the one that predicts the folds
    left out best (logistic: 1). Raises ValueError where a number is not finite.
    """
    if not (np.isfinite(x).all() and np.isfinite(rewards).all()):
        raise ValueError("a feature or a reward is not finite: q̂ cannot be fitted")
    n_folds = max(int(fold.max(initial=0)) + 1, 2)
    if logistic:
        penalty = _penalty(x.shape[1], ridge or 1.0)
        rows = [_logistic(x[fold != f], rewards[fold != f], penalty) for f in range(n_folds)]
        return CrossFitted(np.stack(rows), ridge=ridge or 1.0, logistic=True)
    # The sums of all folds but one are all sums minus its own.
    parts = [(x[fold == f], rewards[fold == f]) for f in range(n_folds)]
    grams, moments = [z.T @ z for z, _ in parts], [z.T @ y for z, y in parts]
    gram, moment = sum(grams), sum(moments)
    best, least, chosen = np.zeros((n_folds, x.shape[1])), np.inf, 1.0
    for tried in _RIDGES if ridge is None else (ridge,):
        penalties = np.diag(_penalty(x.shape[1], tried))
        found = np.stack(
            [np.linalg.solve(gram - g + penalties, moment - m) for g, m in zip(grams, moments, strict=True)]
        )
        missed = sum(float(((z @ beta - y) ** 2).sum()) for (z, y), beta in zip(parts, found, strict=True))
        if missed < least:
            best, least, chosen = found, missed, tried
    return CrossFitted(best, ridge=chosen, logistic=False)


def _penalty(size: int, ridge: float) -> F64:
    penalty = np.full(size, ridge)
    penalty[-1] = 1e-9
    return penalty


@dataclass(frozen=True)
class Predictions:
    """q̂ of what was shown and E_π[q̂], by position (N, k); for cascade-DR the same of all that is still to come."""

    q: F64
    v: F64
    q_onwards: F64
    v_onwards: F64


def predict(x: F32, expected: F32, rewards: F64, shown: Bool, fold: I64, *, ridge: float | None = None) -> Predictions:
    """Linear q̂ for slates, cross-fitted.

    `x` (N, k, D): features of the items that stood at each position, the last a 1, and all 0 where there was none;
    `expected` (N, k, D): their mean over the target's choice there, Σ_a π(a) x(a). As q̂ is linear, E_π[q̂] = q̂ of the
    mean. One model for all positions tells what a position earns; for what is still to come there is one a position,
    fitted from the last to the first on r_j + E_π[Q̂_j+1] (Kiyohara et al. 2022, arXiv 2202.01562, section 3).
    """
    n, k, size = x.shape
    q, v, q_onwards, v_onwards = (np.zeros((n, k)) for _ in range(4))
    pooled = fit(
        x[shown].astype(np.float64), rewards[shown], np.broadcast_to(fold[:, None], (n, k))[shown], ridge=ridge
    )
    penalty = np.diag(_penalty(size, ridge or pooled.ridge))
    earned = np.where(shown, rewards, 0.0)
    for f in range(len(pooled.coefficients)):
        seen, told = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        q[told] = x[told] @ pooled.coefficients[f]
        v[told] = expected[told] @ pooled.coefficients[f]
        onwards = np.zeros(len(seen))
        for j in reversed(range(k)):
            z = x[seen, j].astype(np.float64)
            beta = np.linalg.solve(z.T @ z + penalty, z.T @ (earned[seen, j] + onwards))
            onwards = expected[seen, j] @ beta
            q_onwards[told, j] = x[told, j] @ beta
            v_onwards[told, j] = expected[told, j] @ beta
    return Predictions(q, v, q_onwards, v_onwards)


def is_binary(rewards: F64) -> bool:
    """Whether every reward is 0 or 1, and both occur."""
    return bool(np.isin(rewards, (0.0, 1.0)).all()) and len(np.unique(rewards)) == 2


def _logistic(x: F64, y: F64, penalty: F64) -> F64:
    """Newton's method (iteratively reweighted least squares); steps are halved while they make things worse."""
    beta = np.zeros(x.shape[1])
    rate = min(max(float(y.mean()) if len(y) else 0.5, 1e-6), 1 - 1e-6)
    beta[-1] = np.log(rate / (1 - rate))

    def loss(b: F64) -> float:
        s = x @ b
        return float((np.logaddexp(0.0, s) - y * s).sum() + 0.5 * (penalty * b * b).sum())

    now = loss(beta)
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(x @ beta)
        gradient = x.T @ (p - y) + penalty * beta
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while (then := loss(beta - scale * step)) > now and scale > 1e-6:
            scale /= 2
        if then > now:
            break
        beta, before, now = beta - scale * step, now, then
        if before - now <= _CLOSE * (1 + abs(now)):
            break
    return beta


def _sigmoid(s: F64) -> F64:
    with np.errstate(over="ignore"):
        sigmoid: F64 = 1 / (1 + np.exp(-s))
    return sigmoid
