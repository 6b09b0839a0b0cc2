"""Full ranking: where the item that came next stands among all items. Never against a sample of them, which orders
models otherwise (Krichene & Rendle 2020, "On Sampled Metrics for Item Recommendation", KDD)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TOP = 10


def ranks(states: F32, items: F32, targets: I64, seen: list[NDArray[np.int32]] | None) -> I64:
    """states (n, d), items (N, d), targets (n,) → how many items stand before each target; ties stand before it.

    Where a target's score is not a number, all stand before it: a model that diverged is chosen last.

    `seen`: the rows of the items each user has met, which are out of the running; None where repeats are meant.
    """
    found = np.empty(len(states), np.int64)
    for begin in range(0, len(states), 512):
        rows = slice(begin, begin + 512)
        scores = states[rows] @ items.T
        n = np.arange(len(scores))
        own = scores[n, targets[rows]]
        if seen is not None:
            met = seen[rows]
            scores[np.repeat(n, [len(one) for one in met]), np.concatenate(met)] = -np.inf
        scores[n, targets[rows]] = -np.inf
        found[rows] = scores.shape[1] - (scores < own[:, None]).sum(axis=1)
    return found


def metrics(found: I64, *, k: int = TOP) -> dict[str, float]:
    """Hit rate and NDCG at k of one relevant item a user: 1 / log2(rank + 2) for ranks 0 … k-1 (Järvelin & Kekäläinen
    2002), averaged."""
    inside = found < k
    gain = np.where(inside, 1 / np.log2(found + 2.0), 0.0)
    return {f"hit{k}": float(inside.mean()), f"ndcg{k}": float(gain.mean())}
