"""The trunk of neural-linear: a two-layer ReLU network over x = φ(s, a, context, scalars) and the state, in numpy.

    hidden = ReLU(W x + W_s s + b)        z = ReLU(W_out hidden + b_out)

W x is linear in x as the linear part's score is: both come out of the same product over the candidates.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F32, Arrays
from headrace.policy.features import by_candidate, by_row, unit
from headrace.policy.variants import Variants

HIDDEN, OUT = 32, 16  # widths


def new(*, size: int, dim: int, seed: int) -> Arrays:
    """Random weights (He et al. 2015) for x (size,) and s (dim,), the output scaled so that |z|² is near 1."""
    random = np.random.Generator(np.random.Philox(key=(seed, 0x7275)))

    def normal(rows: int, columns: int, variance: float) -> F32:
        return random.normal(0, np.sqrt(variance), (rows, columns)).astype(np.float32)

    return {
        "wide": normal(HIDDEN, size, 2 / 6),  # the input's squared length: see features.py
        "state": normal(HIDDEN, dim, 2 / 6),
        "bias": np.zeros(HIDDEN, np.float32),
        "out": normal(OUT, HIDDEN, 2 / HIDDEN / OUT),
        "out_bias": np.zeros(OUT, np.float32),
    }


def rows(weights: Arrays, x: F32, states: F32) -> F32:
    """z (N, OUT) of single examples: x (N, D), states (N, d)."""
    hidden = relu(x @ weights["wide"].T + unit(states) @ weights["state"].T + weights["bias"])
    return relu(hidden @ weights["out"].T + weights["out_bias"])


def candidates(weights: Arrays, projected: F32, states: F32) -> F32:
    """z (B, OUT, n) from W x (B, HIDDEN, n), which is used up, and states (B, d) of length 1."""
    projected += (by_row(states, np.ascontiguousarray(weights["state"].T)) + weights["bias"])[:, :, None]
    z = by_candidate(weights["out"][None], relu(projected))
    z += weights["out_bias"][:, None]
    return relu(z)


def variants(weights: Arrays, made: Variants) -> F32:
    """z (B, h · k, OUT) of decisions as they might have been."""
    of_state = np.matmul(made.unit, weights["state"].T) + weights["bias"]
    hidden = made.scores(weights["wide"], of_state)
    z = np.matmul(relu(hidden).reshape(len(hidden), -1, HIDDEN), weights["out"].T)
    z += weights["out_bias"]
    return relu(z)


def relu(x: F32) -> F32:
    """In place."""
    np.maximum(x, np.float32(0), out=x)
    return x
