"""Q(s, a) = FFN(ReLU(concat(s, a))) in numpy: a value of the state and an advantage of the item.

    hidden = ReLU(W x + W_s s + b)     A(s, a) = out · ReLU(W_2 hidden + b_2) + c
                                       V(s)    = out_v · ReLU(W_v [s, context] + b_v) + c_v
    Q(s, a) = V(s) + A(s, a)

x = φ(s, a, context, scalars) of features.py, s the state at length 1. The first layer is split: what belongs to the
decision is folded into its weights once, and only what belongs to the item is multiplied for each candidate. Dueling as
in DRN (Zheng et al. 2018, figure 5): A is not centred, because a decision's candidates are not all that could be shown.
`training.py` has the same in torch.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F32, Arrays
from headrace.policy.features import Prepared, by_candidate, by_row


def new(*, size: int, dim: int, contexts: int, hidden: int, seed: int, tag: int) -> Arrays:
    """Random weights (He et al. 2015) for x (size,), s (dim,) and contexts (contexts,); `tag` tells networks apart."""
    random = np.random.Generator(np.random.Philox(key=(seed, tag)))
    half = max(1, hidden // 2)

    def normal(rows: int, columns: int, variance: float) -> F32:
        return random.normal(0, np.sqrt(variance), (rows, columns)).astype(np.float32)

    return {
        "wide": normal(hidden, size, 2 / 6),  # the input's squared length: see features.py
        "state": normal(hidden, dim, 2 / 6),
        "bias": np.zeros(hidden, np.float32),
        "second": normal(half, hidden, 2 / hidden),
        "second_bias": np.zeros(half, np.float32),
        "out": normal(1, half, 0.01 / half),  # near 0 at first: an untrained network prefers nothing by much
        "out_bias": np.zeros(1, np.float32),
        "value": normal(half, dim + contexts, 2 / (1 + contexts)),
        "value_bias": np.zeros(half, np.float32),
        "value_out": normal(1, half, 0.01 / half),
        "value_out_bias": np.zeros(1, np.float32),
    }


def advantages(weights: Arrays, prepared: Prepared) -> F32:
    """A(s, a) of every candidate (B, n)."""
    hidden = prepared.scores(weights["wide"])  # (B, H, n)
    of_state = by_row(prepared.unit, np.ascontiguousarray(weights["state"].T)) + weights["bias"]
    hidden += of_state[:, :, None]
    second = by_candidate(weights["second"][None], _relu(hidden))
    second += weights["second_bias"][:, None]
    scores: F32 = by_candidate(weights["out"][None], _relu(second))[:, 0] + weights["out_bias"]
    return scores


def values(weights: Arrays, prepared: Prepared) -> F32:
    """V(s) of every decision (B,)."""
    inputs = np.concatenate([prepared.unit, prepared.contexts], axis=1)
    hidden = _relu(by_row(inputs, np.ascontiguousarray(weights["value"].T)) + weights["value_bias"])
    out: F32 = by_row(hidden, np.ascontiguousarray(weights["value_out"].T))[:, 0] + weights["value_out_bias"]
    return out


def _relu(x: F32) -> F32:
    """In place."""
    np.maximum(x, np.float32(0), out=x)
    return x
