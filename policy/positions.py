"""Position bias: an item that stands lower is looked at less, and that is not its fault.

Examination model (Richardson et al. 2007; Joachims et al. 2017, arXiv 1608.04468): P(r | x, k) = θ_k P(r | x).
Where slates are random, whatever is at a position is as good as what is at any other, so θ_k / θ_0 is the ratio of
their rates (Joachims et al. 2017, section 5.1).

Learning with θ: weight θ_k, reward r / θ_k. In a sum of squares that adds θ_k x xᵀ and r x: no weight is above 1, and
the estimate of E[r | x, k = 0] is unbiased.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F64, I64

SMALLEST = 0.05  # of a weight θ_k
LEAST = 100  # rewarded positions below which there is no estimate
_PRIOR = 50.0  # what the power law counts for at each position, in rewarded positions
_EXPONENTS = np.linspace(0, 3, 301)


def examination(shown: I64, rewarded: I64) -> F64:
    """θ (K,), θ_0 = 1, from how often each position of random slates was shown and how often it earned something.

    A power law (1 + k)^-η is fitted to all positions (Poisson likelihood, η on a grid); each position then moves from
    it as far as its own counts tell: the posterior mean under a gamma prior. Ones where there are too few counts.
    """
    total = float(rewarded.sum())
    if total < LEAST or not shown[0]:
        return np.ones(len(shown))
    log_place = np.log1p(np.arange(len(shown)))
    laws = np.exp(-_EXPONENTS[:, None] * log_place)  # (301, K)
    exposure = laws @ shown
    # Σ c_k log(n_k C θ_k) - Σ n_k C θ_k with C at its best, Σ c / Σ n θ
    likelihood = -_EXPONENTS * (rewarded @ log_place) - total * np.log(exposure)
    best = int(likelihood.argmax())
    law, rate = laws[best], total / exposure[best]
    theta = (rewarded + _PRIOR) / (shown * rate + _PRIOR / law)
    bounded: F64 = np.clip(theta / theta[0], SMALLEST, 1.0)
    return bounded
