"""The scalar features of a candidate, in the order of `policy.features.SCALARS`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.policy.features import SCALARS

OFTEN = 20.0  # times: from there on more says nothing

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


class Shelf(Protocol):
    """Items by row, as `items.ItemStore` has them."""

    @property
    def none(self) -> int: ...  # the row that stands for no item
    @property
    def keys(self) -> U64: ...
    @property
    def category(self) -> NDArray[np.int32]: ...  # -1 for none
    @property
    def log_price(self) -> F32: ...  # 0 where unknown


class Behaviour(Protocol):
    """What all users do, as `policies.Policies` knows it."""

    def popularity(self, rows: I64) -> F32: ...
    def co_occurrence(self, recent: U64, keys: U64) -> tuple[F32, F32]: ...


def scalars(
    items: Shelf,
    policies: Behaviour,
    rows: I64,
    vectors: F32,
    *,
    history: I64,
    recent: F32,
    keys: NDArray[np.uint64],
    own: F32,
) -> F32:
    """float32 (B, n, m).

    `rows` (B, n) and `vectors` (B, n, d) are the candidates; `history` (B, h) are rows and `recent` (B, 5, d)
    vectors of the latest five, `keys` (B, h) their item keys. All latest first. `own` (B, n): see `own_count`.
    """
    out = np.zeros((*rows.shape, len(SCALARS)), np.float32)
    known = history != items.none
    lengths = np.maximum(known.sum(axis=1), 1)
    column = {name: out[:, :, i] for i, name in enumerate(SCALARS)}
    column["popularity"][:] = policies.popularity(rows)
    column["cold"][:] = column["popularity"] == 0
    column["co_view"][:], column["co_buy"][:] = policies.co_occurrence(keys[:, :5], items.keys[rows])
    # The history's axis is short and is walked: reducing over a short last axis costs numpy several times as much.
    category = np.where(known, items.category[history], -2)
    of_candidates = items.category[rows]
    for place in range(history.shape[1]):
        column["category_match"][:] += of_candidates == category[:, place, None]
    column["category_match"][of_candidates < 0] = 0
    column["category_match"] /= lengths[:, None].astype(np.float32)
    price = items.log_price[rows]
    column["price"][:] = price / 10
    paid = np.where(known, items.log_price[history], 0)
    priced = (paid > 0).sum(axis=1)
    mean = paid.sum(axis=1) / np.maximum(priced, 1)
    gap = np.minimum(np.abs(price - mean[:, None]) / 3, 1)
    column["price_gap"][:] = np.where((priced > 0)[:, None] & (price > 0), gap, 0)
    steps = np.where(known, history, -2)
    for place in reversed(range(history.shape[1])):  # the latest place counts
        column["recency"][rows == steps[:, place, None]] = 1 / (place + 1)
    similarity = np.matmul(recent, vectors.transpose(0, 2, 1))  # (B, 5, n)
    column["last_similarity"][:] = similarity[:, 0]
    column["max_similarity"][:] = similarity.max(axis=1)
    column["own_count"][:] = own
    return out


def own_count(times: F32) -> F32:
    """The scalar (B, n) from how often users took the candidates (B, n).

    Not a share of what the user took most: of who took everything once, all would be as strong as a favourite.
    """
    return np.asarray(np.minimum(np.log1p(times) / np.log1p(OFTEN), 1), np.float32)
