"""Rewards that come late: which share of them has come by now, and what to make of those that have.

A reward r of a decision of age a is known in part only: on average the share F(a), where F is the distribution of its
delay. What has come, divided by F(a), is r on average (Horvitz & Thompson 1952): learned so, a recent example is not
taken for a bad one. F is estimated from the same log, of which the late part is not yet there:

    λ_j = outcomes with a delay in bin j / decisions at least as old as bin j's end      (decisions too young to tell
    F_j = Σ_{i ≤ j} λ_i / Σ λ_i                                                            are in neither)

For learners of a log loss, which cannot take back an example that has become a positive, there are the weights of
Ktena et al. 2019 (arXiv 1907.06558), section 4.2.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from headrace.policy.base import F64, I64

EDGES_MS: I64 = np.round(1000 * 2.0 ** (np.arange(46) / 2)).astype(np.int64)
"""Ends of the bins of age and delay: 1 s to 68 days, two a doubling. A stage is a number of ends passed, 0 to 46."""

STAGES = len(EDGES_MS) + 1
_EDGES: list[int] = EDGES_MS.tolist()
LARGEST = 8.0  # of a multiplier: below an eighth of its rewards an example's noise would outweigh its news
_LEAST_EXPOSED = 0.02  # share of the decisions that must be older than a bin for it to count


def shares(delays: I64, ages_then: I64, ages: I64) -> F64:
    """F (46,) at EDGES_MS.

    `delays` (M,) are those of the outcomes that have come, `ages_then` (M,) the age now of the decision of each, `ages`
    (N,) those of all decisions that could have had one; in ms. Without outcomes F is 1. What no decision is old enough
    to tell is taken not to come: F is 1 from there on.
    """
    exposed = len(ages) - np.searchsorted(np.sort(ages), EDGES_MS)  # (46,)
    place = np.searchsorted(EDGES_MS, delays)  # the bin whose end is the first that is no smaller
    told = place < len(EDGES_MS)
    told[told] &= ages_then[told] >= EDGES_MS[place[told]]
    counts = np.bincount(place[told], minlength=len(EDGES_MS))
    enough = exposed >= max(1.0, _LEAST_EXPOSED * len(ages))
    rates = np.where(enough, counts / np.maximum(exposed, 1), 0.0)
    total = rates.sum()
    if total == 0:
        return np.ones(len(EDGES_MS))
    share: F64 = np.cumsum(rates) / total
    return share


def multipliers(share: F64, *, largest: float = LARGEST) -> F64:
    """By stage (47,): 1 / F in the middle of the stage, at most `largest`; 1 in the last."""
    ends = np.concatenate([[0.0], share, [1.0]])
    middle = np.append((ends[:-2] + ends[1:-1]) / 2, 1.0)
    factors: F64 = 1 / np.clip(middle, 1 / largest, 1.0)
    return factors


def stage(age_ms: int) -> int:
    """How many ends an age has passed."""
    return bisect_right(_EDGES, age_ms)


def fake_negative_weights(p: F64) -> tuple[F64, F64]:
    """w₊ of a conversion told again as a positive, and w₋ of what was told as a negative at once.

    Ktena et al. 2019, equation 7: w₊ = 1 + p, w₋ = (1 - p)(1 + p), with p the model's own prediction, held constant.
    Every shown example is a negative first; a conversion is a second example. Raises ValueError for p outside [0, 1].
    """
    _check(p)
    return 1 + p, (1 - p) * (1 + p)


def fake_negative_calibration(b: F64) -> F64:
    """The rate behind a prediction b of a model that learned fake negatives unweighted: p = b / (1 - b), at most 1.

    Ktena et al. 2019, equation 11.
    """
    _check(b)
    return np.divide(b, 1 - b, out=np.ones_like(b), where=b < 0.5)


def _check(p: F64) -> None:
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
