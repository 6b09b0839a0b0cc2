"""The scalar features of a candidate, in the order of `policy.features.SCALARS`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.policy.features import SCALARS
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


def scalars(
    items: ItemStore,
    policies: Policies,
    rows: I64,
    vectors: F32,
    *,
    history: I64,
    recent: F32,
    keys: NDArray[np.uint64],
) -> F32:
    """float32 (B, n, m).

    `rows` (B, n) and `vectors` (B, n, d) are the candidates; `history` (B, h) are rows and `recent` (B, 5, d)
    vectors of the latest five, `keys` (B, h) their item keys. All latest first.
    """
    out = np.zeros((*rows.shape, len(SCALARS)), np.float32)
    known = history != items.none
    lengths = np.maximum(known.sum(axis=1), 1)
    column = {name: out[:, :, i] for i, name in enumerate(SCALARS)}
    column["popularity"][:] = policies.popularity(rows)
    column["cold"][:] = column["popularity"] == 0
    column["co_view"][:], column["co_buy"][:] = policies.co_occurrence(keys[:, :5], items.keys[rows])
    category = np.where(known, items.category[history], -2)
    same = (items.category[rows][:, :, None] == category[:, None, :]) & (items.category[rows] >= 0)[:, :, None]
    column["category_match"][:] = same.sum(axis=2) / lengths[:, None]
    price = items.log_price[rows]
    column["price"][:] = price / 10
    paid = np.where(known, items.log_price[history], 0)
    priced = (paid > 0).sum(axis=1)
    mean = paid.sum(axis=1) / np.maximum(priced, 1)
    gap = np.minimum(np.abs(price - mean[:, None]) / 3, 1)
    column["price_gap"][:] = np.where((priced > 0)[:, None] & (price > 0), gap, 0)
    seen = rows[:, :, None] == np.where(known, history, -2)[:, None, :]
    places = np.where(seen, 1 / np.arange(1, history.shape[1] + 1, dtype=np.float32), 0)
    column["recency"][:] = places.max(axis=2)
    similarity = np.matmul(vectors, recent.transpose(0, 2, 1))  # (B, n, 5)
    column["last_similarity"][:] = similarity[:, :, 0]
    column["max_similarity"][:] = similarity.max(axis=2)
    return out
