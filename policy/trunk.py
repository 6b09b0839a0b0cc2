"""The trunk of neural-linear: a two-layer ReLU network z = φ(s, a, scalars, context), in numpy, for serving.

The first layer is split: W_a a + W_p (s ⊙ a) + W_m scalars + W_s s + W_c context + b. What belongs to the decision is
computed once a decision, and the product with the state is folded into the item's weights.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F32, Arrays
from headrace.policy.features import Prepared, by_candidate, by_row, unit

HIDDEN, OUT = 64, 32  # widths: 25 µs a decision of 120 candidates; twice as wide costs twice that


def new(*, dim: int, scalars: int, contexts: int, seed: int) -> Arrays:
    """Random weights (He et al. 2015), the output scaled so that |z|² is near 1."""
    random = np.random.Generator(np.random.Philox(key=(seed, 0x7275)))

    def normal(rows: int, columns: int, scale: float) -> F32:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    he = float(np.sqrt(2 / 4))  # four inputs of length near 1 each
    return {
        "state": normal(HIDDEN, dim, he),
        "item": normal(HIDDEN, dim, he),
        "product": normal(HIDDEN, dim, he),
        "scalars": normal(HIDDEN, scalars, he),
        "contexts": normal(HIDDEN, contexts, he),
        "bias": np.zeros(HIDDEN, np.float32),
        "out": normal(OUT, HIDDEN, float(np.sqrt(2 / HIDDEN / OUT))),
        "out_bias": np.zeros(OUT, np.float32),
    }


def rows(weights: Arrays, states: F32, contexts: F32, items: F32, scalars: F32) -> F32:
    """z (N, OUT) of single examples."""
    s = unit(states)
    hidden = s @ weights["state"].T + items @ weights["item"].T + product(s, items) @ weights["product"].T
    hidden += scalars @ weights["scalars"].T + contexts @ weights["contexts"].T + weights["bias"]
    out: F32 = relu(relu(hidden) @ weights["out"].T + weights["out_bias"])
    return out


def candidates(weights: Arrays, prepared: Prepared) -> F32:
    """z (B, OUT, n) of all candidates of a query."""
    query, s = prepared.query, prepared.unit
    root = np.float32(np.sqrt(s.shape[1]))
    of_item = weights["product"] * (s * root)[:, None, :] + weights["item"]  # (B, HIDDEN, d)
    hidden = by_candidate(of_item, query.items)
    of_decision = by_row(s, weights["state"].T) + weights["bias"]
    if query.contexts.shape[1]:
        of_decision += by_row(query.contexts, weights["contexts"].T)
    hidden += by_candidate(weights["scalars"][None], query.scalars)
    hidden += of_decision[:, :, None]
    out = by_candidate(weights["out"][None], relu(hidden).transpose(0, 2, 1))
    out += weights["out_bias"][:, None]
    return relu(out)


def product(s: F32, items: F32) -> F32:
    """√d · s ⊙ a, of length near 1."""
    return s * np.float32(np.sqrt(s.shape[-1])) * items


def relu(x: F32) -> F32:
    return np.maximum(x, np.float32(0), out=x)
